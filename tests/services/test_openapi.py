"""Every service against its own OpenAPI description: whatever it takes, it answers as it says."""

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import Engine

from services.chat import serving as cache
from services.coordinator.app import app as coordinator
from services.generate.app import app as generate
from services.judge.app import app as judge
from services.train.app import app as train
from shared.auth.scopes import OPEN
from shared.db.engine import transaction
from shared.settings import get_settings
from tests.support import factories, tiny_model
from tests.support.access import HEADERS
from tests.support.scripted_engine import ScriptedEngine, running, serving
from tests.support.waiting import until

APPS = {"generate": generate, "judge": judge, "train": train, "coordinator": coordinator}
EXAMPLES = 25
pytestmark = pytest.mark.slow
Test = Callable[[Any, dict[str, str]], None]
CHECKS: list[CheckFunction] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
some = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.fixture(scope="module")
def urls(
    engine: Engine, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Addresses of the four services and of an engine that serves a model to chat."""
    tiny = tiny_model.write(tmp_path_factory.mktemp("tiny"))
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        urls = {"engine": stack.enter_context(running(ScriptedEngine(tiny, lambda *_: "42")))}
        for name in ("generate", "judge", "train"):
            urls[name] = stack.enter_context(serving(APPS[name]))
            patch.setenv(f"FORETHOUGHT_{name.upper()}_URL", urls[name])
        get_settings.cache_clear()
        patch.setattr(cache, "POLL_INTERVAL_S", 0.05)
        urls["coordinator"] = stack.enter_context(serving(coordinator))
        yield urls
    get_settings.cache_clear()


@pytest.fixture(autouse=True)
def served(urls: dict[str, str], clean_database: Engine) -> None:
    """A model to chat with; what a service accepted is not for another test to find."""
    with transaction() as session:
        id_ = factories.served(session, urls["engine"]).id
    until(lambda: id_ in {model.id for model in cache.CACHE.models.values()}, "it serves")


def examples_of(app: Any) -> Callable[[Test], Test]:
    """Runs a test on requests that the app's description allows, and on some that it does not."""
    schema = schemathesis.openapi.from_dict(app.openapi())

    def decorated(test: Test) -> Test:
        ours: Test = schema.parametrize()(some(test))
        return ours

    return decorated


@examples_of(generate)
def test_generate(case: Any, urls: dict[str, str]) -> None:
    case.call_and_validate(base_url=urls["generate"], headers=HEADERS, checks=CHECKS)


@examples_of(judge)
def test_judge(case: Any, urls: dict[str, str]) -> None:
    case.call_and_validate(base_url=urls["judge"], headers=HEADERS, checks=CHECKS)


@examples_of(train)
def test_train(case: Any, urls: dict[str, str]) -> None:
    case.call_and_validate(base_url=urls["train"], headers=HEADERS, checks=CHECKS)


@examples_of(coordinator)
def test_coordinator(case: Any, urls: dict[str, str]) -> None:
    case.call_and_validate(base_url=urls["coordinator"], headers=HEADERS, checks=CHECKS)


@pytest.mark.parametrize("app", APPS.values(), ids=APPS)
def test_errors_are_described_as_they_come(app: Any) -> None:
    """FastAPI would promise a 422 in a shape of its own."""
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            assert "422" not in operation["responses"], f"{method} {path}"


@pytest.mark.parametrize("name", APPS)
def test_a_query_field_that_is_not_described_is_named(name: str, urls: dict[str, str]) -> None:
    """OpenAI's clients may send what is not known here yet; whoever probes, anything."""
    with httpx2.Client(base_url=urls[name], headers=HEADERS, params={"limt": 5}) as client:
        for path, methods in APPS[name].openapi()["paths"].items():
            for method in methods:
                answer = client.request(method, path.format_map(defaultdict(uuid.uuid4)))
                if path.startswith("/v1/") or path in OPEN:
                    assert "limt" not in answer.text, path
                    continue
                error = answer.json()["error"]
                found = (answer.status_code, error["param"], error["code"])
                assert found == (400, "limt", "unknown_field"), f"{method} {path}"
