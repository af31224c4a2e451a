"""Liveness of a training, told by its files: every phase of it writes some.

Its log and metrics, the tokens of pairs, checkpoints, and `moved` where nothing else is written.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

ALIVE = "alive"
POLL_INTERVAL_S = 10.0


def moved(folder: Path) -> None:
    (folder / ALIVE).touch()


class Movement:
    """Tracks when a folder's files last changed, by the local clock: a shared disk's may differ."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen = _written(folder)
        self._moved_at = self._looked_at = time.monotonic()

    def still_seconds(self) -> float:
        """Since anything in it was last seen to change."""
        now = time.monotonic()
        if now - self._looked_at >= POLL_INTERVAL_S:
            self._looked_at = now
            if (written := _written(self._folder)) != self._seen:
                self._seen, self._moved_at = written, now
        return now - self._moved_at


def _written(folder: Path) -> dict[Path, int]:
    """When each file was, in nanoseconds; files and folders may go meanwhile."""
    found = {}
    for parent, _, names in os.walk(folder):  # unlike `rglob`, past a folder that is gone
        for path in (Path(parent, name) for name in names):
            with suppress(FileNotFoundError):
                found[path] = path.lstat().st_mtime_ns
    return found
