"""Which prompts of a generate job are long, and where their user finds them."""

import uuid

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.db.tables import Dataset, Iteration, IterationPrompt, Job, JobKind, Prompt, Split
from shared.jobs.job import NewShard, submit_job
from tests.support import factories
from workers.generate.prompts import longer_prompts, place_of


def job_of(session: Session, dataset: Dataset, *without: Prompt) -> Job:
    """Of an iteration that took the dataset's prompts but those: sampling for those of training."""
    model = factories.model(session)
    iteration = Iteration(
        id=uuid.uuid4(),
        run_id=uuid.uuid4(),
        number=1,
        config={},
        dataset_id=dataset.id,
        seed_model_id=model.id,
    )
    session.add(iteration)
    session.flush()
    taken = [row for row in prompts_of(session, dataset) if row not in without]
    for at, row in enumerate(taken):
        session.add(
            IterationPrompt(
                iteration_id=iteration.id, prompt_id=row.id, split=row.split, position=at
            )
        )
    ids = [row.id for row in taken if row.split is Split.train]
    shards = [NewShard({"start": 0, "prompt_ids": ids})]
    new = uuid.uuid4()
    job, _ = submit_job(
        session, JobKind.generate, {}, shards, job_id=new, iteration_id=iteration.id
    )
    return job


def prompts_of(session: Session, dataset: Dataset) -> list[Prompt]:
    query = select(Prompt).where(Prompt.dataset_id == dataset.id).order_by(Prompt.position)
    return list(session.scalars(query))


@pytest.mark.parametrize(
    ("source", "places"),
    [
        (
            "inline",
            [
                ("prompt 2 of prompts", "prompts.1"),
                ("prompt 2 of validation_prompts", "validation_prompts.1"),
            ],
        ),
        (
            "upload",
            [
                ("prompt 2 of the dataset (train)", "dataset"),
                ("prompt 8 of the dataset (validation)", "dataset"),
            ],
        ),
    ],
)
def test_long_prompts_of_either_split_are_found_and_named(
    session: Session, source: str, places: list[tuple[str, str]]
) -> None:
    dataset = factories.dataset(session)
    dataset.source = source
    rows = prompts_of(session, dataset)
    for row in (rows[1], rows[7]):
        row.text = "é" * 30  # 60 bytes
    found = longer_prompts(session, job_of(session, dataset).id, 59)
    assert {prompt.prompt_id for prompt in found} == {rows[1].id, rows[7].id}
    assert [place_of(session, prompt) for prompt in found] == places


def test_a_prompt_that_the_iteration_did_not_take_may_be_long(session: Session) -> None:
    dataset = factories.dataset(session)
    long = prompts_of(session, dataset)[1]
    long.text = "x" * 60
    assert longer_prompts(session, job_of(session, dataset, long).id, 59) == []
