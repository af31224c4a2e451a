"""An engine that is slow is told from one that hangs."""

import time
from collections.abc import Callable, Iterator
from itertools import count, repeat
from types import SimpleNamespace
from typing import cast

import pytest

from workers.engine import watch
from workers.engine.admin import EngineError
from workers.engine.engine import ManagedEngine
from workers.engine.watch import engine_watched


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_INTERVAL_S", 0.1)


Check = Callable[[], None]


def hangs(check: Check, tokens: Iterator[int]) -> bool:
    """Whether a second shows an engine of these answers and counts to hang."""
    engine = SimpleNamespace(check=lambda _: check(), tokens_done=lambda: next(tokens))
    with engine_watched(cast(ManagedEngine, engine)) as hung:
        return hung.wait(1.0)


def fails() -> None:
    raise EngineError("no token")


def every_other_time() -> Check:
    asked = count()

    def check() -> None:
        if next(asked) % 2:
            fails()

    return check


def test_only_an_engine_that_fails_twice_in_a_row_and_writes_nothing_hangs() -> None:
    assert hangs(fails, repeat(7))
    assert not hangs(every_other_time(), repeat(7))
    assert not hangs(fails, count())
    assert not hangs(lambda: time.sleep(0.4), repeat(7))
