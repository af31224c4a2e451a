"""Making what was written survive a machine that loses its power, before the record names it."""

import os
from pathlib import Path


def sync(folder: Path) -> None:
    """All files below it, and their names."""
    for path in (folder, *folder.rglob("*")):
        fsync(path)


def fsync(path: Path) -> None:
    """What is in a file; of a folder, which files it holds."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
