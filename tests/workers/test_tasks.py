"""One worker process has one engine, however its first messages come."""

import threading

from workers import tasks


def test_messages_at_the_same_time_share_a_runtime() -> None:
    tasks._runtime.cache_clear()
    start, seen = threading.Barrier(8), []

    def ask() -> None:
        start.wait()
        seen.append(tasks.runtime())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(runtime) for runtime in seen}) == 1
    tasks.runtime().stop()
    tasks._runtime.cache_clear()
