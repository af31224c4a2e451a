"""Traces of iterations that ended, as a collector receives them."""

import sys
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.proto.trace.v1.trace_pb2 import Status as SpanStatus
from sqlalchemy import Engine, update
from sqlalchemy.orm import Session

from services.coordinator import loop
from services.coordinator.iterations import events
from services.coordinator.iterations.state import job_id
from services.coordinator.operations import trace_export
from services.coordinator.operations.trace_export import GIVE_UP_AFTER, export_ended
from shared.db.engine import transaction
from shared.db.tables import Iteration, JobKind, Status
from shared.jobs.job import NewShard, cancel_job, submit_job
from shared.jobs.shards import claim_shard, finish_shard
from tests.support import evaluated_runs, factories
from tests.support.waiting import until

SECRET = "SECRET"


class Collector:
    """Keeps what is posted to it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.status = 200
        kept = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                kept.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(kept.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)

    def spans(self) -> list[Span]:
        """Of the last request."""
        request = ExportTraceServiceRequest.FromString(self.bodies[-1])
        (resource,) = request.resource_spans
        (scope,) = resource.scope_spans
        return list(scope.spans)


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = Thread(target=collector.server.serve_forever)
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


@pytest.fixture
def exporter(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[OTLPSpanExporter]:
    address = f"http://127.0.0.1:{collector.server.server_port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    exporter = OTLPSpanExporter()
    yield exporter
    exporter.shutdown()  # type: ignore[no-untyped-call]


def run_job(session: Session, iteration: Iteration, kind: JobKind, step: str, shards: int) -> None:
    job, _ = submit_job(
        session,
        kind,
        {"prompt": SECRET},
        [NewShard({"prompt": SECRET})] * shards,
        job_id=job_id(iteration.id, step),
        iteration_id=iteration.id,
        step=step,
    )
    for n in range(shards):
        worker = f"host:{n % 2}"
        held = claim_shard(session, job.id, worker=worker, lease_seconds=30, max_attempts=3)
        assert held is not None
        finish_shard(session, held, {"tokens": 10})


@pytest.fixture
def iteration(clean_database: Engine) -> Iteration:
    """Has ended with a model: four shards by two workers, a training, and what validates it."""
    with transaction() as session:
        seed = factories.model(session)
        dataset = factories.dataset(session)
        row = evaluated_runs.running(session, dataset, seed)
        events.record(session, row.id, "status", "queued")
        events.record(session, row.id, "stage", "generate")
        run_job(session, row, JobKind.generate, "generate", 4)
        run_job(session, row, JobKind.judge, f"evaluate-judge:{seed.id}", 1)
        events.record(session, row.id, "stage", "train")
        run_job(session, row, JobKind.train, "train", 1)
        events.record(session, row.id, "stage", "validate")
        run_job(session, row, JobKind.judge, f"evaluate-judge:{uuid.uuid4()}", 1)
        events.record(session, row.id, "stage", "done")
    with transaction() as session:
        end(session, row, Status.succeeded)
    return row


def end(session: Session, row: Iteration, status: Status) -> None:
    row = session.get_one(Iteration, row.id)
    row.status, row.finished_at = status, datetime.now(UTC)
    events.record(session, row.id, "status", status)


def tree(spans: list[Span]) -> dict[str, list[str]]:
    """Names of spans by the path of names above them."""
    by_id = {span.span_id: span for span in spans}

    def path(span: Span) -> str:
        above = by_id.get(span.parent_span_id)
        return span.name if above is None else f"{path(above)} > {span.name}"

    found: dict[str, list[str]] = {}
    for span in spans:
        above, _, name = path(span).rpartition(" > ")
        found.setdefault(above, []).append(name)
    return found


def test_it_goes_from_the_request_to_the_model(
    iteration: Iteration, collector: Collector, exporter: OTLPSpanExporter
) -> None:
    export_ended(exporter)
    spans, root = collector.spans(), "POST /iterations"
    assert {span.trace_id for span in spans} == {iteration.id.bytes}
    assert tree(spans) == {
        "": [root],
        root: ["generate", "train", "validate", "done"],
        f"{root} > generate": ["generate", "evaluate-judge"],
        f"{root} > generate > generate": ["shards", "shards"],
        f"{root} > generate > evaluate-judge": ["shards"],
        f"{root} > train": ["train"],
        f"{root} > train > train": ["shards"],
        f"{root} > validate": ["evaluate-judge"],
        f"{root} > validate > evaluate-judge": ["shards"],
    }
    assert all(0 < span.start_time_unix_nano <= span.end_time_unix_nano for span in spans)
    assert {span.status.code for span in spans} == {SpanStatus.STATUS_CODE_UNSET}
    attributes = {a.key: a.value for span in spans for a in span.attributes}
    assert attributes["forethought.iteration.status"].string_value == "succeeded"


def test_nothing_that_was_said_is_in_it(
    iteration: Iteration, collector: Collector, exporter: OTLPSpanExporter
) -> None:
    with transaction() as session:
        row = session.get_one(Iteration, iteration.id)
        row.status, row.error = Status.failed, {"code": "job_failed", "message": SECRET}
    export_ended(exporter)
    assert SECRET.encode() not in collector.bodies[-1]
    assert b"Prompt 0?" not in collector.bodies[-1]
    (root, *_) = collector.spans()
    assert (root.status.code, root.status.message) == (SpanStatus.STATUS_CODE_ERROR, "job_failed")


def test_it_is_exported_once_and_anew_when_it_was_resumed(
    iteration: Iteration, collector: Collector, exporter: OTLPSpanExporter
) -> None:
    export_ended(exporter)
    export_ended(exporter)
    assert len(collector.bodies) == 1
    first = {span.span_id for span in collector.spans()}
    with transaction() as session:
        events.record(session, iteration.id, "status", "resumed")
        session.get_one(Iteration, iteration.id).finished_at = None
    export_ended(exporter)
    assert len(collector.bodies) == 1
    with transaction() as session:
        end(session, iteration, Status.failed)
    export_ended(exporter)
    again = collector.spans()
    assert {span.span_id for span in again} > first
    assert [s.name for s in again if s.span_id not in first] == ["done"]


def test_it_waits_for_the_jobs_of_the_iteration(
    iteration: Iteration, collector: Collector, exporter: OTLPSpanExporter
) -> None:
    with transaction() as session:
        late, _ = submit_job(
            session, JobKind.judge, {}, [NewShard({})], job_id=uuid.uuid4(),
            iteration_id=iteration.id,
        )  # fmt: skip
    export_ended(exporter)
    assert collector.bodies == []
    with transaction() as session:
        cancel_job(session, late.id)
    export_ended(exporter)
    assert "judge" in {span.name for span in collector.spans()}


def test_a_collector_that_takes_nothing_is_asked_again(
    iteration: Iteration, collector: Collector, exporter: OTLPSpanExporter
) -> None:
    collector.status = 400
    export_ended(exporter)
    collector.status = 200
    export_ended(exporter)
    export_ended(exporter)
    assert len(collector.bodies) == 2


def test_a_collector_is_told_no_history(
    iteration: Iteration, collector: Collector, exporter: OTLPSpanExporter
) -> None:
    before = datetime.now(UTC) - GIVE_UP_AFTER - timedelta(minutes=1)
    with transaction() as session:
        session.execute(update(Iteration).values(finished_at=before))
    export_ended(exporter)
    assert collector.bodies == []


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    """Of the loop's threads, none of which is left behind."""
    before, stop = set(threading.enumerate()), threading.Event()
    yield stop
    stop.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)


def test_the_loop_exports_where_an_address_is_set(
    iteration: Iteration,
    collector: Collector,
    stop: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trace_export, "POLL_INTERVAL_S", 0.05)
    monkeypatch.delenv(loop.COLLECTOR, raising=False)
    count = threading.active_count()
    loop.trace(stop)
    assert threading.active_count() == count
    monkeypatch.setenv(loop.COLLECTOR, f"http://127.0.0.1:{collector.server.server_port}")
    loop.trace(stop)
    until(lambda: collector.bodies, "the trace is exported")


def test_without_the_extra_the_loop_says_so_and_goes_on(
    stop: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(loop.COLLECTOR, "http://127.0.0.1:1")
    monkeypatch.delattr("services.coordinator.operations.trace_export")
    monkeypatch.setitem(sys.modules, "services.coordinator.operations.trace_export", None)
    loop.trace(stop)
    assert "forethought[otel]" in caplog.text
