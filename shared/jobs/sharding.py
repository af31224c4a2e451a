"""Cutting bulk work into shards."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def slices(
    items: Sequence[T], size: int, joined: Callable[[T, T], bool] = lambda _, __: False
) -> Iterator[tuple[int, Sequence[T]]]:
    """(offset, slice) of `size` items each, fewer in the last; no cut parts two neighbours that are
    `joined`, so a slice with such may be longer."""
    start = 0
    while start < len(items):
        end = min(start + size, len(items))
        while end < len(items) and joined(items[end - 1], items[end]):
            end += 1
        yield start, items[start:end]
        start = end
