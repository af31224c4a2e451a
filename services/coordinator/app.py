"""The coordinator: iterations, datasets, models by way of train, keys, and the public chat."""

from prometheus_client import REGISTRY

from services.coordinator import (
    answers,
    audit_route,
    datasets,
    event_stream,
    iterations,
    keys,
    manifest,
    models,
    prune,
    results,
)
from services.coordinator.chat import routes as chat
from services.coordinator.record_metrics import Record
from services.coordinator.report import routes as reports
from shared.web.app import create_app

REGISTRY.register(Record())
app = create_app(
    "coordinator",
    iterations.router,
    results.router,
    answers.router,
    reports.router,
    manifest.router,
    event_stream.router,
    datasets.router,
    models.router,
    prune.router,
    keys.router,
    audit_route.router,
    chat.router,
    lifespan=chat.lifespan,
    uploads=[datasets.UPLOAD],
)
