"""Messages to a broker that is away."""

import uuid
from typing import Any, NoReturn

import pytest
from kombu.exceptions import OperationalError

from shared.db.tables import JobKind
from shared.jobs import broker


def test_many_messages_to_a_broker_that_is_away_cost_one_time_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> NoReturn:
        tries.append(arguments)
        raise OperationalError("timed out")

    monkeypatch.setattr(broker.celery, "send_task", refuse)
    broker.send([(JobKind.generate, uuid.uuid4()) for _ in range(50)])
    assert len(tries) == 1, f"tried {len(tries)} times"
