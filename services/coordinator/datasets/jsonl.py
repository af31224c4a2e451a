"""The lines of a JSONL dataset, checked one by one."""

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import orjson
from pydantic import Field, ValidationError

from shared.base import RequestModel
from shared.db.tables import Split
from shared.errors import InvalidRequest
from shared.schemas.checks import Check
from shared.schemas.requests import Text
from shared.web.field_errors import field_error

MAX_LINE_BYTES = 4 * 1024 * 1024
"""Maximum bytes of a line: more than the longest text takes with every character escaped."""


class PromptLine(RequestModel):
    """A line of a JSONL dataset."""

    text: Text
    split: Split = Split.train
    category: str | None = Field(default=None, max_length=200)
    checks: list[Check] = Field(default_factory=list, max_length=32)


def parse_lines(file: BinaryIO) -> Iterator[PromptLine]:
    """Each line validated; the first bad one is named by its number and field."""

    def rows() -> Iterator[tuple[int, Any]]:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            if len(line) > MAX_LINE_BYTES:
                raise InvalidRequest(
                    f"line {number} is longer than {MAX_LINE_BYTES} bytes",
                    param=f"lines.{number}",
                    code="invalid_line",
                )
            if not line.strip():
                continue
            try:
                yield number, orjson.loads(line)
            except ValueError as error:
                raise InvalidRequest(
                    f"line {number} is not JSON: {error}",
                    param=f"lines.{number}",
                    code="invalid_line",
                ) from None

    return validated(rows())


def validated(rows: Iterable[tuple[int, Any]]) -> Iterator[PromptLine]:
    for number, row in rows:
        try:
            yield PromptLine.model_validate(row)
        except ValidationError as error:
            found = field_error(error.errors(), row)
            raise InvalidRequest(
                f"line {number}: {found.field or 'the line'}: {found.message}",
                param=f"lines.{number}.{found.field}".rstrip("."),
                code="invalid_line",
            ) from None
