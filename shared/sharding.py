"""Cutting bulk work into shards."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def slices(items: Sequence[T], size: int) -> Iterator[tuple[int, Sequence[T]]]:
    """(offset, slice) of at most `size` items each."""
    for start in range(0, len(items), size):
        yield start, items[start : start + size]
