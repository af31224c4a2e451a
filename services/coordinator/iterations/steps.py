"""Carrying out the steps of an iteration. Commands go to the services over HTTP, by ids that
repeat; what is ours is written in the caller's transaction, which holds the iteration's row."""

import uuid
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel
from sqlalchemy import ColumnElement, and_, select, text
from sqlalchemy.orm import Session

from services.coordinator.evaluation import scores as evaluation
from services.coordinator.iterations import events
from services.coordinator.iterations import policy as pipeline
from services.coordinator.iterations.state import COMPARISON, config_of, job_id, read_state
from services.coordinator.job_services import Services
from services.coordinator.pairs.write import make_pairs
from services.coordinator.report.build import build_report
from shared.db.tables import UNFINISHED, Evaluation, Iteration, Job, JobKind, Status
from shared.registry.lineage import lineage_of
from shared.schemas.requests import GenerateRequest, JudgeRequest, TrainRequest


def advance(session: Session, services: Services, iteration: Iteration) -> bool:
    """Take the next step; True where another may follow. The iteration's row must be locked.

    The caller commits each step by itself: a training must not begin before its pairs are there.
    """
    if iteration.status is Status.queued:
        return _start(session, iteration)
    step = pipeline.next_step(read_state(session, iteration))
    match step:
        case pipeline.Wait(stage):
            _enter(session, iteration, stage)
        case pipeline.Sample():
            _enter(session, iteration, "generate")
            _sample(services, iteration)
        case pipeline.Evaluate(model):
            _evaluate(session, services, iteration, model)
        case pipeline.MakePairs():
            _enter(session, iteration, "pair")
            iteration.pairing = make_pairs(session, iteration)
        case pipeline.Train():
            _enter(session, iteration, "train")
            _train(services, iteration)
        case pipeline.Compare():
            _compare(session, services, iteration)
        case pipeline.Choose():
            _choose(session, services, iteration)
        case pipeline.Fail(error):
            fail(session, iteration, error)
    return iteration.status is Status.running and not isinstance(step, pipeline.Wait)


def _start(session: Session, iteration: Iteration) -> bool:
    """Begin when the iteration before it in the run has ended; False while it has not."""
    before = session.scalar(
        select(Iteration).where(
            Iteration.run_id == iteration.run_id, Iteration.number == iteration.number - 1
        )
    )
    if before is not None and not before.status.terminal:
        return False
    if before is not None and before.status is not Status.succeeded:
        fail(
            session,
            iteration,
            {
                "code": "parent_failed",
                "stage": "queued",
                "message": f"iteration {before.number} of this run {before.status}",
            },
        )
        return False
    iteration.parent_model_id = before.result_model_id if before else iteration.seed_model_id
    iteration.status, iteration.started_at = Status.running, datetime.now(UTC)
    session.flush()
    return True


def _sample(services: Services, iteration: Iteration) -> None:
    config = config_of(iteration)
    request = GenerateRequest(
        model=str(iteration.parent_model_id),
        thought_format=config.thought_format,
        iteration_id=iteration.id,
        sampling=config.sampling,
        shard_size=config.shard_size,
    )
    generate_id = _put(services, iteration, JobKind.generate, "generate", request)
    judge = JudgeRequest(judge=config.judge, generate_job_id=generate_id)
    _put(services, iteration, JobKind.judge, "judge", judge)


def _evaluate(
    session: Session, services: Services, iteration: Iteration, model_id: uuid.UUID
) -> None:
    config = config_of(iteration)
    sampling = config.sampling.model_copy(
        update={"samples": config.validation.samples, "temperature": config.validation.temperature}
    )
    request = GenerateRequest(
        model=str(model_id),
        thought_format=config.thought_format,
        iteration_id=iteration.id,
        split="validation",
        sampling=sampling,
        shard_size=config.shard_size,
    )
    generate_id = _put(
        services, iteration, JobKind.generate, f"evaluate-generate:{model_id}", request
    )
    judge = JudgeRequest(
        judge=config.evaluating_judge,
        generate_job_id=generate_id,
        against_generate_job_id=_opponent(session, iteration, model_id, generate_id),
    )
    judge_id = _put(services, iteration, JobKind.judge, f"evaluate-judge:{model_id}", judge)
    session.add(
        Evaluation(
            run_id=iteration.run_id,
            model_id=model_id,
            iteration_id=iteration.id,
            generate_job_id=generate_id,
            judge_job_id=judge_id,
        )
    )
    session.flush()


def _opponent(
    session: Session, iteration: Iteration, model_id: uuid.UUID, generate_id: uuid.UUID
) -> uuid.UUID | None:
    """The seed's answers, where scores of different models cannot be set side by side."""
    if not config_of(iteration).evaluating_judge.compares:
        return None
    if model_id == iteration.seed_model_id:
        return generate_id
    return _answers(session, iteration, iteration.seed_model_id)


def _answers(session: Session, iteration: Iteration, model_id: uuid.UUID | None) -> uuid.UUID:
    """The job that answered the validation prompts with a model."""
    return session.get_one(Evaluation, (iteration.run_id, model_id)).generate_job_id


def _train(services: Services, iteration: Iteration) -> None:
    request = TrainRequest(
        model=str(iteration.parent_model_id),
        iteration_id=iteration.id,
        training=config_of(iteration).training,
    )
    _put(services, iteration, JobKind.train, "train", request)


def _put(
    services: Services, iteration: Iteration, kind: JobKind, step: str, request: BaseModel
) -> uuid.UUID:
    id_ = job_id(iteration.id, step)
    params: dict[str, Any] = {"step": step}
    if kind is JobKind.judge:
        params["iteration_id"] = str(iteration.id)
    services.for_job(kind).put(f"/jobs/{id_}", request.model_dump(mode="json"), **params)
    return id_


def _compare(session: Session, services: Services, iteration: Iteration) -> None:
    """With the parent, which answered the run's validation prompts before it was trained on."""
    if (chosen := _best(session, iteration)) is None:
        return
    request = JudgeRequest(
        judge=config_of(iteration).evaluating_judge,
        generate_job_id=_answers(session, iteration, chosen),
        against_generate_job_id=_answers(session, iteration, iteration.parent_model_id),
    )
    _put(services, iteration, JobKind.judge, COMPARISON, request)


def _best(session: Session, iteration: Iteration) -> uuid.UUID | None:
    """The best checkpoint on validation, the same however often it is asked for: its scores are
    all there. Without any score the iteration fails."""
    scored = [(m.id, found) for m, found in evaluation.checkpoint_scores(session, iteration)]
    if any(found for _, found in scored):
        return evaluation.best(scored)
    fail(session, iteration, pipeline.NO_SCORES)
    return None


def _choose(session: Session, services: Services, iteration: Iteration) -> None:
    """The best checkpoint on validation becomes the model; report, promote by rule, finish."""
    config = config_of(iteration)
    if (chosen := _best(session, iteration)) is None:
        return
    # A report on very many prompts computes for longer than a session may be idle.
    session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '30min'"))
    built = build_report(session, iteration, chosen)
    promoted = config.promote == "always" or (
        config.promote == "if_better" and built["validation"]["vs_seed"]["mean"] > 0
    )
    body = {
        "name": config.name,
        "thought_format": config.thought_format.model_dump(),
        "lineage": lineage_of(session, iteration)
        | {"prompts": built["prompts"], "validation": built["validation"]},
    }
    released = services.train.put(f"/models/{chosen}/release", body)
    if promoted:
        services.train.post(f"/models/{chosen}/promote")
    iteration.result_model_id = chosen
    iteration.report = built | {"promoted": promoted}
    _enter(session, iteration, "done")
    iteration.status, iteration.finished_at = Status.succeeded, datetime.now(UTC)
    events.record(
        session, iteration.id, "status", f"succeeded: {released['ref']}", model=str(chosen)
    )
    session.flush()


def _enter(session: Session, iteration: Iteration, stage: str) -> None:
    """Move to a stage, once; the seconds of the one before are written down."""
    if iteration.stage == stage:
        return
    now = datetime.now(UTC)
    if iteration.stage_started_at is not None:
        seconds = (now - iteration.stage_started_at).total_seconds()
        before = iteration.timings.get(iteration.stage, 0.0)
        iteration.timings = iteration.timings | {iteration.stage: round(before + seconds, 3)}
    iteration.stage, iteration.stage_started_at = stage, now
    events.record(session, iteration.id, "stage", stage)
    session.flush()


def fail(session: Session, iteration: Iteration, error: dict[str, Any]) -> None:
    """End it. `stop_jobs` ends what is still under way: no device works on for nobody."""
    iteration.status, iteration.error = Status.failed, error
    iteration.finished_at = datetime.now(UTC)
    events.record(session, iteration.id, "status", f"failed: {error['message']}", error=error)
    session.flush()


def orphaned_jobs() -> ColumnElement[bool]:
    """Steps of an iteration that has ended; a job of a user's own that names it goes on."""
    return and_(Job.status.in_(UNFINISHED), Job.step.is_not(None), Job.kind != JobKind.prune)


def stop_jobs(session: Session, services: Services, iteration: Iteration) -> None:
    """Cancel the jobs that an ended iteration has left. The iteration's row must be locked."""
    left = select(Job).where(Job.iteration_id == iteration.id, orphaned_jobs())
    for job in session.scalars(left):
        services.for_job(job.kind).post(f"/jobs/{job.id}/cancel")
