"""The coordinator: iterations, datasets, models by way of train, and the public chat."""

from services.coordinator import chat, datasets, event_stream, iterations, models, results
from shared.app import create_app

app = create_app(
    "coordinator",
    iterations.router,
    results.router,
    event_stream.router,
    datasets.router,
    models.router,
    chat.router,
    lifespan=chat.lifespan,
)
