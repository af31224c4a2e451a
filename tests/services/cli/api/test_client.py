"""The REST client: what it sends, and how it words what goes wrong."""

import json
from collections.abc import Callable

import httpx2
import pytest
from typer.testing import CliRunner

from services.cli.api.client import Client, PlatformAway, RequestFailed
from services.cli.errors import CliError
from services.cli.main import app


def client(handler: Callable[[httpx2.Request], httpx2.Response]) -> Client:
    return Client("http://test", "a-key", transport=httpx2.MockTransport(handler))


def envelope(status: int, message: str, param: str | None = None) -> httpx2.Response:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": "x"}
    return httpx2.Response(status, json={"error": error})


@pytest.mark.parametrize(
    ("message", "param", "shown"),
    [
        ("must be at most 0.5", "length_control.rho", "length_control.rho: must be at most 0.5"),
        ("rho: too large", "rho", "rho: too large"),
        ("the database is away", None, "the database is away"),
    ],
)
def test_an_error_names_its_field_once(message: str, param: str | None, shown: str) -> None:
    with pytest.raises(RequestFailed) as caught:
        client(lambda _: envelope(400, message, param)).start_run({}, key="k")
    assert str(caught.value) == shown


def test_an_error_without_an_envelope_names_the_request() -> None:
    with pytest.raises(RequestFailed, match="HTTP 502 from http://test/models"):
        client(lambda _: httpx2.Response(502, text="bad gateway")).promote("x@v1")


def test_what_is_not_there_is_none() -> None:
    assert client(lambda _: envelope(404, "no model 'x'", "model")).model("x") is None


def test_no_answer_says_how_to_start_a_platform() -> None:
    def refuse(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused", request=request)

    with pytest.raises(CliError, match="forethought up"):
        client(refuse).dataset("x")


def test_a_late_answer_is_not_told_as_a_platform_that_is_away() -> None:
    def stall(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ReadTimeout("timed out", request=request)

    with pytest.raises(PlatformAway, match="did not answer within 30 s") as caught:
        client(stall).prune(30, dry_run=False)
    assert "forethought up" not in str(caught.value)


def test_a_run_is_started_once_for_a_key() -> None:
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(202, json={"id": "1"})

    client(answer).start_run({"name": "x"}, key="only-once")
    assert seen[0].headers["Idempotency-Key"] == "only-once"


def test_iterations_come_in_their_order() -> None:
    rows = [{"number": 2}, {"number": 1}]
    found = client(lambda _: httpx2.Response(200, json={"data": rows})).iterations("run")
    assert [row["number"] for row in found] == [1, 2]


def test_pruning_says_what_it_would_delete(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(json.loads(request.content))
        found = {"iterations": 2, "completions": 72, "checkpoints": 3, "bytes": 3 * 2**20}
        return httpx2.Response(200, json=found)

    monkeypatch.setattr("services.cli.main.connect", lambda _: client(answer))
    for more, words in (["--dry-run"], "would delete"), ([], "deleting"):
        result = CliRunner().invoke(app, ["prune", "--older-than", "30", *more])
        assert result.output == (
            f"{words}: 72 completions and 3 checkpoints (3.0 MiB) of 2 iterations\n"
        )
    assert seen == [
        {"older_than_days": 30.0, "dry_run": True},
        {"older_than_days": 30.0, "dry_run": False},
    ]


def test_waiting_for_a_model_ends_when_it_is_ready() -> None:
    answers = iter(["registering", "ready"])
    model = client(
        lambda _: httpx2.Response(200, json={"status": next(answers), "error": None})
    ).wait_for_model("x")
    assert model["status"] == "ready"


def test_a_model_that_cannot_be_registered_says_why() -> None:
    body = {"status": "failed", "error": {"message": "no config.json in the folder"}}
    with pytest.raises(CliError, match=r"no config\.json in the folder"):
        client(lambda _: httpx2.Response(200, json=body)).wait_for_model("x")
