"""The coordinator: iterations, datasets, models by way of train, and the public chat."""

from services.coordinator import datasets, event_stream, iterations, manifest, models, results
from services.coordinator.chat import routes as chat
from shared.app import create_app

app = create_app(
    "coordinator",
    iterations.router,
    results.router,
    manifest.router,
    event_stream.router,
    datasets.router,
    models.router,
    chat.router,
    lifespan=chat.lifespan,
)
