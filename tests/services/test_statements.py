"""A list takes few statements, however long its page is."""

import uuid

import pytest
from fastapi import FastAPI
from sqlalchemy import Engine

import services.coordinator.app
import services.generate.app
import services.train.app
from shared.db.engine import transaction
from shared.db.tables import JobKind, Model
from shared.jobs.job import NewShard, submit_job
from tests.support import access, evaluated_runs, factories
from tests.support.statements import counted

MAX_STATEMENTS = 3


@pytest.mark.parametrize(
    ("app", "path"),
    [
        (services.generate.app.app, "/jobs"),
        (services.train.app.app, "/models"),
        (services.coordinator.app.app, "/iterations"),
        (services.coordinator.app.app, "/datasets"),
    ],
    ids=["jobs", "models", "iterations", "datasets"],
)
def test_a_list_takes_few_statements(clean_database: Engine, app: FastAPI, path: str) -> None:
    with transaction() as session:
        for number in range(5):
            job, _ = submit_job(session, JobKind.generate, {}, [NewShard({})], job_id=uuid.uuid4())
            model = Model(name="m", version=number + 1, source="test", lineage={}, job_id=job.id)
            session.add(model)
            session.flush()
            dataset = factories.dataset(session, name=f"prompts-{number}")
            iteration = evaluated_runs.running(session, dataset, model, stage="train")
            job.iteration_id, job.step = iteration.id, "train"
    with counted(clean_database) as statements:
        answer = access.client(app).get(path)
    assert len(answer.json()["data"]) == 5, answer.text
    assert len(statements) <= MAX_STATEMENTS, "\n".join(statements)
