from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from services.coordinator.app import app
from services.coordinator.job_services import Services
from services.train.app import app as train
from shared.db.engine import transaction
from shared.web.client import ServiceClient
from tests.support import access, factories
from tests.support.scripted_engine import serving


@pytest.fixture
def client(clean_database: Engine, redis_url: str) -> TestClient:
    """Of the coordinator, which knows a model and a dataset."""
    with transaction() as session:
        factories.model(session)
        factories.dataset(session, train=6, validation=2)
    return access.client(app)


@pytest.fixture
def train_service(
    engine: Engine, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """One that runs, for the coordinator's routes of models."""
    with serving(train) as url:
        there = ServiceClient(url, access.SERVICE_KEY)
        services = Services(generate=there, judge=there, train=there)
        monkeypatch.setattr(Services, "from_settings", lambda: services)
        yield
        there._http.close()
