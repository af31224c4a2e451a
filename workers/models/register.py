"""Stage: a model's source -> a folder of weights that engines and trainings can read.

`python -m workers.models.register --job ID`.
"""

import uuid
from pathlib import Path
from typing import cast

from sqlalchemy import CursorResult, update
from sqlalchemy.orm import Session

from shared.db.engine import transaction
from shared.db.tables import Json, Model
from shared.jobs.shards import Claim
from shared.settings import get_settings
from shared.thinking.formats import NATIVE
from workers.job_spec import JobSpec
from workers.leases import Leases, StageError, bound, leases
from workers.models.folder import native_format, opens_thought
from workers.models.unpack import UnpackError, origin, unpack
from workers.models.weights import weights_sha256
from workers.stage import arguments, start


def main(job: JobSpec, worker: str) -> None:
    with leases(job.id, worker) as held:
        claim = held.claim(on_lost=lambda: None)
        if claim is not None:
            with bound(claim):
                _register(held, claim, job.params)


def _register(held: Leases, claim: Claim, params: Json) -> None:
    with transaction() as session:
        given = session.get_one(Model, uuid.UUID(params["model_id"])).thought_format
    try:
        folder = unpack(params["source"], get_settings().model_store / "base")
    except UnpackError as error:
        failure = StageError(str(error), code="model_unusable", param="source", retry=error.retry)
        held.fail(claim, failure)
        return
    digest, thought_format = weights_sha256(folder), _format(folder, given)

    def write(session: Session) -> None:
        done = session.execute(
            update(Model)
            .where(Model.id == uuid.UUID(params["model_id"]))
            .values(
                path=str(folder.resolve()),
                weights_sha256=digest,
                lineage=origin(folder),
                thought_format=thought_format,
            )
        )
        assert cast("CursorResult[object]", done).rowcount == 1

    held.finish(claim, {"weights_sha256": digest}, write)


def _format(folder: Path, given: Json | None) -> Json | None:
    """As the registration says; else the model's own. Without one, all that it writes is shown.

    Raises `StageError` for one that would show what the template has begun as a thought.
    """
    if given is None:
        native = native_format(folder)
        return None if native is None else native.model_dump()
    if given["response_marker"] != NATIVE.end and opens_thought(folder):
        raise StageError(
            f"thought_format: this model's chat template begins each turn with {NATIVE.begin}, so "
            "its format can only be `think`",
            code="model_unusable",
            param="thought_format",
        )
    return given


if __name__ == "__main__":
    args = arguments(__doc__)
    start(args, lambda job: main(job, args.worker))
