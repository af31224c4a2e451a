import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from services.coordinator.app import app
from shared.db import transaction
from tests import access, factories


@pytest.fixture
def client(clean_database: Engine, redis_url: str) -> TestClient:
    """Of the coordinator, which knows a model and a dataset."""
    with transaction() as session:
        factories.model(session)
        factories.dataset(session, train=6, validation=2)
    return access.client(app)
