"""The steps of an iteration.

A step is decided in a short transaction that locks the iteration's row. Calls to the services and
long computations follow without a lock, so that a cancel never waits for them. Their outcome is
recorded in another short transaction, if the iteration still needs that step.

A loop may die anywhere in between, and two loops may take the same step at once: job ids derive
from the iteration and the step, so that a repeated call changes nothing.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pydantic import BaseModel
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from services.coordinator.evaluation import scores as evaluation
from services.coordinator.iterations import policy, transitions
from services.coordinator.iterations.baseline import counterpart
from services.coordinator.iterations.state import (
    COMPARISON,
    config_of,
    has_old_settings,
    job_id,
    read_state,
)
from services.coordinator.job_services import Services
from services.coordinator.pairs.write import choose_pairs, insert_pairs
from services.coordinator.report.build import build_report
from shared.db.engine import transaction
from shared.db.tables import Evaluation, Iteration, Job, JobKind, Status
from shared.errors import Conflict
from shared.registry.lineage import lineage_of
from shared.schemas.requests import GenerateRequest, JudgeRequest, TrainRequest
from shared.thinking.sampling import Sampling


class Overtaken(Exception):
    """The iteration no longer needs the step: it was cancelled, or another loop took the step."""


def advance(services: Services, iteration_id: uuid.UUID) -> bool:
    """Take the next step. Returns True if another one may follow at once."""
    with transaction() as session:
        iteration = transitions.lock(session, iteration_id, skip=True)
        if iteration is None:
            return False
        if iteration.finished_at is not None:
            transitions.cancel_orphaned_jobs(session, iteration)
            return False
        if iteration.status is Status.queued:
            return transitions.start(session, iteration)
        step = policy.next_step(read_state(session, iteration))
        if isinstance(step, policy.Fail):
            transitions.fail(session, iteration, step.error)
        elif step.stage is not None:
            transitions.enter(session, iteration, step.stage)
    with suppress(Overtaken):
        _perform(services, iteration, step)
    return not isinstance(step, policy.Wait)


def _perform(services: Services, iteration: Iteration, step: policy.Step) -> None:
    """The part of a step that needs no lock. `iteration` is as the decision has read it."""
    match step:
        case policy.ResumeJobs():
            _resume_jobs(services, iteration, step)
        case policy.SampleAndJudge():
            _sample_and_judge(services, iteration)
        case policy.Evaluate():
            _evaluate(services, iteration, step)
        case policy.MakePairs():
            _make_pairs(iteration, step)
        case policy.Train():
            request = TrainRequest(
                model=str(iteration.parent_model_id),
                iteration_id=iteration.id,
                training=config_of(iteration).training,
            )
            _put(services, iteration, JobKind.train, "train", request)
        case policy.CompareWithParent():
            _compare_with_parent(services, iteration)
        case policy.ChooseCheckpoint():
            _choose_checkpoint(iteration, step)
        case policy.Finish():
            _finish(services, iteration, step)


@contextmanager
def _recording(iteration: Iteration, step: policy.Step) -> Iterator[tuple[Session, Iteration]]:
    """A transaction to record what a step came to."""
    with transaction() as session:
        yield session, _lock_if_needed(session, iteration, step)


def _lock_if_needed(session: Session, iteration: Iteration, step: policy.Step) -> Iteration:
    """Lock the iteration. Raises `Overtaken` if this step is not its next one any more."""
    row = transitions.lock(session, iteration.id)
    if row is None or row.status is not Status.running:
        raise Overtaken
    if policy.next_step(read_state(session, row)) != step:
        raise Overtaken
    return row


def _put(
    services: Services, iteration: Iteration, kind: JobKind, step: str, request: BaseModel
) -> uuid.UUID:
    id_ = job_id(iteration.id, step)
    params: dict[str, Any] = {"step": step}
    if kind is JobKind.judge:
        params["iteration_id"] = str(iteration.id)
    services.for_job(kind).put(f"/jobs/{id_}", request.model_dump(mode="json"), **params)
    return id_


def _resume_jobs(services: Services, iteration: Iteration, step: policy.ResumeJobs) -> None:
    with transaction() as session:
        jobs = session.scalars(select(Job).where(Job.id.in_(step.jobs))).all()
    for job in jobs:
        service, change = services.for_job(job.kind), None
        if has_old_settings(job, iteration):
            service.post(f"/jobs/{job.id}/cancel")  # it may be running yet
            change = {"training": config_of(iteration).training.model_dump(mode="json")}
        service.post(f"/jobs/{job.id}/resume", change)


def _sample_and_judge(services: Services, iteration: Iteration) -> None:
    config = config_of(iteration)
    request = _generate_request(iteration, iteration.parent_model_id, config.sampling)
    generate_id = _put(services, iteration, JobKind.generate, "generate", request)
    judge = JudgeRequest(judge=config.judge, generate_job_id=generate_id)
    _put(services, iteration, JobKind.judge, "judge", judge)


def _generate_request(
    iteration: Iteration, model_id: uuid.UUID | None, sampling: Sampling, **fields: Any
) -> GenerateRequest:
    config = config_of(iteration)
    return GenerateRequest(
        model=str(model_id),
        thought_format=config.thought_format,
        iteration_id=iteration.id,
        sampling=sampling,
        shard_size=config.shard_size,
        **fields,
    )


def _evaluate(services: Services, iteration: Iteration, step: policy.Evaluate) -> None:
    """Submit sampling and judging on the validation prompts.

    A judge that compares is given the seed's answers to compare with, since its scores of two
    models could not be compared otherwise.
    """
    config, model_id = config_of(iteration), step.model
    validation = {
        "samples": config.validation.samples,
        "temperature": config.validation.temperature,
    }
    sampling = config.sampling.model_copy(update=validation)
    request = _generate_request(iteration, model_id, sampling, split="validation")
    kind, name = JobKind.generate, f"evaluate-generate:{model_id}"
    generate_id = _put(services, iteration, kind, name, request)
    opponent = None
    if config.evaluating_judge.compares:
        opponent = generate_id
        if model_id != iteration.seed_model_id:
            with transaction() as session:
                opponent = _answers(session, iteration, iteration.seed_model_id)
    judge = JudgeRequest(
        judge=config.evaluating_judge,
        generate_job_id=generate_id,
        against_generate_job_id=opponent,
    )
    judge_id = _put(services, iteration, JobKind.judge, f"evaluate-judge:{model_id}", judge)
    with _recording(iteration, step) as (session, _):
        session.add(
            Evaluation(
                run_id=iteration.run_id,
                model_id=model_id,
                iteration_id=iteration.id,
                generate_job_id=generate_id,
                judge_job_id=judge_id,
            )
        )


def _answers(session: Session, iteration: Iteration, model_id: uuid.UUID | None) -> uuid.UUID:
    """The job that answered the validation prompts with a model."""
    return session.get_one(Evaluation, (iteration.run_id, model_id)).generate_job_id


def _make_pairs(iteration: Iteration, step: policy.MakePairs) -> None:
    with transaction() as session:
        choices, pairing = choose_pairs(session, iteration)
        row = _lock_if_needed(session, iteration, step)
        insert_pairs(session, iteration.id, choices)
        row.pairing = pairing


def _compare_with_parent(services: Services, iteration: Iteration) -> None:
    """The parent answered the run's validation prompts before it was trained on."""
    with transaction() as session:
        best = _best_checkpoint(session, iteration)
        request = JudgeRequest(
            judge=config_of(iteration).evaluating_judge,
            generate_job_id=_answers(session, iteration, best),
            against_generate_job_id=_answers(session, iteration, iteration.parent_model_id),
        )
    _put(services, iteration, JobKind.judge, COMPARISON, request)


def _best_checkpoint(session: Session, iteration: Iteration) -> uuid.UUID:
    """The best checkpoint on validation. All scores are there, so it is always the same one."""
    scored = [(m.id, scores) for m, scores in evaluation.checkpoint_scores(session, iteration)]
    if not any(scores for _, scores in scored):
        raise Conflict(policy.NO_SCORES, param="validation.judge", code="no_scores")
    return evaluation.best(scored)


def _choose_checkpoint(iteration: Iteration, step: policy.ChooseCheckpoint) -> None:
    with transaction() as session:
        # A report on very many prompts computes for longer than a session may be idle.
        session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '30min'"))
        beside = _counterparts_result(session, iteration)
        best = _best_checkpoint(session, iteration)
        report = build_report(session, iteration, best)
    rule = config_of(iteration).promote
    promoted = rule == "always" or (
        rule == "if_better" and report["validation"]["vs_seed"]["mean"] > 0
    )
    with _recording(iteration, step) as (session, row):
        if _counterparts_result(session, row) != beside:
            raise Overtaken  # the later report compares the two; the next try has both
        row.result_model_id, row.report = best, report | {"promoted": promoted}


def _counterparts_result(session: Session, iteration: Iteration) -> uuid.UUID | None:
    other = counterpart(session, iteration)
    return None if other is None else other.result_model_id


def _finish(services: Services, iteration: Iteration, step: policy.Finish) -> None:
    config, report, chosen = config_of(iteration), iteration.report, iteration.result_model_id
    assert report is not None
    with transaction() as session:
        lineage = lineage_of(session, iteration)
    body = {
        "name": config.name,
        "thought_format": config.thought_format.model_dump(),
        "lineage": lineage | {"prompts": report["prompts"], "validation": report["validation"]},
    }
    released = services.train.put(f"/models/{chosen}/release", body)
    if report["promoted"]:
        with transaction() as session:
            # Chat must not serve the model of an iteration that was cancelled meanwhile.
            _lock_if_needed(session, iteration, step)
        services.train.post(f"/models/{chosen}/promote")
    with _recording(iteration, step) as (session, row):
        transitions.succeed(session, row, released["ref"])
