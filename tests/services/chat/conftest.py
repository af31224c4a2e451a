"""Chat by itself, which serves `demo@v1` from a scripted engine."""

from collections.abc import Iterator

import openai
import pytest
from sqlalchemy import Engine

from services.chat import serving as serving_cache
from services.chat.app import app
from shared.thinking.formats import GENERIC, ThoughtFormat
from tests.services.chat.served import serve
from tests.support import factories, tiny_model
from tests.support.access import SERVICE_KEY
from tests.support.scripted_engine import ScriptedEngine, running, serving


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> ScriptedEngine:
    folder = tiny_model.write(tmp_path_factory.mktemp("tiny"))
    return ScriptedEngine(folder, lambda *_: "", label=factories.WEIGHTS)


@pytest.fixture(scope="module")
def engine_url(scripted: ScriptedEngine) -> Iterator[str]:
    with running(scripted) as url:
        yield url


@pytest.fixture(scope="module")
def url(postgres_url: str, redis_url: str, engine_url: str) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, serving(app) as url:
        patch.setattr(serving_cache, "POLL_INTERVAL_S", 0.05)
        yield url


@pytest.fixture
def fmt() -> ThoughtFormat:
    """Of the served model; a test may override it."""
    return GENERIC


@pytest.fixture
def served(engine_url: str, url: str, clean_database: Engine, fmt: ThoughtFormat) -> str:
    """Chat's address."""
    serve(engine_url, fmt)
    return url


@pytest.fixture
def client(served: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served}/v1", api_key=SERVICE_KEY, max_retries=0) as client:
        yield client
