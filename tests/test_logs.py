"""What a log line says of where it belongs, read as it is written."""

import argparse
import asyncio
import contextvars
import gc
import io
import json
import logging
import subprocess
import sys
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine

from services.coordinator.app import app as coordinator
from services.judge.app import app as judge
from shared.db.engine import transaction
from shared.db.tables import JobKind
from shared.web.job_routes import find_job
from tests.support import access, factories
from workers import runtime, stage, stage_process, tasks

ITEM = {"instruction": "Say a", "response": "a"}
"""Without a check, which the verifier refuses."""


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def judge_job(iteration_id: uuid.UUID) -> str:
    job_id = str(uuid.uuid4())
    answer = access.client(judge).put(
        f"/jobs/{job_id}", params={"iteration_id": str(iteration_id)}, json={"items": [ITEM]}
    )
    assert answer.status_code == 202, answer.text
    return job_id


def test_a_stage_names_iteration_job_shard_and_attempt(
    clean_database: Engine, redis_url: str
) -> None:
    iteration_id = uuid.uuid4()
    job_id = judge_job(iteration_id)
    stage = subprocess.run(
        [sys.executable, "-m", "workers.judge.stage", "--job", job_id],
        capture_output=True,
        text=True,
    )
    [line] = [line for line in lines(stage.stderr) if line["event"] == "shard failed"]
    bound = {"iteration": str(iteration_id), "job": job_id, "shard": 0, "attempt": 1}
    assert line.items() >= bound.items()
    assert "Say a" not in stage.stderr


def test_the_runtime_names_iteration_and_job(
    clean_database: Engine, redis_url: str, written: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stage_process.STAGES, JobKind.judge, "this")
    iteration_id = uuid.uuid4()
    job_id = judge_job(iteration_id)
    runtime.Runtime().run(uuid.UUID(job_id))
    [line] = [line for line in lines(written.getvalue()) if line["event"] == "stage started"]
    assert line.items() >= {"iteration": str(iteration_id), "job": job_id}.items()


def test_a_request_names_the_iteration_or_job_of_its_path(
    clean_database: Engine, redis_url: str, written: io.StringIO
) -> None:
    with transaction() as session:
        factories.model(session)
        factories.dataset(session)
    client = access.client(coordinator)
    body = {"name": "thinker", "base_model": "seed", "dataset": "prompts"}
    iteration_id = client.post("/iterations", json=body).json()["id"]
    client.get(f"/iterations/{iteration_id}")
    job_id = judge_job(uuid.UUID(iteration_id))
    access.client(judge).get(f"/jobs/{job_id}")
    named = {line["route"]: line for line in lines(written.getvalue()) if "route" in line}
    assert named["/iterations/{iteration_id}"]["iteration"] == iteration_id
    assert named["/jobs/{job_id}"]["job"] == job_id


def test_no_line_holds_a_key_a_prompt_or_a_thought(
    clean_database: Engine, redis_url: str, written: io.StringIO
) -> None:
    """Also where a request is refused for what it holds."""
    with transaction() as session:
        factories.model(session)
    logging.getLogger().setLevel(logging.DEBUG)
    mine, bad = access.made_key(), "ftk_SECRET"
    prompts = [{"text": "SECRET prompt"}]
    run = {"name": "thinker", "base_model": "seed", "prompts": prompts}
    answers = [
        access.client(app, key).post(path, json=body)
        for key in (mine, bad)
        for app, path, body in (
            (coordinator, "/iterations", run),
            (coordinator, "/iterations", run | {"SECRET": "SECRET"}),
            (coordinator, "/keys", {"name": "SECRET", "scopes": ["SECRET"]}),
            (coordinator, "/keys", {"name": "someone", "scopes": ["chat"]}),
            (coordinator, "/v1/chat/completions", {"model": "SECRET", "messages": "SECRET"}),
            (coordinator, "/datasets", {"name": "x", "path": "SECRET"}),
            (coordinator, "/SECRET", {}),
            (judge, "/judge", {"items": [ITEM | {"response": "SECRET thought"}]}),
        )
    ]
    assert {answer.status_code for answer in answers} == {202, 400, 201, 404, 401}
    made = next(answer.json()["key"] for answer in answers if answer.status_code == 201)
    text = written.getvalue()
    assert len(lines(text)) >= len(answers)
    for secret in ("SECRET", mine, made, access.SERVICE_KEY):
        assert secret not in text
    keys = {line.get("key_id") for line in lines(text) if "route" in line}
    assert len(keys) == 2, "whose requests these are, by the key's id"


def test_what_a_route_has_found_is_in_its_later_lines(
    clean_database: Engine, redis_url: str, written: io.StringIO
) -> None:
    iteration_id = uuid.uuid4()
    job_id = judge_job(iteration_id)

    def route() -> None:
        with transaction() as session:
            find_job(session, uuid.UUID(job_id), (JobKind.judge,))
        logging.getLogger().info("inside")

    contextvars.copy_context().run(route)
    [line] = [line for line in lines(written.getvalue()) if line["event"] == "inside"]
    assert line.items() >= {"iteration": str(iteration_id), "job": job_id}.items()


def fail() -> None:
    raise ValueError("SECRET")


def only_error(written: io.StringIO) -> dict[str, Any]:
    """The one line that tells of `fail`, which quotes nothing."""
    assert "SECRET" not in written.getvalue()
    [line] = [line for line in lines(written.getvalue()) if "exception" in line]
    assert line["exception"].splitlines()[-1] == "ValueError"
    assert "in fail" in line["exception"]
    return line


def test_a_stage_that_dies_of_an_error_says_where(
    clean_database: Engine,
    redis_url: str,
    written: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("shared.log.configure", lambda _: None)  # `written` has done that
    iteration_id = uuid.uuid4()
    job_id = judge_job(iteration_id)
    with pytest.raises(SystemExit, match="1"):
        stage.start(argparse.Namespace(job=uuid.UUID(job_id), worker="one"), lambda _: fail())
    bound = {"iteration": str(iteration_id), "job": job_id, "worker": "one"}
    assert only_error(written).items() >= bound.items()


def test_a_task_that_fails_names_its_job(
    written: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "runtime", lambda: SimpleNamespace(run=lambda *_: fail()))
    job_id = str(uuid.uuid4())
    assert tasks.run.apply(args=("judge", job_id)).failed()
    assert only_error(written)["job"] == job_id


def test_an_error_that_nobody_waits_for_is_not_quoted(written: io.StringIO) -> None:
    async def forget() -> None:
        asyncio.get_running_loop().create_task(asyncio.to_thread(fail))
        await asyncio.sleep(0.2)

    asyncio.run(forget())
    gc.collect()
    assert only_error(written)["event"] == "Task exception was never retrieved"
