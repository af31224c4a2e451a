"""The policy of an iteration: one pure function from what is there to what to do next."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shared.db.tables import Status

Error = dict[str, Any]


@dataclass(frozen=True)
class JobView:
    status: Status
    error: Error | None = None


@dataclass(frozen=True)
class State:
    """What `next_step` decides on. `jobs` holds generate, judge and train once submitted."""

    jobs: Mapping[str, JobView]
    parent: uuid.UUID
    evaluations: Mapping[uuid.UUID, Sequence[JobView]] = field(default_factory=dict)
    """Model -> its generate and judge job on the validation prompts."""
    pairing: Mapping[str, Any] | None = None
    """The counts of pairing, once pairs are chosen."""
    candidates: Sequence[uuid.UUID] = ()
    """Checkpoints of the finished training that validation must score."""
    compares_parent: bool = False
    """Whether no score sets the best of them beside the parent."""
    comparison: JobView | None = None
    """The judge job that does, once submitted."""


@dataclass(frozen=True)
class Sample:
    """Submit generate and judge for the training prompts."""


@dataclass(frozen=True)
class Evaluate:
    """Submit generate and judge for the validation prompts."""

    model: uuid.UUID


@dataclass(frozen=True)
class MakePairs:
    pass


@dataclass(frozen=True)
class Train:
    pass


@dataclass(frozen=True)
class Compare:
    """Submit the judge job of the best checkpoint against the parent."""


@dataclass(frozen=True)
class Choose:
    """Take the best checkpoint, report, and finish."""


RETRAIN = (
    'POST …/resume tries it again, with {"training": {…}} as its body under other settings; what '
    "was sampled and judged stays."
)
NO_SCORES = {
    "code": "no_scores",
    "stage": "validate",
    "param": "validation.judge",
    "message": "the judge gave no score to any validation response; GET /jobs/{id}/judgments of "
    "the judge service shows why, under details.reason",
}
STAGES = ("generate", "pair", "train", "validate")
"""In their order; an iteration's own column says in which it is."""


@dataclass(frozen=True)
class Wait:
    stage: str


@dataclass(frozen=True)
class Fail:
    error: Error


Step = Sample | Evaluate | MakePairs | Train | Compare | Choose | Wait | Fail


def next_step(state: State) -> Step:
    """The next thing to do, or what is waited for. Repeating it on the same state is harmless."""
    if error := _first_error(state):
        return Fail(error)
    if "generate" not in state.jobs or "judge" not in state.jobs:
        return Sample()
    if state.parent not in state.evaluations:
        # Beside sampling, while the engine holds the parent's weights anyhow.
        return Evaluate(state.parent)
    if not (_done(state.jobs["generate"], state.jobs["judge"]) and _scored(state, state.parent)):
        return Wait("generate")
    if state.pairing is None:
        return MakePairs()
    if state.pairing["kept"] == 0:
        return Fail(_no_pairs(state.pairing))
    if "train" not in state.jobs:
        return Train()
    if not _done(state.jobs["train"]):
        return Wait("train")
    for model in state.candidates:
        if model not in state.evaluations:
            return Evaluate(model)
    if not all(_scored(state, model) for model in state.candidates):
        return Wait("validate")
    if state.compares_parent:
        if state.comparison is None:
            return Compare()
        if not _done(state.comparison):
            return Wait("validate")
    return Choose()


def _done(*jobs: JobView) -> bool:
    return all(job.status is Status.succeeded for job in jobs)


def _scored(state: State, model: uuid.UUID) -> bool:
    return _done(*state.evaluations[model])


def _first_error(state: State) -> Error | None:
    named = [(name, job) for name, job in state.jobs.items()]
    named += [("validate", job) for jobs in state.evaluations.values() for job in jobs]
    named += [("validate", state.comparison)] if state.comparison else []
    for stage, job in named:
        if job.status is Status.failed:
            error = {"code": "job_failed", "message": "no error recorded"} | (job.error or {})
            if stage == "train":
                error["message"] += f"\n{RETRAIN}"
            return error | {"stage": stage}
        if job.status is Status.cancelled:
            return {
                "code": "job_cancelled",
                "stage": stage,
                "message": f"its {stage} job was cancelled; POST …/resume takes it up again",
            }
    return None


def _no_pairs(pairing: Mapping[str, Any]) -> Error:
    reasons = ", ".join(f"{reason} {n}" for reason, n in pairing["dropped"].items())
    return {
        "code": "no_pairs",
        "stage": "pair",
        "param": "sampling",
        "message": (
            f"none of the {pairing['prompts']} prompts gave a pair ({reasons}). Use more samples, "
            "a higher temperature, easier or harder prompts, or boundary: forced where the model "
            "does not write the response marker by itself. Where most are unjudged, "
            "GET /jobs/{id}/judgments of the judge service says why, under details.reason."
        ),
    }
