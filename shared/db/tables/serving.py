"""The state of the inference engines, which chat reads."""

import uuid
from datetime import datetime

from sqlalchemy import ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.tables.base import Base


class Serving(Base):
    """One inference engine and the model that it serves."""

    __tablename__ = "serving"

    engine_url: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("models.id"))
    state: Mapped[str]
    """`starting`, `swapping`, `ready` or `failed`."""
    detail: Mapped[str] = mapped_column(default="")
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())
