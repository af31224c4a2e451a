"""Making what was written survive a machine that loses its power, before the record names it."""

import os
from pathlib import Path


def sync(folder: Path) -> None:
    """All files below it, and their names."""
    for path in folder.rglob("*"):
        _fsync(path)
    _fsync(folder)


def sync_names(folder: Path) -> None:
    """Which files it holds, not what is in them."""
    _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
