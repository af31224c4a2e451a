"""Route over a model's answers to an iteration's validation prompts, to be judged elsewhere."""

import uuid
from typing import Literal

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.orm import Session

from services.coordinator.iterations.state import find, format_of
from shared.base import ResponseModel
from shared.db.tables import Completion, Evaluation, Iteration, Prompt
from shared.errors import Conflict, Gone
from shared.thinking.answer_filter import visible
from shared.web.paging import Limit, Page, paginate_by_id
from shared.web.session import SessionDep

router = APIRouter(tags=["iterations"])
Whose = Literal["result", "parent", "seed"]


class AnswerRead(ResponseModel):
    """Without thoughts, whoever asks. `response` is null where the output does not parse."""

    id: int
    prompt: str
    category: str | None
    sample_index: int
    response: str | None
    response_tokens: int


@router.get("/iterations/{iteration_id}/answers")
def list_answers(
    iteration_id: uuid.UUID,
    session: SessionDep,
    model: Whose = "result",
    after: int | None = None,
    limit: Limit = 100,
) -> Page[AnswerRead]:
    """Validation answers of the model that the iteration made, or of its parent or seed."""
    iteration = find(session, iteration_id)
    fmt = format_of(iteration)
    query = (
        select(Completion, Prompt.text, Prompt.category)
        .join(Prompt, Prompt.id == Completion.prompt_id)
        .where(Completion.job_id == _evaluation(session, iteration, model).generate_job_id)
    )

    def read(row: Completion, prompt: str, category: str | None) -> AnswerRead:
        return AnswerRead(
            id=row.id,
            prompt=prompt,
            category=category,
            sample_index=row.sample_index,
            response=visible(row.response, fmt, forced=row.forced),
            response_tokens=row.response_tokens,
        )

    return paginate_by_id(session, query, Completion, after, limit, read)


def _evaluation(session: Session, iteration: Iteration, whose: Whose) -> Evaluation:
    if iteration.pruned_at is not None:
        raise Gone(f"iteration {iteration.id} was pruned: its validation answers are gone")
    ids = {
        "result": iteration.result_model_id,
        "parent": iteration.parent_model_id,
        "seed": iteration.seed_model_id,
    }
    model_id = ids[whose]
    found = session.get(Evaluation, (iteration.run_id, model_id)) if model_id else None
    if found is None:
        raise Conflict(
            f"model: iteration {iteration.id} is {iteration.status}: its {whose} has not answered "
            "the validation prompts yet",
            param="model",
        )
    return found
