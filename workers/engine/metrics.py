"""Prometheus metrics of the process that owns an engine, on a port of its own."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Histogram, start_http_server

from shared.settings import get_settings

STARTS = Counter("forethought_engine_starts_total", "Starts of an engine's server, failed ones too")
SWAPS = Counter("forethought_engine_swaps_total", "Weights given to a running engine", ["outcome"])
for _outcome in ("verified", "failed"):
    SWAPS.labels(_outcome)  # shown from 0 on
SWAP_SECONDS = Histogram(
    "forethought_engine_swap_seconds",
    "From the first probe to the last, of swaps that were verified",
    buckets=(0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300),
)


def serve() -> None:
    """On every interface, where the setting names a port. Raises `OSError` where it is taken."""
    if port := get_settings().metrics_port:
        start_http_server(port)


@contextmanager
def swapping() -> Iterator[None]:
    """Counts the swap that the block makes."""
    started = time.monotonic()
    try:
        yield
    except BaseException:
        SWAPS.labels("failed").inc()
        raise
    SWAPS.labels("verified").inc()
    SWAP_SECONDS.observe(time.monotonic() - started)
