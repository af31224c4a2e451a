"""The direct baseline of a run: the same seed, prompts, judge, loss and validation, no thoughts.

Every claim about thinking is a comparison with it (Wu et al., arXiv 2410.10630, section 3).
"""

import uuid
from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.db.tables import Iteration
from shared.schemas.requests import DIRECT, IterationRequest
from shared.thinking.formats import NONE


def direct(request: IterationRequest) -> IterationRequest:
    """The request for a run's baseline, which is only measured and never served."""
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
    return baselines_of(session, {run_id}).get(run_id)


def baselines_of(session: Session, run_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, uuid.UUID]:
    """Run -> the run that is its direct baseline."""
    query = select(Iteration.baseline_of, Iteration.run_id).distinct()
    rows = session.execute(query.where(Iteration.baseline_of.in_(run_ids)))
    return {of: run_id for of, run_id in rows if of is not None}


def counterpart(session: Session, iteration: Iteration) -> Iteration | None:
    """The iteration of the same number with thoughts, if this one has none, or without them."""
    run_id = iteration.baseline_of or baseline_of(session, iteration.run_id)
    return session.scalar(
        select(Iteration).where(Iteration.run_id == run_id, Iteration.number == iteration.number)
    )
