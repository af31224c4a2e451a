"""The coordinator: iterations, datasets, models by way of train, and the public chat."""

from services.coordinator import (
    answers,
    datasets,
    event_stream,
    iterations,
    manifest,
    models,
    prune,
    results,
)
from services.coordinator.chat import routes as chat
from services.coordinator.report import routes as reports
from shared.app import create_app

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
    chat.router,
    lifespan=chat.lifespan,
    uploads=[datasets.UPLOAD],
)
