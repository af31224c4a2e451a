"""What a process does about servers that take a connection and never answer."""

import socket
import time
from collections.abc import Iterator

import pytest

from shared import broker
from shared.client import ServiceClient


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=8) as server:
        yield int(server.getsockname()[1])


def test_a_broker_that_never_answers_is_away(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker.celery.conf, "broker_read_url", f"redis://127.0.0.1:{silent}/0")
    started = time.monotonic()
    with pytest.raises(Exception, match=r"(?i)time"):
        broker.ping()
    assert time.monotonic() - started < 6


def test_no_proxy_of_the_environment_sees_the_service_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert ServiceClient("http://generate:8000", "key")._http.trust_env is False
