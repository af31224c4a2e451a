"""What an iteration's outputs look like to who may read thoughts, and to all others."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, update

import services.generate.app
from services.coordinator.app import app
from services.coordinator.iterations.state import job_id
from services.judge.app import app as judge
from services.train.app import app as train
from shared.auth.scopes import LISTED
from shared.db.engine import transaction
from shared.db.tables import Completion, Iteration, Job, Scope, Status
from shared.settings import get_settings
from shared.thinking.formats import GENERIC
from tests.support import access, factories
from tests.support.past_runs import past_run

SECRET = "SECRET"
THOUGHT = f"{GENERIC.thought_marker} {SECRET} {GENERIC.response_marker}"
RESPONSE = f"Forty {THOUGHT}two."
"""It begins another thought."""
APPS = (app, services.generate.app.app, judge, train)
OUTPUT = f"{THOUGHT} {RESPONSE}"


@pytest.fixture
def iteration_id(
    clean_database: Engine, redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[uuid.UUID]:
    """Of one whose outputs all hold such a response."""
    monkeypatch.setenv("FORETHOUGHT_MODEL_STORE", str(tmp_path))
    get_settings.cache_clear()
    fmt = {"thought_format": GENERIC.model_dump()}
    start = GENERIC.response_start(OUTPUT)
    with transaction() as session:
        factories.model(session)
        [iteration_id] = past_run(session, Status.succeeded)
        session.execute(update(Iteration).values(config=fmt))
        session.execute(update(Job).values(params=fmt))
        session.execute(update(Completion).values(output=OUTPUT, response_start=start))
    yield iteration_id
    get_settings.cache_clear()


def pages(iteration_id: uuid.UUID, *scopes: Scope) -> list[str]:
    """All that lists responses, as text, with a key of these scopes."""
    key = access.made_key(*scopes)
    coordinator, generate = access.client(app, key), access.client(services.generate.app.app, key)
    answers = [
        coordinator.get(f"/iterations/{iteration_id}/pairs"),
        coordinator.get(f"/iterations/{iteration_id}/completions"),
        generate.get(f"/jobs/{job_id(iteration_id, 'generate')}/completions"),
    ]
    assert [len(answer.json()["data"]) for answer in answers] == [1, 4, 4]
    return [answer.text for answer in answers]


def test_a_thought_begun_in_a_response_is_hidden(iteration_id: uuid.UUID) -> None:
    for text in pages(iteration_id, Scope.iterate, Scope.chat, Scope.admin):
        assert SECRET not in text
        assert text.count('"Forty two."') in (2, 4)


@pytest.mark.usefixtures("train_service")
def test_no_route_of_any_service_shows_a_thought(iteration_id: uuid.UUID) -> None:
    """Of all that can be read, with the ids of what holds thoughts."""
    key = access.made_key(Scope.iterate, Scope.chat, Scope.admin)
    with transaction() as session:
        run_id = session.get_one(Iteration, iteration_id).run_id
    ids = {"iteration_id": iteration_id, "run_id": run_id, "reference": "seed", "name": "prompts"}
    shown = set()
    for method, path in LISTED:
        if method != "GET":
            continue
        for step in ("generate", "judge", "train"):
            where = path.format_map({**ids, "job_id": job_id(iteration_id, step)})
            for service in APPS:
                for accept in ("*/*", "text/event-stream"):
                    answer = access.client(service, key).get(where, headers={"accept": accept})
                    assert SECRET not in answer.text, where
                    shown |= {path} if answer.is_success else set()
    events, job, models = "/iterations/{iteration_id}/events", "/jobs/{job_id}", "/models"
    assert {events, job, models, "/iterations/{iteration_id}/pairs", "/audit"} <= shown


def test_the_scope_shows_what_the_judge_saw(iteration_id: uuid.UUID) -> None:
    for text in pages(iteration_id, Scope.iterate, Scope.thoughts):
        assert text.count(f'"{RESPONSE}"') in (2, 4)
