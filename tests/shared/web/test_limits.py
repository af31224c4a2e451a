"""Requests that are too large or too deep, through a real server as containers run it."""

import io
import json
import socket
from collections.abc import Iterator
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

BODY, UPLOAD = 100_000, 300_000
JSON = {"content-type": "application/json"}
router = APIRouter()


class Taken(RequestModel):
    value: Any


@router.post("/take")
def take(body: Taken) -> int:
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
        settings = Settings(max_body_bytes=BODY, max_upload_bytes=UPLOAD)
        patch.setattr("shared.web.limits.get_settings", lambda: settings)
        patch.setattr("shared.web.guard.OPEN", OPEN | {"/take", "/upload", "/fail", "/misfit"})
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
