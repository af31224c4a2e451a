"""The judge stage on completions in the database: what each kind is shown, and what is stored."""

import json
import uuid
from collections.abc import Iterator, Mapping

import pytest
from sqlalchemy import select

from shared.db.engine import transaction
from shared.db.tables import Completion, Job, JobKind, Judgment, Shard, Status
from shared.jobs.job import NewShard, get_job, submit_job
from shared.schemas.requests import JudgeItem
from shared.thinking.formats import GENERIC
from tests.support.judge_server import JudgeServer, Messages, running
from tests.support.stages import run_stage
from workers.judge import stage
from workers.judge.base import Score
from workers.judge.checks.verifier import Verifier

CANARY = "zebra-canary"
PROMPTS = [
    {"text": f"Question {n}?", "checks": [{"kind": "words", "at_most": 2}]} for n in range(2)
]
RESPONSES = ("one", "two words", "these are three")
POINTWISE = {"kind": "pointwise_llm", "model": "m"}
KINDS: list[Mapping[str, object]] = [
    {"kind": "verifier"},
    {"kind": "pairwise", "model": "m"},
    POINTWISE,
    {"kind": "openai", "model": "m", "pairwise": {}},
    {"kind": "openai", "model": "m", "pointwise": {}},
    {
        "kind": "mixture",
        "judges": [{"judge": {"kind": "verifier"}}, {"judge": POINTWISE, "weight": 2}],
    },
]
pytestmark = pytest.mark.usefixtures("clean_database")


@pytest.fixture
def server() -> Iterator[tuple[JudgeServer, str]]:
    def script(messages: Messages) -> str:
        return "I see. [[A]]" if "[[A]]" in messages[0]["content"] else "I see. Score: 7"

    judge = JudgeServer(script)
    with running(judge) as url:
        yield judge, url


def generated(responses: tuple[str, ...] = RESPONSES) -> uuid.UUID:
    """A finished job: each prompt has these responses behind thoughts, and one unparsed output."""
    job_id = uuid.uuid4()
    with transaction() as session:
        payload = {"start": 0, "prompts": PROMPTS}
        submit_job(session, JobKind.generate, {}, [NewShard(payload)], job_id=job_id)
        session.flush()
        shard = session.scalars(select(Shard).where(Shard.job_id == job_id)).one()
        shard.status = Status.succeeded
        thought = f"{GENERIC.thought_marker} {CANARY} {GENERIC.response_marker} "
        for p in range(len(PROMPTS)):
            for k, response in enumerate((*responses, None)):
                session.add(
                    Completion(
                        job_id=job_id,
                        shard_id=shard.id,
                        prompt_index=p,
                        sample_index=k,
                        output=CANARY if response is None else thought + response,
                        response_start=None if response is None else len(thought),
                        prompt_tokens=1,
                        thought_tokens=1,
                        response_tokens=1,
                        truncated=False,
                        forced=False,
                        seed=0,
                    )
                )
    return job_id


def judged(
    spec: Mapping[str, object], url: str, of: uuid.UUID, against: uuid.UUID | None = None
) -> tuple[Job, list[Judgment]]:
    if spec["kind"] == "openai":
        spec = {**spec, "base_url": f"{url}/v1"}
    job_id = uuid.uuid4()
    params = {
        "judge": spec,
        "generate_job_id": str(of),
        "against_generate_job_id": None if against is None else str(against),
    }
    with transaction() as session:
        shards = session.scalars(select(Shard.id).where(Shard.job_id == of)).all()
        news = [NewShard({"generate_shard_id": s}, after_shard_id=s) for s in shards]
        submit_job(session, JobKind.judge, params, news, job_id=job_id)
        session.get_one(Job, of).status = Status.succeeded
    run_stage(stage.main, job_id, url)
    with transaction() as session:
        rows = session.scalars(
            select(Judgment).where(Judgment.job_id == job_id).order_by(Judgment.completion_id)
        )
        return get_job(session, job_id), list(rows)


@pytest.mark.parametrize(
    "spec", KINDS, ids=lambda spec: "-".join([str(spec["kind"]), *[*spec][2:]])
)
def test_no_judge_sees_a_thought(
    spec: Mapping[str, object], server: tuple[JudgeServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, url = server
    shown: list[JudgeItem] = []
    real = Verifier.score

    def score(self: Verifier, items: list[JudgeItem]) -> list[Score]:
        shown.extend(items)
        return real(self, items)

    monkeypatch.setattr(Verifier, "score", score)
    job, rows = judged(spec, url, of=generated())
    seen = json.dumps(recorder.asked) + "".join(item.model_dump_json() for item in shown)
    assert "two words" in seen
    assert "Question 1?" in seen
    for hidden in (CANARY, GENERIC.response_marker, GENERIC.prompt("")[:40]):
        assert hidden not in seen
    assert job.status is Status.succeeded, job.error
    assert len(rows) == len(PROMPTS) * len(RESPONSES), "one a response, none for what did not parse"
    assert all(row.score is not None for row in rows)
    assert job.result is not None
    assert (job.result["judged"], job.result["unjudged"]) == (6, 0)


@pytest.mark.parametrize(
    ("spec", "shares"),
    [({"kind": "verifier"}, [0.75, 0.75, 0.25]), (KINDS[1], [0.5, 0.5, 0.5])],
    ids=["by score", "compared"],
)
def test_a_job_against_another_scores_shares_of_wins(
    spec: Mapping[str, object], shares: list[float], server: tuple[JudgeServer, str]
) -> None:
    seed = generated(("yes", "far too many words"))
    _, rows = judged(spec, server[1], of=generated(), against=seed)
    assert [row.score for row in rows] == shares * 2


def test_a_job_against_itself_is_a_tie_that_nobody_is_asked_about(
    server: tuple[JudgeServer, str],
) -> None:
    job = generated()
    _, rows = judged(KINDS[1], server[1], of=job, against=job)
    assert {row.score for row in rows} == {0.5}
    assert not server[0].asked


def test_where_the_other_has_no_response_one_has_won(server: tuple[JudgeServer, str]) -> None:
    _, rows = judged(KINDS[1], server[1], of=generated(), against=generated(()))
    assert {row.score for row in rows} == {1.0}
    assert not server[0].asked
