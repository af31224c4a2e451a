"""The policy of an iteration: one pure function, from its state to the next step."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from shared.db.tables import Status

Error = dict[str, Any]


@dataclass(frozen=True)
class JobView:
    status: Status
    error: Error | None = None


@dataclass(frozen=True)
class State:
    """The facts that `next_step` decides on."""

    jobs: Mapping[str, JobView]
    """The jobs of the steps generate, judge and train that have been submitted."""
    parent: uuid.UUID
    evaluations: Mapping[uuid.UUID, Sequence[JobView]] = field(default_factory=dict)
    """Model -> its generate and judge job on the validation prompts."""
    pairing: Mapping[str, Any] | None = None
    """The counts of pairing, once pairs are chosen."""
    candidates: Sequence[uuid.UUID] = ()
    """Checkpoints of the finished training that validation must score."""
    compares_parent: bool = False
    """True if a job of its own must compare the best checkpoint with the parent."""
    comparison: JobView | None = None
    """That job, once submitted."""
    reported: bool = False
    """True once the best checkpoint is chosen and its report is stored."""
    to_resume: Sequence[uuid.UUID] = ()
    """Jobs that ended before the iteration was resumed, or train with settings since replaced."""


@dataclass(frozen=True)
class ResumeJobs:
    """Resume the jobs that the iteration's own resume has left to the loop."""

    jobs: tuple[uuid.UUID, ...]
    stage: ClassVar[None] = None


@dataclass(frozen=True)
class SampleAndJudge:
    """Submit generate and judge for the training prompts."""

    stage: ClassVar[str] = "generate"


@dataclass(frozen=True)
class Evaluate:
    """Submit generate and judge for the validation prompts."""

    model: uuid.UUID
    stage: ClassVar[None] = None


@dataclass(frozen=True)
class MakePairs:
    """Choose the pairs and store them."""

    stage: ClassVar[str] = "pair"


@dataclass(frozen=True)
class Train:
    """Submit the training."""

    stage: ClassVar[str] = "train"


@dataclass(frozen=True)
class CompareWithParent:
    """Submit the judge job of the best checkpoint against the parent."""

    stage: ClassVar[str] = "validate"


@dataclass(frozen=True)
class ChooseCheckpoint:
    """Choose the best checkpoint and store it with its report."""

    stage: ClassVar[str] = "validate"


@dataclass(frozen=True)
class Finish:
    """Name the chosen checkpoint, promote it by rule, and end the iteration."""

    stage: ClassVar[None] = None


@dataclass(frozen=True)
class Wait:
    """Nothing to do until a job of this stage ends."""

    stage: str


@dataclass(frozen=True)
class Fail:
    """End the iteration with this error."""

    error: Error
    stage: ClassVar[None] = None


Step = (
    ResumeJobs
    | SampleAndJudge
    | Evaluate
    | MakePairs
    | Train
    | CompareWithParent
    | ChooseCheckpoint
    | Finish
    | Wait
    | Fail
)
"""Each names the stage that the iteration enters with it, or None if it stays where it is."""

RETRAIN = (
    'POST …/resume tries it again, with {"training": {…}} as its body under other settings; what '
    "was sampled and judged stays."
)
NO_SCORES = (
    "the judge gave no score to any validation response; GET /jobs/{id}/judgments of "
    "the judge service shows why, under details.reason"
)
STAGES = ("generate", "pair", "train", "validate")
"""The stages in their order. The column `stage` of an iteration names its present one."""


def next_step(state: State) -> Step:
    """The next step. Taking the same step twice is harmless."""
    if state.to_resume:
        return ResumeJobs(tuple(state.to_resume))
    if error := _first_error(state):
        return Fail(error)
    if "generate" not in state.jobs or "judge" not in state.jobs:
        return SampleAndJudge()
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
            return CompareWithParent()
        if not _done(state.comparison):
            return Wait("validate")
    return Finish() if state.reported else ChooseCheckpoint()


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
