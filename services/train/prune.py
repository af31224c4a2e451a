"""Jobs that delete what a pruned iteration has left; a worker does it, for a service may not have
the model store mounted."""

import uuid

from fastapi import APIRouter

from shared.base import RequestModel
from shared.db.tables import Iteration, JobKind
from shared.errors import Conflict, NotFound
from shared.jobs.job import NewShard, submit_job
from shared.web.job_routes import JobRead, submitted
from shared.web.session import SessionDep

router = APIRouter(tags=["prune"])


class PruneJobRequest(RequestModel):
    iteration_id: uuid.UUID


@router.put("/prune/{job_id}", status_code=202)
def put_job(job_id: uuid.UUID, request: PruneJobRequest, session: SessionDep) -> JobRead:
    """Delete what nothing needs of an iteration that is marked as pruned. Repeating it finds the
    job."""
    iteration = session.get(Iteration, request.iteration_id)
    if iteration is None:
        raise NotFound(f"iteration_id: no iteration {request.iteration_id}", param="iteration_id")
    if iteration.pruned_at is None:
        raise Conflict(
            f"iteration_id: iteration {iteration.id} is not marked as pruned; "
            "the coordinator's POST /prune does that",
            param="iteration_id",
        )
    job, is_new = submit_job(
        session,
        JobKind.prune,
        request.model_dump(mode="json"),
        [NewShard({})],
        job_id=job_id,
        iteration_id=iteration.id,
        step="prune",
    )
    return submitted(session, job, is_new)
