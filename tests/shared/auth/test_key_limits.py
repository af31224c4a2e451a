"""A key's limits hold in any minute, and what a refusal says is true."""

import uuid
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.auth.key_limits import MINUTE, Limits
from shared.auth.keys import Caller
from shared.errors import TooManyRequests

EIGHTHS = st.integers(0, 320).map(lambda n: n / 8)
"""Of seconds: sums of them are exact."""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def caller(per_minute: int | None = None, at_once: int | None = None) -> Caller:
    return Caller(uuid.uuid4(), frozenset(), per_minute, at_once)


def seconds_to_wait(limits: Limits, asks: Caller) -> int:
    """As it says to who asks too early."""
    try:
        limits._check_minute(asks)
    except TooManyRequests as error:
        return error.retry_after or 0
    return 0


@given(most=st.integers(1, 5), pauses=st.lists(EIGHTHS, max_size=60))
def test_no_minute_has_more_than_its_limit(most: int, pauses: list[float]) -> None:
    clock = Clock()
    limits, asks = Limits(clock), caller(per_minute=most)
    admitted: list[float] = []
    for pause in pauses:
        clock.now += pause
        clock.now += seconds_to_wait(limits, asks)
        with limits.counted(asks):
            admitted.append(clock.now)
    for n, begun in enumerate(admitted):
        assert sum(begun <= other < begun + MINUTE for other in admitted[n:]) <= most


def test_requests_at_once_are_bounded_for_each_key_alone() -> None:
    limits, asks = Limits(), caller(at_once=2)
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(limits.counted(asks))
        with pytest.raises(TooManyRequests, match="2 requests at once"), limits.counted(asks):
            pass
        with limits.counted(caller(at_once=1)):
            pass
    with limits.counted(asks):
        pass


def test_a_request_that_is_refused_or_fails_holds_no_place() -> None:
    limits, asks = Limits(Clock()), caller(per_minute=1, at_once=1)
    with pytest.raises(ZeroDivisionError), limits.counted(asks):
        raise ZeroDivisionError
    for _ in range(3):
        with pytest.raises(TooManyRequests, match="a minute"), limits.counted(asks):
            pass


def test_without_limits_nothing_is_refused_or_kept() -> None:
    limits, asks = Limits(), caller()
    with ExitStack() as held:
        for _ in range(1000):
            held.enter_context(limits.counted(asks))
    assert not limits._begun
