"""Exports traces by OTLP, of iterations that have ended. It needs the extra `otel`.

A trace's id is its iteration's, and its spans have the same ids each time: an iteration that was
resumed is exported again, as the same trace made longer. OpenTelemetry's own variables say where
to and how.
"""

import logging
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from sqlalchemy import select, update
from sqlalchemy.exc import DBAPIError

from services.coordinator.operations.trace import ROOT, Span, spans
from shared.db.engine import transaction
from shared.db.tables import UNFINISHED, Iteration, Job, JobKind

logger = logging.getLogger(__name__)
POLL_INTERVAL_S = 5.0
GIVE_UP_AFTER = timedelta(hours=1)
"""A collector that is away for longer misses the trace; one that is new is told no history."""
AT_ONCE = 10


def keep_exporting(stop: threading.Event) -> None:
    exporter = OTLPSpanExporter()
    while not stop.wait(POLL_INTERVAL_S):
        try:
            export_ended(exporter)
        except DBAPIError as error:
            logger.warning("database away: %s", type(error.orig).__name__)
        except Exception:
            logger.exception("traces could not be exported; looking again")


def export_ended(exporter: SpanExporter) -> None:
    """Each is taken by one loop. One that the collector does not take is given back; one whose loop
    dies meanwhile is lost, for it would hold a lock on the iteration otherwise."""
    for iteration_id in _take():
        with _given_back_unless_done(iteration_id):
            with transaction() as session:
                made = spans(session, session.get_one(Iteration, iteration_id))
            if exporter.export(as_otel(iteration_id, made)) is not SpanExportResult.SUCCESS:
                raise ConnectionError("the collector did not take the trace")


def _take() -> list[uuid.UUID]:
    unfinished = select(Job.id).where(
        Job.iteration_id == Iteration.id, Job.status.in_(UNFINISHED), Job.kind != JobKind.prune
    )
    due = (
        select(Iteration.id)
        .where(
            Iteration.finished_at > datetime.now(UTC) - GIVE_UP_AFTER,
            Iteration.traced_until.is_distinct_from(Iteration.finished_at),
            ~unfinished.exists(),
        )
        .order_by(Iteration.finished_at)
        .limit(AT_ONCE)
        .with_for_update(skip_locked=True, key_share=True)
    )
    taken = (
        update(Iteration)
        .where(Iteration.id.in_(due))
        .values(traced_until=Iteration.finished_at)
        .returning(Iteration.id)
        .execution_options(synchronize_session=False)
    )
    with transaction() as session:
        return list(session.scalars(taken))


@contextmanager
def _given_back_unless_done(iteration_id: uuid.UUID) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        logger.warning("trace not exported: %s", type(error).__name__)
        with transaction() as session:
            session.get_one(Iteration, iteration_id).traced_until = None


def as_otel(iteration_id: uuid.UUID, made: list[Span]) -> list[ReadableSpan]:
    """With the times of the rows; OpenTelemetry's own tracer would take the present."""
    resource = Resource.create({SERVICE_NAME: "forethought"})
    return [
        ReadableSpan(
            name=span.name,
            context=_context(iteration_id, span.key),
            parent=None if span.parent is None else _context(iteration_id, span.parent),
            resource=resource,
            attributes=span.attributes,
            kind=SpanKind.SERVER if span.key == ROOT else SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(),
            start_time=_nanoseconds(span.start),
            # Clocks of machines differ.
            end_time=_nanoseconds(max(span.start, span.end)),
        )
        for span in made
    ]


def _context(iteration_id: uuid.UUID, key: str) -> SpanContext:
    span_id = int.from_bytes(uuid.uuid5(iteration_id, key).bytes[:8])
    return SpanContext(iteration_id.int, span_id, False, TraceFlags(TraceFlags.SAMPLED))


def _nanoseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1e6) * 1000
