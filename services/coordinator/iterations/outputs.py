"""Routes over an iteration's outputs: its completions with scores, and its pairs."""

import uuid

from fastapi import APIRouter
from sqlalchemy import and_, select
from sqlalchemy.orm import aliased

from services.coordinator.iterations.state import find, format_of, job_id
from shared.auth.thoughts import MayReadThoughts, shown
from shared.base import ResponseModel
from shared.db.tables import Completion, Judgment, Pair, Prompt
from shared.web.paging import Limit, Page, paginate_by_id
from shared.web.session import SessionDep

router = APIRouter(tags=["iterations"])


class PairRead(ResponseModel):
    """A preference pair; whole outputs, and thoughts begun in a response, only with the key that
    may read thoughts."""

    id: int
    prompt: str
    chosen: str | None
    rejected: str | None
    chosen_output: str | None
    rejected_output: str | None
    chosen_score: float
    rejected_score: float | None
    margin: float | None


@router.get("/iterations/{iteration_id}/pairs")
def list_pairs(
    iteration_id: uuid.UUID,
    session: SessionDep,
    thoughts: MayReadThoughts,
    after: int | None = None,
    limit: Limit = 100,
) -> Page[PairRead]:
    fmt = format_of(find(session, iteration_id))

    chosen, rejected = aliased(Completion), aliased(Completion)
    query = (
        select(Pair, Prompt.text, chosen, rejected)
        .join(Prompt, Prompt.id == Pair.prompt_id)
        .join(chosen, chosen.id == Pair.chosen_id)
        .join(rejected, rejected.id == Pair.rejected_id)
        .where(Pair.iteration_id == iteration_id)
    )

    def read_pair(row: Pair, prompt: str, chosen: Completion, rejected: Completion) -> PairRead:
        return PairRead(
            id=row.id,
            prompt=prompt,
            chosen=shown(chosen, fmt, thoughts),
            rejected=shown(rejected, fmt, thoughts),
            chosen_output=chosen.output if thoughts else None,
            rejected_output=rejected.output if thoughts else None,
            chosen_score=row.chosen_score,
            rejected_score=row.rejected_score,
            margin=row.margin,
        )

    return paginate_by_id(session, query, Pair, after, limit, read_pair)


class CandidateRead(ResponseModel):
    """A sampled output with its score; the output itself, and thoughts begun in the response, only
    with the key that may read them."""

    id: int
    prompt: str
    sample_index: int
    response: str | None
    output: str | None
    score: float | None
    thought_tokens: int
    response_tokens: int


@router.get("/iterations/{iteration_id}/completions")
def list_completions(
    iteration_id: uuid.UUID,
    session: SessionDep,
    thoughts: MayReadThoughts,
    after: int | None = None,
    limit: Limit = 100,
) -> Page[CandidateRead]:
    fmt = format_of(find(session, iteration_id))
    judged = and_(
        Judgment.completion_id == Completion.id,
        Judgment.job_id == job_id(iteration_id, "judge"),
    )
    query = (
        select(Completion, Prompt.text, Judgment.score)
        .join(Prompt, Prompt.id == Completion.prompt_id)
        .outerjoin(Judgment, judged)
        .where(Completion.job_id == job_id(iteration_id, "generate"))
    )

    def read_candidate(row: Completion, prompt: str, score: float | None) -> CandidateRead:
        return CandidateRead(
            id=row.id,
            prompt=prompt,
            sample_index=row.sample_index,
            response=shown(row, fmt, thoughts),
            output=row.output if thoughts else None,
            score=score,
            thought_tokens=row.thought_tokens,
            response_tokens=row.response_tokens,
        )

    return paginate_by_id(session, query, Completion, after, limit, read_candidate)
