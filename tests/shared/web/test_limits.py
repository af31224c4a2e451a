"""Requests that are too large or too deep, through a real server as containers run it."""

import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter, UploadFile

from shared.auth.scopes import OPEN
from shared.base import RequestModel
from shared.settings import Settings
from shared.web.app import create_app
from shared.web.limits import FORM_BYTES, MAX_HEAD_BYTES
from tests.support.scripted_engine import serving
from tests.support.waiting import until

BODY, CHAT, UPLOAD, IN_FLIGHT = 100_000, 50_000, 300_000, 150_000
JSON = {"content-type": "application/json"}
router = APIRouter()
held, let_go = threading.Event(), threading.Event()


class Taken(RequestModel):
    value: Any


@router.post("/take")
def take(body: Taken) -> int:
    return len(str(body.value))


@router.post("/v1/chat/completions")
def chat(body: Taken) -> int:
    return len(str(body.value))


@router.post("/hold")
def hold(body: Taken) -> int:
    """Answers when the test lets it."""
    held.set()
    assert let_go.wait(30), "the test did not let go"
    return len(str(body.value))


@router.post("/upload")
def upload(file: UploadFile) -> int:
    return len(file.file.read())


@router.get("/fail")
def fail() -> None:
    raise RuntimeError("a thought of somebody's")


@router.get("/misfit")
def misfit() -> int:
    thought: Any = "a thought of somebody's"
    return thought  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        settings = Settings(
            max_body_bytes=BODY,
            max_chat_body_bytes=CHAT,
            max_upload_bytes=UPLOAD,
            max_body_bytes_in_flight=IN_FLIGHT,
            head_timeout_s=0.5,
            body_timeout_s=0.5,
        )
        for module in ("limits", "http_protocol"):
            patch.setattr(f"shared.web.{module}.get_settings", lambda: settings)
        paths = {"/take", "/upload", "/fail", "/misfit", "/hold", "/v1/chat/completions"}
        patch.setattr("shared.web.guard.OPEN", OPEN | paths)
        with serving(create_app("limited", router, uploads=["/upload"])) as url:
            yield url


def code_of(answer: httpx2.Response) -> tuple[int, str]:
    assert answer.headers["x-request-id"]
    return answer.status_code, answer.json()["error"]["code"]


def body(size: int) -> bytes:
    return json.dumps({"value": "x" * (size - len('{"value": ""}'))}).encode()


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/fail", "RuntimeError"), ("/misfit", "fastapi.exceptions.ResponseValidationError")],
)
def test_a_request_that_the_service_fails_at_has_an_id_too(
    url: str, written: io.StringIO, path: str, kind: str
) -> None:
    answer = httpx2.get(f"{url}{path}")
    assert code_of(answer) == (500, "internal_error")
    until(lambda: "Exception in ASGI" in written.getvalue(), "the server logs it")
    logged = [json.loads(line) for line in written.getvalue().splitlines()]
    [traceback] = [line["exception"] for line in logged if "exception" in line]
    assert traceback.splitlines()[-1] == kind
    assert "somebody" not in answer.text + written.getvalue()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_is_taken_up_to_its_limit(url: str, chunked: bool) -> None:
    def post(size: int) -> httpx2.Response:
        pieces = (body(size)[at : at + 1000] for at in range(0, size, 1000))
        content: Any = pieces if chunked else body(size)
        return httpx2.post(f"{url}/take", content=content, headers=JSON)

    assert post(BODY).status_code == 200
    for size in (BODY + 1, 3 * BODY // 2):
        assert code_of(post(size)) == (413, "too_large")


def test_only_an_upload_may_be_larger(url: str) -> None:
    def post(path: str, size: int) -> httpx2.Response:
        return httpx2.post(f"{url}{path}", files={"file": ("a.jsonl", b"x" * size)})

    assert post("/upload", UPLOAD).json() == UPLOAD
    assert code_of(post("/upload", UPLOAD + FORM_BYTES)) == (413, "too_large")
    assert code_of(post("/take", BODY)) == (413, "too_large")


def test_an_upload_of_a_length_that_is_not_said(url: str) -> None:
    def post(size: int) -> httpx2.Response:
        part = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        pieces = [part, *[b"x" * 1000] * (size // 1000), b"\r\n--b--\r\n"]
        headers = {"content-type": "multipart/form-data; boundary=b"}
        return httpx2.post(f"{url}/upload", content=iter(pieces), headers=headers)

    assert post(UPLOAD).json() == UPLOAD
    assert code_of(post(UPLOAD + 2 * FORM_BYTES)) == (413, "too_large")


def test_who_sends_on_and_on_is_cut_off(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = b"POST /take HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(head)
        with pytest.raises(OSError, match=r"reset|pipe"):
            connection.sendall((b"2710\r\n" + b"x" * 10_000 + b"\r\n") * 10_000)


def test_head_bytes(url: str) -> None:
    assert httpx2.get(f"{url}/healthz", headers={"x": "y" * 30_000}).status_code == 200
    for headers, query in ({"x": "y" * MAX_HEAD_BYTES}, ""), ({}, "y" * MAX_HEAD_BYTES):
        answer = httpx2.get(f"{url}/healthz?{query}", headers=headers)
        assert code_of(answer) == (431, "too_large")


@pytest.mark.parametrize("piece", [b"x: y\r\n" * 100, b"y" * 600], ids=["trailers", "trailer"])
def test_what_stands_behind_a_body_and_never_ends_is_cut_off(url: str, piece: bytes) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(head + b"0\r\nx: ")
        with pytest.raises(OSError, match=r"reset|pipe"):
            connection.sendall(piece * 100_000)


@pytest.mark.parametrize("piece", [b"x: y\r\n" * 100, b"y" * 600], ids=["headers", "header"])
def test_a_head_that_never_ends_is_cut_off(url: str, piece: bytes) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nx: ")
        with pytest.raises(OSError, match=r"reset|pipe"):
            connection.sendall(piece * 100_000)


@pytest.mark.parametrize(
    ("depth", "param", "code"), [(101, "value", "invalid_value"), (30_000, None, "too_deep")]
)
def test_json_that_is_too_deep_is_said_so(url: str, depth: int, param: str, code: str) -> None:
    deep = b'{"value": ' + b"[" * depth + b"]" * depth + b"}"
    answer = httpx2.post(f"{url}/take", content=deep, headers=JSON)
    assert code_of(answer) == (400, code)
    assert answer.json()["error"]["param"] == param
    assert "nested deeper than 100 levels" in answer.json()["error"]["message"]


def test_json_that_is_deep_enough_is_taken(url: str) -> None:
    deep = b'{"value": ' + b"[" * 100 + b"]" * 100 + b"}"
    assert httpx2.post(f"{url}/take", content=deep, headers=JSON).status_code == 200


def test_chat_takes_smaller_bodies(url: str) -> None:
    def post(size: int) -> httpx2.Response:
        return httpx2.post(f"{url}/v1/chat/completions", content=body(size), headers=JSON)

    assert post(CHAT).status_code == 200
    assert code_of(post(CHAT + 1)) == (413, "too_large")


def test_bodies_of_all_requests_have_a_bound_together(url: str) -> None:
    def post(path: str, size: int, *, chunked: bool = False) -> httpx2.Response:
        content: Any = iter([body(size)]) if chunked else body(size)
        return httpx2.post(f"{url}{path}", content=content, headers=JSON, timeout=30)

    held.clear()
    let_go.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, "/hold", BODY)
        assert held.wait(10), "the first request did not arrive"
        for chunked in (False, True):
            refused = post("/take", IN_FLIGHT - BODY + 1, chunked=chunked)
            assert code_of(refused) == (503, "busy")
            assert refused.headers["retry-after"] == "2"
        assert post("/take", IN_FLIGHT - BODY).status_code == 200
        assert post("/v1/chat/completions", CHAT).status_code == 200, "chat has a share of its own"
        let_go.set()
        assert first.result().status_code == 200
    assert post("/take", BODY).status_code == 200, "what was held is free again"


def answer_to_a_dribble(url: str, start: bytes, piece: bytes) -> tuple[bytes, float]:
    """What a client gets that sends a piece each 0.1 s, and after how many seconds it is closed."""
    host, port = url.removeprefix("http://").split(":")
    began = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=0.1) as connection:
        connection.sendall(start)
        while time.monotonic() - began < 10:
            try:
                if answer := connection.recv(10_000):
                    return answer, time.monotonic() - began
                return b"", time.monotonic() - began
            except TimeoutError:
                connection.sendall(piece)
    raise AssertionError("the connection was still open after 10 s")


def test_a_head_that_takes_too_long_is_closed(url: str) -> None:
    answer, seconds = answer_to_a_dribble(url, b"GET /healthz HTTP/1.1\r\nx: ", b"y")
    assert answer.startswith(b"HTTP/1.1 408 "), answer
    assert 0.4 < seconds < 5


def test_a_connection_without_a_request_is_closed(url: str) -> None:
    answer, seconds = answer_to_a_dribble(url, b"", b"")
    assert answer == b""
    assert 0.4 < seconds < 5


def test_a_later_head_on_a_connection_is_timed_too(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200 OK" in connection.recv(10_000)
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert connection.recv(10_000).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_takes_too_long_is_refused(url: str) -> None:
    start = b"POST /take HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    start += b"content-length: 1000\r\n\r\n"
    answer, seconds = answer_to_a_dribble(url, start, b" ")
    assert answer.startswith(b"HTTP/1.1 408 "), answer
    assert b'"code":"request_timeout"' in answer
    assert 0.4 < seconds < 5
