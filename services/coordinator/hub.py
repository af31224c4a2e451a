"""Prompts from a Hugging Face dataset, with the user's mapping of its columns."""

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from shared.errors import InvalidRequest
from shared.models import Split
from shared.schemas import Strict


class HubDataset(Strict):
    """Which rows and columns to take. Columns name the dataset's own fields."""

    id: str = Field(pattern=r"^[\w.-]+(/[\w.-]+)?$", max_length=200)
    config: str | None = Field(default=None, max_length=200)
    revision: str = Field(default="main", max_length=200)
    train_split: str = Field(default="train", max_length=200)
    validation_split: str | None = Field(default=None, max_length=200)
    """A split of the dataset's own; without it the last `validation_rows` of the other one."""
    validation_rows: int = Field(default=500, ge=1, le=100_000)
    text_column: str = Field(default="prompt", max_length=200)
    """A column of text, or of chat messages, of which the first user message is taken."""
    category_column: str | None = Field(default=None, max_length=200)
    checks_column: str | None = Field(default=None, max_length=200)
    limit: int = Field(default=10_000, ge=1, le=1_000_000)
    """Most rows taken of each split."""

    @property
    def source(self) -> str:
        return f"hf:{self.id}@{self.revision}"


def read_hub(wanted: HubDataset) -> Iterator[dict[str, Any]]:
    """Prompt lines, streamed; the hub's errors become errors of the field `hf`."""
    train = list(_rows(wanted, wanted.train_split, Split.train))
    if wanted.validation_split is not None:
        yield from train
        yield from _rows(wanted, wanted.validation_split, Split.validation)
        return
    held_out = min(wanted.validation_rows, len(train) // 2)
    for i, line in enumerate(train):
        split = Split.validation if i >= len(train) - held_out else Split.train
        yield {**line, "split": split}


def _rows(wanted: HubDataset, name: str, split: Split) -> Iterator[dict[str, Any]]:
    import datasets  # noqa: PLC0415  (pulls in pyarrow and pandas; few uploads need it)

    try:
        rows = datasets.load_dataset(
            wanted.id, wanted.config, split=name, revision=wanted.revision, streaming=True
        )
        for row in rows.take(wanted.limit):
            yield _line(wanted, row, split)
    except InvalidRequest:
        raise
    except Exception as error:  # the library raises some twenty kinds for one: it cannot be had
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise InvalidRequest(
            f"hf: cannot read split {name!r} of {wanted.id!r}: {reason}",
            param="hf",
            code="dataset_unavailable",
        ) from error


def _line(wanted: HubDataset, row: dict[str, Any], split: Split) -> dict[str, Any]:
    if wanted.text_column not in row:
        raise InvalidRequest(
            f"hf.text_column: no column {wanted.text_column!r}; there are {sorted(row)}",
            param="hf.text_column",
        )
    line: dict[str, Any] = {"text": _text(row[wanted.text_column]), "split": split}
    if wanted.category_column:
        line["category"] = row.get(wanted.category_column)
    if wanted.checks_column:
        line["checks"] = row.get(wanted.checks_column) or []
    return line


def _text(value: Any) -> Any:
    """The prompt in a cell: text as it is, of chat messages the first of the user's."""
    if isinstance(value, list):
        users = (m.get("content") for m in value if isinstance(m, dict) and m.get("role") == "user")
        return next(users, None)
    return value
