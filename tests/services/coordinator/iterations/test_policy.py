"""The policy of an iteration, as a table and by property."""

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.coordinator.iterations.policy import (
    RETRAIN,
    ChooseCheckpoint,
    CompareWithParent,
    Evaluate,
    Fail,
    Finish,
    JobView,
    MakePairs,
    ResumeJobs,
    SampleAndJudge,
    State,
    Step,
    Train,
    Wait,
    next_step,
)
from shared.db.tables import Status

PARENT, FIRST, SECOND = uuid.UUID(int=1), uuid.UUID(int=2), uuid.UUID(int=3)
DONE, RUNNING = JobView(Status.succeeded), JobView(Status.running)
BROKEN = JobView(Status.failed, {"code": "engine_failed", "message": "no memory"})
SAMPLED = {"generate": DONE, "judge": DONE}
SCORED = {PARENT: [DONE, DONE]}
KEPT = {"kept": 3, "prompts": 4, "dropped": {"tie": 1}}
VALIDATED = {
    "jobs": SAMPLED | {"train": DONE},
    "pairing": KEPT,
    "candidates": [FIRST],
    "evaluations": SCORED | {FIRST: [DONE, DONE]},
}


def state(**given: Any) -> State:
    fields: dict[str, Any] = {"jobs": {}, "parent": PARENT}
    return State(**(fields | given))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, SampleAndJudge()),
        ({"jobs": {"generate": RUNNING}}, SampleAndJudge()),
        ({"jobs": {"generate": RUNNING, "judge": RUNNING}}, Evaluate(PARENT)),
        (
            {"jobs": {"generate": DONE, "judge": RUNNING}, "evaluations": SCORED},
            Wait("generate"),
        ),
        ({"jobs": SAMPLED, "evaluations": {PARENT: [DONE, RUNNING]}}, Wait("generate")),
        ({"jobs": SAMPLED, "evaluations": SCORED}, MakePairs()),
        ({"jobs": SAMPLED, "evaluations": SCORED, "pairing": KEPT}, Train()),
        (
            {"jobs": SAMPLED | {"train": RUNNING}, "evaluations": SCORED, "pairing": KEPT},
            Wait("train"),
        ),
        (
            {
                "jobs": SAMPLED | {"train": DONE},
                "evaluations": SCORED,
                "pairing": KEPT,
                "candidates": [FIRST, SECOND],
            },
            Evaluate(FIRST),
        ),
        (
            {
                "jobs": SAMPLED | {"train": DONE},
                "pairing": KEPT,
                "candidates": [FIRST, SECOND],
                "evaluations": SCORED | {FIRST: [RUNNING, RUNNING]},
            },
            Evaluate(SECOND),
        ),
        (VALIDATED | {"evaluations": SCORED | {FIRST: [DONE, RUNNING]}}, Wait("validate")),
        (
            VALIDATED | {"evaluations": SCORED | {FIRST: [DONE, RUNNING]}, "compares_parent": True},
            Wait("validate"),
        ),
        (VALIDATED, ChooseCheckpoint()),
        (VALIDATED | {"compares_parent": True}, CompareWithParent()),
        (VALIDATED | {"compares_parent": True, "comparison": RUNNING}, Wait("validate")),
        (VALIDATED | {"compares_parent": True, "comparison": DONE}, ChooseCheckpoint()),
        (VALIDATED | {"reported": True}, Finish()),
        ({"jobs": {"generate": BROKEN}, "to_resume": [FIRST]}, ResumeJobs((FIRST,))),
    ],
)
def test_each_state_has_its_step(given: dict[str, Any], expected: Step) -> None:
    assert next_step(state(**given)) == expected


def test_a_failed_job_fails_the_iteration_with_its_error_and_stage() -> None:
    step = next_step(state(jobs={"generate": BROKEN, "judge": RUNNING}))
    assert step == Fail({"code": "engine_failed", "message": "no memory", "stage": "generate"})


def test_a_comparison_with_the_parent_that_fails_is_part_of_validation() -> None:
    step = next_step(state(**VALIDATED, compares_parent=True, comparison=BROKEN))
    assert step == Fail({"code": "engine_failed", "message": "no memory", "stage": "validate"})


def test_a_failed_training_says_how_to_mend_it() -> None:
    jobs = SAMPLED | {"train": BROKEN}
    step = next_step(state(jobs=jobs, evaluations=SCORED, pairing=KEPT))
    assert isinstance(step, Fail)
    assert step.error == {
        "code": "engine_failed",
        "message": f"no memory\n{RETRAIN}",
        "stage": "train",
    }


def test_no_pair_left_fails_with_the_counts() -> None:
    pairing = {"kept": 0, "prompts": 5, "dropped": {"tie": 3, "no_parsed_response": 2}}
    step = next_step(state(jobs=SAMPLED, evaluations=SCORED, pairing=pairing))
    assert isinstance(step, Fail)
    assert step.error["code"] == "no_pairs"
    for words in ("5 prompts", "tie 3", "no_parsed_response 2"):
        assert words in step.error["message"]


views = st.sampled_from([DONE, RUNNING, JobView(Status.queued), BROKEN])


@given(
    jobs=st.dictionaries(st.sampled_from(["generate", "judge", "train"]), views),
    evaluations=st.dictionaries(
        st.sampled_from([PARENT, FIRST, SECOND]), st.lists(views, min_size=2, max_size=2)
    ),
    pairing=st.sampled_from([None, KEPT]),
    candidates=st.sampled_from([(), (FIRST,), (FIRST, SECOND)]),
    compares_parent=st.booleans(),
    comparison=st.none() | views,
)
def test_it_never_goes_on_from_unfinished_or_failed_work(
    jobs: dict[str, JobView],
    evaluations: dict[uuid.UUID, list[JobView]],
    pairing: dict[str, Any] | None,
    candidates: tuple[uuid.UUID, ...],
    compares_parent: bool,
    comparison: JobView | None,
) -> None:
    step = next_step(
        state(
            jobs=jobs,
            evaluations=evaluations,
            pairing=pairing,
            candidates=candidates,
            compares_parent=compares_parent,
            comparison=comparison,
        )
    )
    everything = [*jobs.values(), *(v for pair in evaluations.values() for v in pair), comparison]
    if any(view and view.status is Status.failed for view in everything):
        assert isinstance(step, Fail)
    elif isinstance(step, Train | MakePairs):
        assert jobs["generate"] == jobs["judge"] == DONE
        assert evaluations[PARENT] == [DONE, DONE]
    elif isinstance(step, CompareWithParent | ChooseCheckpoint):
        assert jobs["train"] == DONE
        assert all(evaluations[c] == [DONE, DONE] for c in candidates)
        assert not compares_parent or comparison == (
            DONE if isinstance(step, ChooseCheckpoint) else None
        )
