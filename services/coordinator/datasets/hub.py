"""Prompts from a Hugging Face dataset, with the user's mapping of its columns."""

import json
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from pydantic import Field

from shared.base import RequestModel
from shared.db.tables import Split
from shared.errors import InvalidRequest, TooLarge
from shared.settings import get_settings

SETTINGS = ".huggingface.yaml"
"""In a repository, it overrides what the dataset's card says."""


class HubDataset(RequestModel):
    """The rows and columns to take from a Hub dataset. Columns name the dataset's own fields."""

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
    """A column of lists of checks, or of JSON text that holds one."""
    limit: int = Field(default=10_000, ge=1, le=1_000_000)
    """Most rows taken of each split."""

    def source(self, commit: str) -> str:
        """All that says which prompts these are, as one line: `hf:<id>@<commit>?<the rest>`."""
        rest = self.model_dump(exclude={"id", "revision"}, exclude_none=True)
        return f"hf:{self.id}@{commit}?{urlencode(rest)}"


def commit_of(wanted: HubDataset) -> str:
    """The commit that the revision stands for now, so that all is read from one and it is known."""
    with _readable(wanted, f"revision {wanted.revision!r}"):
        from huggingface_hub import HfApi  # noqa: PLC0415  (see `_rows`)

        info = HfApi().dataset_info(wanted.id, revision=wanted.revision)
    card = getattr(info.card_data, "configs", None)
    if any(f.rfilename == SETTINGS for f in info.siblings or ()) or _leads_out(card):
        raise _not_its_own(wanted)
    return str(info.sha)


def _leads_out(value: Any) -> bool:
    """Tell if a part of a dataset's description names a file outside its repository. The library
    would read it: a file of this server, or an address that this server can reach."""
    match value:
        case str():
            parts = value.split("/")
            return "://" in value or "::" in value or value.startswith(("/", "~")) or ".." in parts
        case dict():
            return any(map(_leads_out, value.values()))
        case list():
            return any(map(_leads_out, value))
    return False


def _not_its_own(wanted: HubDataset) -> InvalidRequest:
    return InvalidRequest(
        f"hf.id: {wanted.id!r} takes data from outside of its repository, which is not read",
        param="hf.id",
    )


def read_hub(wanted: HubDataset, commit: str) -> Iterator[dict[str, Any]]:
    """Prompt lines, streamed; the hub's errors become errors of the field `hf`."""
    train = _rows(wanted, wanted.train_split, commit)
    if wanted.validation_split is None:
        return _held_out(_bounded(train), wanted.validation_rows)
    validation = _rows(wanted, wanted.validation_split, commit)
    return _bounded(chain(_of(Split.train, train), _of(Split.validation, validation)))


def _of(split: Split, lines: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return ({**line, "split": split} for line in lines)


def _bounded(lines: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """As many bytes as an upload may have, before any of them are kept in memory or in a file."""
    limit, size = get_settings().max_upload_bytes, 0
    for line in lines:
        size += len(json.dumps(line, ensure_ascii=False, default=str).encode(errors="replace"))
        if size > limit:
            raise TooLarge(f"hf: larger than {limit} bytes; set a lower hf.limit", param="hf")
        yield line


def _held_out(lines: Iterator[dict[str, Any]], wanted: int) -> Iterator[dict[str, Any]]:
    """The last `wanted` lines, though half of all at most, are for validation."""
    last: deque[dict[str, Any]] = deque()
    count = 0
    for count, line in enumerate(lines, 1):  # noqa: B007
        last.append(line)
        if len(last) > wanted:
            yield {**last.popleft(), "split": Split.train}
    train = len(last) - min(wanted, count // 2)
    for i, line in enumerate(last):
        yield {**line, "split": Split.train if i < train else Split.validation}


def _rows(wanted: HubDataset, split: str, commit: str) -> Iterator[dict[str, Any]]:
    if Path(wanted.id).exists():  # the library would read that
        raise InvalidRequest(f"hf.id: {wanted.id!r} is a folder of this server", param="hf.id")
    with _readable(wanted, f"split {split!r}"):
        # It pulls in pyarrow and pandas, which few uploads need and a lean image may lack.
        import datasets  # noqa: PLC0415

        builder = datasets.load_dataset_builder(wanted.id, wanted.config, revision=commit)
        files = [file for names in (builder.config.data_files or {}).values() for file in names]
        if not all(str(file).startswith(f"hf://datasets/{wanted.id}@") for file in files):
            raise _not_its_own(wanted)
        for row in builder.as_streaming_dataset(split=split).take(wanted.limit):
            yield _line(wanted, row)


@contextmanager
def _readable(wanted: HubDataset, what: str) -> Iterator[None]:
    try:
        yield
    except InvalidRequest:
        raise
    except ImportError as error:
        raise InvalidRequest(
            f"hf: this server reads no Hugging Face datasets, for {error.name} is not installed: "
            "pip install 'forethought[hub]', or upload the dataset",
            param="hf",
            code="hub_not_installed",
        ) from error
    except Exception as error:  # the library raises some twenty kinds for one: it cannot be had
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise InvalidRequest(
            f"hf: cannot read {what} of {wanted.id!r}: {reason}",
            param="hf",
            code="dataset_unavailable",
        ) from error


def _line(wanted: HubDataset, row: dict[str, Any]) -> dict[str, Any]:
    for field in ("text_column", "category_column", "checks_column"):
        column = getattr(wanted, field)
        if column is not None and column not in row:
            raise InvalidRequest(
                f"hf.{field}: no column {column!r}; there are {sorted(row)}", param=f"hf.{field}"
            )
    line: dict[str, Any] = {"text": _text(row[wanted.text_column])}
    if wanted.category_column:
        line["category"] = row[wanted.category_column]
    if wanted.checks_column:
        line["checks"] = _checks(row[wanted.checks_column])
    return line


def _checks(value: Any) -> Any:
    """The checks in a cell. What is no list of checks is left to the line's own validation."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return value
    if not isinstance(value, list):
        return value or []
    # Arrow gives each check the fields of all kinds, empty where they are not its own.
    return [
        {k: v for k, v in check.items() if v is not None} if isinstance(check, dict) else check
        for check in value
    ]


def _text(value: Any) -> Any:
    """The prompt in a cell: text as it is, of chat messages the first of the user's."""
    if isinstance(value, list):
        users = (m.get("content") for m in value if isinstance(m, dict) and m.get("role") == "user")
        return next(users, None)
    return value
