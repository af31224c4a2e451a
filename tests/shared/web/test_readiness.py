"""`/readyz`, which anybody may ask as often as they like."""

import pytest
from fastapi.testclient import TestClient

from shared.web import app as web


def test_readyz_asks_the_servers_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ask() -> dict[str, str]:
        asked.append(1)
        return {"status": "ok"}

    monkeypatch.setattr(web, "_ask_dependencies", ask)
    client = TestClient(web.create_app("ready"))
    answers = [client.get("/readyz").json() for _ in range(20)]
    assert answers == [{"status": "ok"}] * 20
    assert len(asked) <= 2, f"{len(asked)} of 20 calls asked the database and the broker"
    monkeypatch.setattr(web, "READY_SECONDS", 0.0)
    before = len(asked)
    client.get("/readyz")
    assert len(asked) == before + 1, "an old answer is not given again"
