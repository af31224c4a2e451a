"""Reading a training's metrics while it writes them."""

import json
import os
from pathlib import Path
from typing import Any


class MetricsFile:
    """Follows a JSONL file by its growing end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._latest: dict[str, Any] | None = None

    def latest(self) -> dict[str, Any] | None:
        """The last whole line, or None before the first."""
        if not self._path.exists():
            return None
        with self._path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._offset:
                self._offset, self._latest = 0, None  # a resumed training has cut it
            file.seek(self._offset)
            new = file.read()
        whole, _, _ = new.rpartition(b"\n")
        if whole:
            self._offset += len(whole) + 1
            self._latest = json.loads(whole.rsplit(b"\n", 1)[-1])
        return self._latest
