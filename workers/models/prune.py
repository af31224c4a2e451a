"""Stage: deletes for good what nothing else needs of a pruned iteration.

`python -m workers.models.prune --job ID`. It may be killed at any point and run again: first the
database forgets a checkpoint, then whatever lies in a training's folder that no row names is
removed.
"""

import shutil
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import cast

from sqlalchemy import CursorResult, Delete, Update, delete, select, update
from sqlalchemy.orm import Session

from shared.db.engine import transaction
from shared.db.tables import (
    Completion,
    Job,
    JobKind,
    Json,
    JudgeAnswer,
    Model,
    Pair,
    SampledPrompt,
    Shard,
)
from shared.jobs.job import slices
from shared.jobs.shards import Claim
from shared.registry.models import training_folder
from shared.registry.retention import unneeded, unpaired
from workers.job_spec import JobSpec
from workers.leases import Leases, StageError, bound, leases
from workers.models.weights import folder_bytes
from workers.stage import arguments, start
from workers.train.files import CONFIG, LOG, METRICS, RESULT

SHARDS = 32
"""Number of shards whose completions one transaction deletes."""
RECORD = (CONFIG, METRICS, RESULT, LOG)
"""Files that tell how a training went; kept beside a checkpoint that stays."""


def main(job: JobSpec, worker: str) -> None:
    with leases(job.id, worker) as held:
        claim = held.claim(on_lost=lambda: None)  # two at work harm nothing
        if claim is not None:
            with bound(claim):
                _run(held, claim, uuid.UUID(job.params["iteration_id"]))


def _run(held: Leases, claim: Claim, iteration_id: uuid.UUID) -> None:
    with transaction() as session:
        trainings = _jobs(session, iteration_id, JobKind.train)
    try:
        result = prune(iteration_id, trainings)
    except OSError as error:
        held.fail(claim, StageError(str(error), code="prune_failed", retry=True))
        return
    held.finish(claim, result, lambda _: None)


def prune(iteration_id: uuid.UUID, trainings: Sequence[uuid.UUID]) -> Json:
    """Returns what it deleted itself: a repeat counts only what a killed one had left."""
    with transaction() as session:
        checkpoints = forget_checkpoints(session, trainings)
    completions = _delete_completions(iteration_id, trainings)
    freed = 0
    for job_id in trainings:
        with transaction() as session:
            kept = _paths(session, job_id)
        freed += remove_leftovers(training_folder(job_id), kept)
    return {"checkpoints": checkpoints, "completions": completions, "bytes": freed}


def forget_checkpoints(session: Session, trainings: Sequence[uuid.UUID]) -> int:
    # The rows first, and in a statement of its own what refers to them: it sees the work of
    # whoever held a row before us. Those that come now wait in `model_store.resolve`. FOR UPDATE,
    # since an UPDATE of the path alone would not conflict with their FOR KEY SHARE.
    ours = Model.job_id.in_(trainings)
    unnamed = select(Model.id).where(ours, Model.name.is_(None)).order_by(Model.id)
    session.execute(unnamed.with_for_update())
    return _count(session, update(Model).where(ours, unneeded()).values(path=None))


def _delete_completions(iteration_id: uuid.UUID, trainings: Sequence[uuid.UUID]) -> int:
    """Pairs stay, with their completions, where a checkpoint that was trained on them does."""
    with transaction() as session:
        of_lineage = session.scalar(
            select(Model.id).where(Model.job_id.in_(trainings), Model.path.is_not(None)).limit(1)
        )
        samplings = _jobs(session, iteration_id, JobKind.generate)
        # Left by judge jobs that did not succeed.
        judgings = _jobs(session, iteration_id, JobKind.judge)
        session.execute(delete(JudgeAnswer).where(JudgeAnswer.job_id.in_(judgings)))
        shards = session.scalars(
            select(Shard.id).where(Shard.job_id.in_(samplings)).order_by(Shard.id)
        ).all()
    deleted = 0
    for _, some in slices(shards, SHARDS):
        ours = Completion.shard_id.in_(some)
        with transaction() as session:
            if of_lineage is None:
                chosen = select(Completion.id).where(ours)
                session.execute(delete(Pair).where(Pair.chosen_id.in_(chosen)))
            deleted += _count(session, delete(Completion).where(ours, unpaired()))
    left = (
        select(Completion.id)
        .where(Completion.job_id == SampledPrompt.job_id)
        .where(Completion.prompt_index == SampledPrompt.prompt_index)
    )
    with transaction() as session:
        ours = SampledPrompt.job_id.in_(samplings)
        session.execute(delete(SampledPrompt).where(ours, ~left.exists()))
    return deleted


def _jobs(session: Session, iteration_id: uuid.UUID, kind: JobKind) -> Sequence[uuid.UUID]:
    query = select(Job.id).where(Job.iteration_id == iteration_id, Job.kind == kind)
    return session.scalars(query).all()


def _count(session: Session, statement: Update | Delete) -> int:
    options = {"synchronize_session": False}
    done = session.execute(statement, execution_options=options)
    return cast("CursorResult[object]", done).rowcount


def _paths(session: Session, job_id: uuid.UUID) -> set[Path]:
    """Paths of a training's checkpoints below its folder: rows hold the address where the store
    was mounted when they were written."""
    paths = session.scalars(
        select(Model.path).where(Model.job_id == job_id, Model.path.is_not(None))
    )
    parts = [Path(path).parts for path in paths if path]
    return {Path(*p[p.index(str(job_id)) + 1 :]) for p in parts}


def remove_leftovers(folder: Path, kept: Collection[Path]) -> int:
    """Remove all but these folders, and the records beside them; returns the bytes freed."""
    if not folder.exists():
        return 0
    if not kept:
        freed = folder_bytes(folder)
        shutil.rmtree(folder)
        return freed
    freed = 0
    for child in folder.iterdir():
        name = Path(child.name)
        if name in kept or child.name in RECORD:
            continue
        inside = {Path(*path.parts[1:]) for path in kept if path.parts[0] == child.name}
        if inside or child.is_dir():
            freed += remove_leftovers(child, inside)
        else:
            freed += child.stat().st_size
            child.unlink()
    return freed


if __name__ == "__main__":
    args = arguments(__doc__)
    start(args, lambda job: main(job, args.worker))
