"""Turning a request into rows: checks everything that can be checked now, starts nothing."""

import random
import uuid
from collections.abc import Callable

from sqlalchemy import BigInteger, Uuid, bindparam, func, insert, literal, select, true
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from services.coordinator.datasets import routes as datasets
from services.coordinator.iterations import events
from services.coordinator.iterations.baseline import direct
from shared.db.tables import Dataset, Iteration, IterationPrompt, Job, Model, Prompt, Split
from shared.errors import InvalidRequest, NotFound
from shared.registry.models import resolve
from shared.schemas import judge_permissions
from shared.schemas.judges import VerifierSpec, with_model
from shared.schemas.requests import IterationRequest

Drawn = tuple[list[list[int]], list[int]]
"""Ids of training prompts, one list for each iteration, and of the validation prompts."""
TEXT = func.hashtextextended(Prompt.text, 0)
"""Stands for a prompt's text, since a dataset may hold a gigabyte of it. Among a million texts two
share a hash by chance once in 40 million times, and then one is left out."""


def start_run(session: Session, request: IterationRequest) -> list[Iteration]:
    """Insert the run's iterations with their prompts drawn, and those of its direct baseline if
    one is wanted; the loop takes them from there. Returns the run's own."""
    _refuse_untrainable(request)
    seed_model = resolve(session, request.base_model, param="base_model")
    request = _with_judges_resolved(session, request)  # a refusal comes before the costly draw
    run_id = uuid.uuid4()
    dataset = _dataset(session, request, run_id)
    prompts = _draw(session, request, dataset, seed_model)
    iterations = _insert_run(session, request, dataset, seed_model, prompts, run_id=run_id)
    if request.baseline:
        same = direct(request), dataset, seed_model, prompts
        _insert_run(session, *same, run_id=uuid.uuid4(), baseline_of=run_id)
    return iterations


def _insert_run(
    session: Session,
    request: IterationRequest,
    dataset: Dataset,
    seed_model: Model,
    prompts: Drawn,
    **run: uuid.UUID,
) -> list[Iteration]:
    train, validation = prompts
    config = request.model_dump(mode="json", exclude={"prompts", "validation_prompts"})
    config |= {
        "dataset": dataset.name,
        "base_model": str(seed_model.id),
        "prompts_per_iteration": len(train[0]),
    }
    iterations = [
        Iteration(
            id=uuid.uuid4(),
            number=number + 1,
            config=config,
            dataset_id=dataset.id,
            seed_model_id=seed_model.id,
            **run,
        )
        for number in range(request.count)
    ]
    session.add_all(iterations)
    session.flush()
    for iteration, fresh in zip(iterations, train, strict=True):
        _insert_prompts(session, [iteration.id], Split.train, fresh)
        events.record(session, iteration.id, "status", "queued")
    _insert_prompts(session, [i.id for i in iterations], Split.validation, validation)
    return iterations


def _refuse_untrainable(request: IterationRequest) -> None:
    """Outputs as long as they may be must fit into a pair, or the long ones would be left out."""
    s, thinks = request.sampling, request.thought_format.thinks
    budget = s.max_response_tokens + (s.max_thought_tokens if thinks else 0)
    if budget > request.training.max_length:
        fields = "sampling.max_response_tokens" + (" + sampling.max_thought_tokens" * thinks)
        raise InvalidRequest(
            f"training.max_length: {request.training.max_length} tokens of prompt and output are "
            f"fewer than {fields}, which are {budget}",
            param="training.max_length",
        )


def _with_judges_resolved(session: Session, request: IterationRequest) -> IterationRequest:
    """Judges that are registered models by their ids: a new version must not change a run."""
    judge_permissions.check(request.judge, "judge")
    if request.validation.judge is not None:
        judge_permissions.check(request.validation.judge, "validation.judge")
    judge = with_model(request.judge, _resolver(session, "judge.model"))
    validation = request.validation
    if validation.judge is not None:
        evaluator = with_model(validation.judge, _resolver(session, "validation.judge.model"))
        validation = validation.model_copy(update={"judge": evaluator})
    return request.model_copy(update={"judge": judge, "validation": validation})


def _resolver(session: Session, param: str) -> Callable[[str], str]:
    return lambda ref: str(resolve(session, ref, param=param).id)


def _dataset(session: Session, request: IterationRequest, run_id: uuid.UUID) -> Dataset:
    if request.dataset is None:
        return datasets.insert_inline(
            session, f"inline-{run_id}", request.prompts, request.validation_prompts
        )
    found = session.scalar(select(Dataset).where(Dataset.name == request.dataset))
    if found is None:
        raise NotFound(
            f"dataset: no dataset {request.dataset!r}; upload it with POST /datasets",
            param="dataset",
            code="dataset_not_found",
        )
    return found


def _draw(
    session: Session, request: IterationRequest, dataset: Dataset, seed_model: Model
) -> Drawn:
    """Fresh training prompts for each iteration, and the validation prompts they share.

    Drawn by the sampling seed, and told apart by their text, which may stand in both splits, or in
    two datasets: what made the base model is not taken again, what is held out is not trained on.
    """
    trained_on = _trained_on(session, seed_model)
    validation = _ids(session, request, dataset, Split.validation, trained_on)
    if not validation:
        raise InvalidRequest(
            f"dataset: {dataset.name!r} has no validation prompts that the base model has not been "
            "trained on",
            param="dataset",
        )
    not_fresh = trained_on | set(validation.values())
    fresh = list(_ids(session, request, dataset, Split.train, not_fresh))
    size = request.prompts_per_iteration or len(fresh) // request.count
    if size == 0 or size * request.count > len(fresh):
        whose = f"dataset {dataset.name!r}" if request.dataset else "the request"
        raise InvalidRequest(
            f"prompts_per_iteration: {request.count} iterations of {size or 1} prompts need "
            f"{(size or 1) * request.count}; {whose} has {len(fresh)} training prompts "
            f"of different texts that are not held out and the base model has not been trained on",
            param="prompts_per_iteration",
        )
    chunks = [fresh[n * size : (n + 1) * size] for n in range(request.count)]
    return chunks, list(validation)[: request.validation.prompts]


def _ids(
    session: Session, request: IterationRequest, dataset: Dataset, split: Split, not_of: set[int]
) -> dict[int, int]:
    """Id and text hash of one prompt for each text, in the order of the draw, without those in
    `not_of`. The same text with other checks counts as another one, for the verifier asks
    something else."""
    _refuse_unjudgeable(session, request, dataset, split)
    query = (
        select(func.min(Prompt.id), TEXT)
        .where(Prompt.dataset_id == dataset.id, Prompt.split == split)
        .group_by(TEXT, Prompt.checks)
        .order_by(func.min(Prompt.position))
    )
    found = [(id_, text) for id_, text in session.execute(query) if text not in not_of]
    random.Random(f"{request.sampling.seed}:{split}").shuffle(found)
    return dict(found)


def _refuse_unjudgeable(
    session: Session, request: IterationRequest, dataset: Dataset, split: Split
) -> None:
    """The verifier can only score prompts that carry checks."""
    evaluates = split is Split.validation and request.validation.judge is not None
    judge = request.validation.judge if evaluates else request.judge
    if not isinstance(judge, VerifierSpec):
        return
    param = "validation.judge.kind" if evaluates else "judge.kind"
    position = session.scalar(
        select(func.min(Prompt.position)).where(
            Prompt.dataset_id == dataset.id,
            Prompt.split == split,
            func.jsonb_array_length(Prompt.checks) == 0,
        )
    )
    if position is None:
        return
    if request.dataset is None:
        param = _inline(request, position)
        raise InvalidRequest(f"{param}: the verifier needs checks on every prompt", param=param)
    raise InvalidRequest(
        f"{param}: the verifier needs checks on every prompt; prompt {position + 1} of "
        f"dataset {dataset.name!r} has none",
        param=param,
    )


def _inline(request: IterationRequest, position: int) -> str:
    """The field of a request's own prompt that has this position in the dataset made of them."""
    train = len(request.prompts)
    return f"prompts.{position}" if position < train else f"validation_prompts.{position - train}"


def _trained_on(session: Session, model: Model) -> set[int]:
    """Texts of the prompts of the iterations that led to a model."""
    made_by = []
    current: Model | None = model
    while current is not None:
        made_by.append(current.job_id)
        current = session.get(Model, current.parent_id) if current.parent_id else None
    prompts = (
        select(IterationPrompt.prompt_id)
        .join(Job, Job.iteration_id == IterationPrompt.iteration_id)
        .where(Job.id.in_(made_by), IterationPrompt.split == Split.train)
    )
    return set(session.scalars(select(TEXT).where(Prompt.id.in_(prompts))))


def _insert_prompts(
    session: Session, iteration_ids: list[uuid.UUID], split: Split, prompt_ids: list[int]
) -> None:
    """Give all of the iterations the same prompts, in this order, by one statement. Only the ids
    are sent; Postgres makes the rows."""
    ids = func.unnest(bindparam(None, prompt_ids, ARRAY(BigInteger)))
    drawn = ids.table_valued("prompt_id", with_ordinality="position").render_derived("drawn")
    iterations = func.unnest(bindparam(None, iteration_ids, ARRAY(Uuid)))
    takes = iterations.table_valued("id").render_derived("takes")
    rows = select(takes.c.id, drawn.c.prompt_id, literal(split.value), drawn.c.position - 1)
    columns = ["iteration_id", "prompt_id", "split", "position"]
    session.execute(
        insert(IterationPrompt).from_select(columns, rows.join_from(takes, drawn, true()))
    )
