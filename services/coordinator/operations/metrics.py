"""Figures of the record for Prometheus, read from Postgres when the coordinator is asked for them.

Each coordinator shows the same ones, whoever did the work: take their `max`, never their sum. What
is under way is counted by its rows; what has ended, in counters that shards add to as they end.
"""

import threading
import time
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import case, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, aliased

from shared.db.engine import failfast_engine
from shared.db.tables import UNFINISHED, Iteration, Job, JobKind, Shard, Status

AGE_SECONDS = 5.0
"""Figures are at most so old: however often they are asked for, the database is not."""
SHARD_STATES = ("waiting", "queued", "running")


class Record(Collector):
    """While Postgres is away its figures are left out, and `forethought_record_up` is 0."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read_at = -AGE_SECONDS
        self._figures: list[Metric] = []

    def describe(self) -> Iterator[Metric]:
        """Without values, for which the database would be asked."""
        yield from (_up(True), _iterations({}), _shards({}), _leases_lost({}), *_jobs([]))

    def collect(self) -> list[Metric]:
        with self._lock:
            if time.monotonic() - self._read_at >= AGE_SECONDS:
                self._figures = _read()
                self._read_at = time.monotonic()
            return self._figures


def _read() -> list[Metric]:
    try:
        with Session(failfast_engine()) as session:
            return [_up(True), *figures(session)]
    except DBAPIError:
        return [_up(False)]


def figures(session: Session) -> list[Metric]:
    """Read from small tables, and from the shards that are not done."""
    iterations = select(Iteration.status, func.count()).group_by(Iteration.status)
    counters = [func.sum(c) for c in (Job.shards_done, Job.shard_seconds, Job.tokens)]
    jobs = select(Job.kind, Job.status, func.count(), *counters).group_by(Job.kind, Job.status)
    before = aliased(Shard)
    state = case(
        (Shard.status == Status.running, "running"),
        (before.status != Status.succeeded, "waiting"),
        else_="queued",
    )
    of_job = select(Job.kind, state, func.count()).join(Shard, Shard.job_id == Job.id)
    shards = (
        of_job.outerjoin(before, before.id == Shard.after_shard_id)
        .where(Job.status.in_(UNFINISHED), Shard.status.in_(UNFINISHED))
        .group_by(Job.kind, state)
    )
    lost = select(Job.kind, func.sum(Shard.leases_lost)).join(Shard, Shard.job_id == Job.id)
    lost = lost.where(Shard.leases_lost > 0).group_by(Job.kind)
    return [
        _iterations(dict(session.execute(iterations).all())),
        _shards({(kind, state): n for kind, state, n in session.execute(shards)}),
        _leases_lost(dict(session.execute(lost).all())),
        *_jobs(tuple(row) for row in session.execute(jobs)),
    ]


# --- families: each label's values are few and known, and shown from 0 on -------------------------


def _up(up: bool) -> Metric:
    says = "Whether Postgres gave the figures of the record"
    return GaugeMetricFamily("forethought_record_up", says, float(up))


def _iterations(counts: dict[Status, int]) -> Metric:
    family = GaugeMetricFamily("forethought_iterations", "Iterations", labels=["status"])
    for status in Status:
        family.add_metric([status], counts.get(status, 0))
    return family


def _shards(counts: dict[tuple[JobKind, str], int]) -> Metric:
    says = "Shards to be done: waiting for another, queued for a worker, or running"
    family = GaugeMetricFamily("forethought_shards", says, labels=["kind", "status"])
    for kind in JobKind:
        for state in SHARD_STATES:
            family.add_metric([kind, state], counts.get((kind, state), 0))
    return family


def _leases_lost(counts: dict[JobKind, int]) -> Metric:
    says = "Shards taken away from a worker that was not heard of"
    family = CounterMetricFamily("forethought_leases_lost", says, labels=["kind"])
    for kind in JobKind:
        family.add_metric([kind], counts.get(kind, 0))
    return family


def _jobs(rows: Iterable[tuple[JobKind, Status, int, int, float, int]]) -> list[Metric]:
    jobs = GaugeMetricFamily("forethought_jobs", "Jobs", labels=["kind", "status"])
    seconds = SummaryMetricFamily(
        "forethought_shard_seconds", "From claim to commit, of shards done", labels=["kind"]
    )
    says = "Tokens that models have written, or been trained on, in shards done"
    tokens = CounterMetricFamily("forethought_tokens", says, labels=["kind"])
    found = {(kind, status): rest for kind, status, *rest in rows}
    for kind in JobKind:
        of_kind = [found.get((kind, status), [0, 0, 0.0, 0]) for status in Status]
        for status, (count, *_) in zip(Status, of_kind, strict=True):
            jobs.add_metric([kind, status], count)
        _, done, took, made = (float(sum(column)) for column in zip(*of_kind, strict=True))
        seconds.add_metric([kind], count_value=done, sum_value=took)  # type: ignore[arg-type]
        tokens.add_metric([kind], made)
    return [jobs, seconds, tokens]
