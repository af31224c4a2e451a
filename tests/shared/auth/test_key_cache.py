"""How old what is known of keys may be, and how seldom the database is asked."""

import asyncio
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from sqlalchemy.exc import OperationalError

from shared.auth import key_cache
from shared.auth.key_cache import AWAY_SECONDS, MAX_AGE_SECONDS, KeyCache
from shared.auth.keys import Caller, digest
from shared.errors import Unavailable

KEY, OTHER = b"a key", b"another key"
CALLER = Caller(None, frozenset())


class World:
    """A clock that sleeps in no time, and a database of keys that counts how often it is read."""

    def __init__(self) -> None:
        self.now, self.looks, self.away = 1000.0, 0, False
        self.keys = {digest(KEY): CALLER}
        self.cache = KeyCache()

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def read(self) -> dict[str, Caller]:
        self.looks += 1
        if self.away:
            raise OperationalError("", None, Exception())
        return dict(self.keys)

    def find(self, key: bytes) -> Caller | None:
        found = asyncio.run(self.cache.find(key))
        self.cache._looker.submit(lambda: None).result()  # a look aside has ended
        return found


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World()
    clock = SimpleNamespace(monotonic=lambda: world.now, sleep=world.sleep)
    monkeypatch.setattr(key_cache, "time", clock)
    monkeypatch.setattr(key_cache, "_read", world.read)
    yield world
    world.cache._looker.shutdown()


def test_a_known_key_asks_nothing_of_the_database(world: World) -> None:
    for _ in range(1000):
        assert world.find(KEY) is CALLER
    assert world.looks == 1


def test_a_new_key_works_at_once(world: World) -> None:
    world.find(KEY)
    assert world.find(OTHER) is None
    world.keys[digest(OTHER)] = CALLER
    assert world.find(OTHER) is CALLER


def test_a_revoked_key_works_no_longer_than_its_age(world: World) -> None:
    world.find(KEY)
    world.keys.clear()
    world.now += MAX_AGE_SECONDS
    assert world.find(KEY) is None


def test_under_steady_use_it_is_found_out_sooner_and_nobody_waits(world: World) -> None:
    world.find(KEY)
    world.keys.clear()
    world.now += 1.1
    assert world.find(KEY) is CALLER, "by what was known, while another look is made aside"
    assert world.find(KEY) is None


def test_unknown_keys_have_five_looks_a_second_made_at_most(world: World) -> None:
    began = world.now
    for n in range(200):
        assert world.find(b"guess %d" % n) is None
    assert world.looks <= (world.now - began) * 5 + 2


def test_unknown_keys_that_come_together_share_a_look(world: World) -> None:
    async def guess() -> None:
        await asyncio.gather(*(world.cache.find(b"guess %d" % n) for n in range(100)))

    asyncio.run(guess())
    assert world.looks <= 2


def test_what_was_known_holds_while_the_database_is_away(world: World) -> None:
    world.find(KEY)
    world.away = True
    for _ in range(int(AWAY_SECONDS / 10) - 1):
        world.now += 10
        assert world.find(KEY) is CALLER
    with pytest.raises(Unavailable, match="database is away"):
        world.find(OTHER)
    world.now += 20
    with pytest.raises(Unavailable):
        world.find(KEY)
    world.away = False
    world.now += 1
    assert world.find(KEY) is CALLER


def test_while_looks_fail_not_every_request_has_one_made(world: World) -> None:
    world.find(KEY)
    world.away, world.looks = True, 0
    world.now += MAX_AGE_SECONDS
    for _ in range(100):
        world.find(KEY)
    assert world.looks <= 2


def test_a_database_that_hangs_holds_up_nobody_who_is_known(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.find(KEY)
    world.now += 1.1
    go_on = threading.Event()
    monkeypatch.setattr(key_cache, "_read", lambda: go_on.wait(10) and world.read())
    began = time.monotonic()
    for _ in range(10):
        assert asyncio.run(world.cache.find(KEY)) is CALLER
    assert time.monotonic() - began < 1
    go_on.set()


def test_a_look_that_hangs_lets_known_keys_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, free = KeyCache(), threading.Event()
    cache._callers, cache._looked_at = {digest(KEY): CALLER}, time.monotonic() - 2 * MAX_AGE_SECONDS
    monkeypatch.setattr(key_cache, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(key_cache, "_read", lambda: free.wait() and {})
    try:
        for _ in range(3):
            assert asyncio.run(asyncio.wait_for(cache.find(KEY), 2)) is CALLER
        with pytest.raises(Unavailable):
            asyncio.run(asyncio.wait_for(cache.find(OTHER), 2))
    finally:
        free.set()
        cache._looker.shutdown()
