"""The models' routes, passed on to the train service, which owns the table."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from services.coordinator.job_services import Services
from shared.schemas.requests import ModelRegistration, Promotion
from shared.web.idempotency import KeyHeader

router = APIRouter(tags=["models"])

Reference = Annotated[str, Path(pattern=r"^[A-Za-z0-9@._-]{1,200}$")]
Model = dict[str, Any]
"""As the train service documents it: `GET /models/{reference}` there."""


@router.post("/models", status_code=202)
def register(request: ModelRegistration, key: KeyHeader = None) -> Model:
    """Register a model by Hub id, folder or GGUF file; usable once its status is `ready`."""
    train = Services.from_settings().train
    return train.post("/models", request.model_dump(mode="json"), idempotency_key=key)


@router.get("/models")
def list_models(
    after: Annotated[str, Query(max_length=64)] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    checkpoints: bool = False,
) -> dict[str, Any]:
    params: dict[str, Any] = {"limit": limit, "checkpoints": checkpoints}
    if after:
        params["after"] = after
    return Services.from_settings().train.get("/models", **params)


@router.get("/models/{reference}")
def get_model(reference: Reference) -> Model:
    """By id, `name@v1`, or `name` for the latest version."""
    return Services.from_settings().train.get(f"/models/{reference}")


@router.post("/models/{reference}/promote")
def promote(reference: Reference, promotion: Promotion | None = None) -> Model:
    """Serve this model in chat from now on."""
    body = promotion.model_dump(mode="json") if promotion else None
    return Services.from_settings().train.post(f"/models/{reference}/promote", body)
