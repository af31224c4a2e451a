"""The coordinator: iterations, datasets, models by way of train, keys, and the public chat."""

from prometheus_client import REGISTRY

from services.chat import routes as chat
from services.coordinator import models_proxy as models
from services.coordinator.datasets import routes as datasets
from services.coordinator.iterations import events, manifest
from services.coordinator.iterations import outputs as results
from services.coordinator.iterations import routes as iterations
from services.coordinator.iterations import validation_outputs as answers
from services.coordinator.keys import audit as audit_route
from services.coordinator.keys import routes as keys
from services.coordinator.operations import prune
from services.coordinator.operations.metrics import Record
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
    events.router,
    datasets.router,
    models.router,
    prune.router,
    keys.router,
    audit_route.router,
    chat.router,
    lifespan=chat.lifespan,
    uploads=[datasets.UPLOAD],
)
