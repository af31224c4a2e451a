"""Rows for tests, with defaults for what a test does not care about."""

import uuid
from typing import Any

from sqlalchemy.orm import Session

from shared.models import Dataset, Model, Prompt, Split

CHECKS = [{"kind": "words", "at_most": 10, "at_least": None}]


def model(session: Session, **given: Any) -> Model:
    values: dict[str, Any] = {
        "id": uuid.uuid4(),
        "name": "seed",
        "version": 1,
        "source": "test",
        "path": "/nowhere",
        "weights_sha256": "0" * 64,
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
