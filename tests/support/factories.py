"""Rows for tests, with defaults for what a test does not care about."""

import uuid
from datetime import timedelta
from typing import Any

from sqlalchemy import func
from sqlalchemy.orm import Session

from shared.db.tables import Dataset, Model, Prompt, Serving, Split
from shared.thinking.formats import GENERIC

CHECKS = [{"kind": "words", "at_most": 10, "at_least": None}]
WEIGHTS = "0" * 64
"""Hash of a model's, unless one is given; an engine that serves them is labelled with it."""


def model(session: Session, **given: Any) -> Model:
    values: dict[str, Any] = {
        "id": uuid.uuid4(),
        "name": "seed",
        "version": 1,
        "source": "test",
        "path": "/nowhere",
        "weights_sha256": WEIGHTS,
        "lineage": {},
    }
    row = Model(**(values | given))
    session.add(row)
    session.flush()
    return row


def dataset(session: Session, train: int = 6, validation: int = 2, **given: Any) -> Dataset:
    row = Dataset(id=uuid.uuid4(), source="upload", sha256="", **({"name": "prompts"} | given))
    session.add(row)
    session.flush()
    splits = [Split.train] * train + [Split.validation] * validation
    session.add_all(
        Prompt(dataset_id=row.id, position=i, split=split, text=f"Prompt {i}?", checks=CHECKS)
        for i, split in enumerate(splits)
    )
    session.flush()
    return row


def served(session: Session, engine_url: str, **given: Any) -> Model:
    """A promoted model, `demo@v1`, that the engine at this address serves."""
    defaults = {
        "name": "demo",
        "thought_format": GENERIC.model_dump(),
        "lineage": {"config": {"sampling": {"max_thought_tokens": 200}}},
        "promoted_at": func.now(),
    }
    row = model(session, **(defaults | given))
    # Nobody renews this row.
    for_long = func.now() + timedelta(days=1)
    session.add(
        Serving(
            engine_url=engine_url, model_id=row.id, state="ready", detail="", updated_at=for_long
        )
    )
    return row
