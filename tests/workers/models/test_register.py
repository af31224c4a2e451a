"""What a registration makes of a Hub that gives no model."""

import uuid

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from sqlalchemy import Engine, select

from shared.db.engine import transaction
from shared.db.tables import Job, JobKind, Shard, Status
from shared.jobs.job import NewShard, submit_job
from tests.support import factories
from tests.support.stages import run_stage
from workers.models import register


def answered(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    request = httpx2.Request("GET", "https://huggingface.co")
    return kind(f"HTTP {status}", response=httpx2.Response(status, request=request))


def submitted() -> uuid.UUID:
    with transaction() as session:
        model = factories.model(session, path=None, weights_sha256=None)
        params = {"model_id": str(model.id), "source": "some/model"}
        job_id = uuid.uuid4()
        submit_job(session, JobKind.register, params, [NewShard({})], job_id=job_id)
        return job_id


@pytest.mark.parametrize(
    ("error", "offline", "shard", "job"),
    [
        (httpx2.ReadTimeout("slow"), False, Status.queued, Status.running),
        (httpx2.ConnectError("no route"), False, Status.queued, Status.running),
        (answered(HfHubHTTPError, 503), False, Status.queued, Status.running),
        (answered(HfHubHTTPError, 429), False, Status.queued, Status.running),
        (answered(RepositoryNotFoundError, 404), False, Status.failed, Status.failed),
        (answered(GatedRepoError, 403), False, Status.failed, Status.failed),
        (OfflineModeIsEnabled("offline"), True, Status.failed, Status.failed),
    ],
)
def test_a_hub_that_does_not_answer_is_asked_again_and_one_that_refuses_is_not(
    error: Exception,
    offline: bool,
    shard: Status,
    job: Status,
    clean_database: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def model_info(*_: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(HfApi, "model_info", model_info)
    id_ = submitted()
    run_stage(register.main, id_)
    with transaction() as session:
        row = session.scalars(select(Shard).where(Shard.job_id == id_)).one()
        assert (row.status, session.get_one(Job, id_).status) == (shard, job)
        assert row.error is not None
        assert "cannot be fetched from the Hub" in row.error["message"]
