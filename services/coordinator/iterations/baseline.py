"""The direct baseline of a run: the same seed, prompts, judge, loss and validation, no thoughts.

Every claim about thinking is a comparison with it (Wu et al., arXiv 2410.10630, section 3).
"""

import uuid

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.db.tables import Iteration
from shared.schemas.requests import DIRECT, IterationRequest
from shared.thinking.formats import NONE


def direct(request: IterationRequest) -> IterationRequest:
    """The request for its baseline, which is never served: it is there to be measured."""
    return request.model_copy(
        update={
            "name": request.name + DIRECT,
            "thought_format": NONE,
            "baseline": False,
            "promote": "never",
        }
    )


def baseline_of(session: Session, run_id: uuid.UUID) -> uuid.UUID | None:
    """The run that is the direct baseline of this one."""
    query = select(Iteration.run_id).where(Iteration.baseline_of == run_id)
    return session.scalar(query.limit(1))


def counterpart(session: Session, iteration: Iteration) -> Iteration | None:
    """The iteration of the same number with thoughts, if this one has none, or without them."""
    run_id = iteration.baseline_of or baseline_of(session, iteration.run_id)
    return session.scalar(
        select(Iteration).where(Iteration.run_id == run_id, Iteration.number == iteration.number)
    )
