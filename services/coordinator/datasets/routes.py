"""Datasets: JSONL uploads, files on the server, Hugging Face datasets with a column mapping."""

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, UploadFile
from pydantic import Field
from sqlalchemy import func, insert, select
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.orm import Session

from services.coordinator.datasets.hub import HubDataset, commit_of, read_hub
from services.coordinator.datasets.jsonl import PromptLine, parse_lines, validated
from shared.auth import audit
from shared.base import RequestModel, ResponseModel
from shared.db.engine import transaction
from shared.db.tables import Dataset, Json, Prompt, Split
from shared.errors import Conflict, InvalidRequest, NotFound, TooLarge
from shared.schemas.requests import InlinePrompt, Name
from shared.settings import get_settings
from shared.web.idempotency import Once, OnceDep
from shared.web.paging import Limit, Page, paginate, unix
from shared.web.session import SessionDep

router = APIRouter(tags=["datasets"])
CHUNK = 1000
CHUNK_BYTES = 8 * 1024 * 1024
"""Bytes of rows that are written at once: a thousand of the longest lines would be gigabytes."""
UPLOAD = "/datasets/upload"


class DatasetSource(RequestModel):
    """A dataset from a file under the server's data root, or from the Hugging Face hub."""

    name: Name
    path: str | None = Field(default=None, max_length=1000)
    hf: HubDataset | None = None


class Upload(RequestModel):
    """The part of an upload that tells if another one is the same."""

    name: Name
    sha256: str


class DatasetRead(ResponseModel):
    """A dataset with the number of its prompts."""

    id: uuid.UUID
    object: Literal["dataset"]
    name: str
    source: str
    """`upload`, `inline`, the path of a file, or `hf:<id>@<commit>?<settings>`."""
    sha256: str
    """SHA-256 of its prompts, written as canonical JSONL."""
    train_prompts: int
    validation_prompts: int
    created_at: int


@router.post(UPLOAD, status_code=201)
def upload(
    session: SessionDep,
    once: OnceDep,
    name: Annotated[Name, Form()],
    file: Annotated[UploadFile, File()],
) -> DatasetRead:
    """Upload JSONL, one prompt a line: `{"text", "split"?, "category"?, "checks"?}`."""
    _refuse_too_large(file.size or 0, "file")
    digest = hashlib.file_digest(file.file, "sha256")  # type: ignore[arg-type]
    body = Upload(name=name, sha256=digest.hexdigest())
    file.file.seek(0)

    def take() -> DatasetRead:
        return read(session, create(session, name, "upload", parse_lines(file.file), "file"))

    return once(body, take, DatasetRead)


@router.post("/datasets", status_code=201)
def from_source(request: DatasetSource, session: SessionDep, once: OnceDep) -> DatasetRead:
    """Take a dataset from a server-side file or from the Hugging Face hub."""
    if (request.path is None) == (request.hf is None):
        raise InvalidRequest("path: exactly one of path and hf is required", param="path")
    if request.hf is not None:
        return _from_hub(session, once, request, request.hf)
    return once(request, lambda: _from_file(session, request), DatasetRead)


def _from_file(session: Session, request: DatasetSource) -> DatasetRead:
    assert request.path is not None
    with _open_under_root(request.path) as file:
        _refuse_too_large(os.fstat(file.fileno()).st_size, "path")
        lines = parse_lines(file)
        return read(session, create(session, request.name, request.path, lines, "path"))


def _refuse_too_large(size: int, param: str) -> None:
    limit = get_settings().max_upload_bytes
    if size > limit:
        raise TooLarge(f"{param}: larger than {limit} bytes", param=param)


def _from_hub(session: Session, once: Once, request: DatasetSource, hub: HubDataset) -> DatasetRead:
    """Read it first and write it then: no transaction is open while it comes over the network."""
    if (answered := once.answered(request, DatasetRead)) is not None:
        return answered
    with transaction() as early:
        if early.scalar(select(Dataset.id).where(Dataset.name == request.name)):
            raise _taken(request.name)
    commit = commit_of(hub)
    with _kept(validated(enumerate(read_hub(hub, commit), 1))) as lines:

        def take() -> DatasetRead:
            return read(session, create(session, request.name, hub.source(commit), lines, "hf"))

        return once(request, take, DatasetRead)


@contextmanager
def _kept(lines: Iterable[PromptLine]) -> Iterator[Iterator[PromptLine]]:
    """All of the lines, in a file."""
    with TemporaryFile() as file:
        for line in lines:
            file.write(line.model_dump_json().encode() + b"\n")
        file.seek(0)
        yield map(PromptLine.model_validate_json, file)


@router.get("/datasets")
def list_datasets(
    session: SessionDep, after: uuid.UUID | None = None, limit: Limit = 20
) -> Page[DatasetRead]:
    rows = paginate(session, select(Dataset), Dataset, after, limit, lambda row: row)
    return Page[DatasetRead].model_validate(dict(rows) | {"data": read_all(session, rows.data)})


@router.get("/datasets/{name}")
def get_dataset(name: str, session: SessionDep) -> DatasetRead:
    found = session.scalar(select(Dataset).where(Dataset.name == name))
    if found is None:
        raise NotFound(f"no dataset {name!r}", param="name", code="dataset_not_found")
    return read(session, found)


def _taken(name: str) -> Conflict:
    return Conflict(f"name: dataset {name!r} exists", param="name", code="dataset_exists")


def create(
    session: Session, name: str, source: str, lines: Iterable[PromptLine], param: str
) -> Dataset:
    """Insert a dataset; all of it or nothing. `param` is the field that gave the lines."""
    values = {"id": uuid.uuid4(), "name": name, "source": source, "sha256": ""}
    new = pg_insert(Dataset).values(values).on_conflict_do_nothing()
    # Another that takes the name at the same moment is waited for.
    dataset: Dataset | None = session.scalar(new.returning(Dataset))
    if dataset is None:
        raise _taken(name)
    digest, count = hashlib.sha256(), 0
    for chunk in _chunks(lines):
        rows = []
        for row, canonical in chunk:
            digest.update(canonical)
            rows.append({**row, "dataset_id": dataset.id, "position": count})
            count += 1
        session.execute(insert(Prompt), rows)
    if count == 0:
        message = f"{param}: the dataset has no prompts"
        raise InvalidRequest(message, param=param, code="empty_dataset")
    dataset.sha256 = digest.hexdigest()
    audit.record(session, "dataset.create", name, prompts=count)
    session.flush()
    return dataset


def _chunks(lines: Iterable[PromptLine]) -> Iterator[list[tuple[Json, bytes]]]:
    """Rows of prompts with their canonical JSONL, as many as are written at once."""
    chunk, size = [], 0
    for line in lines:
        row = line.model_dump(mode="json")
        canonical = json.dumps(row, sort_keys=True).encode() + b"\n"
        chunk.append((row, canonical))
        size += len(canonical)
        if len(chunk) == CHUNK or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def insert_inline(
    session: Session, name: str, train: list[InlinePrompt], validation: list[InlinePrompt]
) -> Dataset:
    """The prompts of a request as a dataset, so that lineage knows them like any other."""
    lines = [
        PromptLine(text=p.text, category=p.category, checks=p.checks, split=split)
        for split, prompts in ((Split.train, train), (Split.validation, validation))
        for p in prompts
    ]
    return create(session, name, "inline", lines, "prompts")


def read(session: Session, dataset: Dataset) -> DatasetRead:
    return read_all(session, [dataset])[0]


def read_all(session: Session, datasets: Sequence[Dataset]) -> list[DatasetRead]:
    """Answers for all of the datasets, whose prompts one statement counts."""
    rows = session.execute(
        select(Prompt.dataset_id, Prompt.split, func.count())
        .where(Prompt.dataset_id.in_([dataset.id for dataset in datasets]))
        .group_by(Prompt.dataset_id, Prompt.split)
    )
    counts = {(dataset_id, split): count for dataset_id, split, count in rows}
    return [
        DatasetRead(
            id=dataset.id,
            object="dataset",
            name=dataset.name,
            source=dataset.source,
            sha256=dataset.sha256,
            train_prompts=counts.get((dataset.id, Split.train), 0),
            validation_prompts=counts.get((dataset.id, Split.validation), 0),
            created_at=unix(dataset.created_at),
        )
        for dataset in datasets
    ]


def _open_under_root(path: str) -> Any:
    """A file under the data root; names, links and `..` cannot leave it."""
    root = get_settings().data_root
    if root is None:
        raise InvalidRequest(
            "path: this server reads no files; set FORETHOUGHT_DATA_ROOT or upload the dataset",
            param="path",
        )
    try:
        full = (root / path).resolve()
        if full.is_relative_to(root.resolve()) and full.is_file():
            return full.open("rb")
    except (OSError, RuntimeError) as error:  # a name too long, a link to itself, no permission
        reason = getattr(error, "strerror", None) or "it cannot be followed"
        raise InvalidRequest(f"path: cannot read {path!r}: {reason}", param="path") from None
    raise InvalidRequest(f"path: no file {path!r} under the data root", param="path")
