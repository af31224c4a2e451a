"""Names that would lead elsewhere in a path, wherever a client may give one."""

from typing import Any

import pytest
from sqlalchemy import Engine

import services.coordinator.app
import services.train.app
from shared.db.engine import transaction
from tests.support import access, factories

HOSTILE = ["../up", "a/b", "a\\b", "/etc", ".", "..", ".hidden", "a\n", "a b", "a@v1", "a" * 65, ""]


@pytest.fixture
def model_id(clean_database: Engine, redis_url: str) -> str:
    with transaction() as session:
        factories.dataset(session)
        return str(factories.model(session).id)


def post(app: Any, path: str, **body: Any) -> Any:
    return access.client(app).post(path, **body)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_is_no_name_is_refused(model_id: str, name: str) -> None:
    coordinator, train = services.coordinator.app.app, services.train.app.app
    iteration = {"name": name, "base_model": "seed", "dataset": "prompts"}
    file = {"file": ("a.jsonl", b'{"text": "a"}')}
    for answer in (
        post(train, "/models", json={"name": name, "source": "bundled"}),
        post(train, f"/models/{model_id}/promote", json={"name": name}),
        post(coordinator, "/models", json={"name": name, "source": "bundled"}),
        post(coordinator, "/iterations", json=iteration),
        post(coordinator, "/datasets", json={"name": name, "path": "a.jsonl"}),
        post(coordinator, "/datasets/upload", data={"name": name}, files=file),
    ):
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == "name"
