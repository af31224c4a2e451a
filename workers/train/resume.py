"""Checkpoints that a training resumes from, sealed with fingerprints and checked before use."""

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

from shared.process import fsync, sync
from workers.models.weights import WEIGHTS_SHA256, weights_sha256

log = logging.getLogger("workers.train.train")
SEAL = "complete.json"
"""In a trainer checkpoint that was written to its end: a fingerprint of each of its files."""
OPTIMIZER = "optimizer"
"""Beginning of the names of optimizer states, as one file or as a folder of shards."""


def seal(checkpoint: Path) -> None:
    aside = checkpoint / f"{SEAL}.part"
    aside.write_text(json.dumps(_fingerprints(checkpoint)))
    sync(checkpoint)
    aside.replace(checkpoint / SEAL)
    fsync(checkpoint)


def _sealed(checkpoint: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads((checkpoint / SEAL).read_text())
    except ValueError:
        return {}
    return found


def _fingerprints(checkpoint: Path) -> dict[str, str]:
    """The SHA-256 of each file. Of an optimizer state, which is several times as large as the
    weights, the size: hashing it would hold all GPUs up for minutes at every checkpoint."""
    fingerprints = {}
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file()):
        name = str(path.relative_to(checkpoint))
        if name.startswith(OPTIMIZER):
            fingerprints[name] = f"{path.stat().st_size} bytes"
        elif not name.startswith(SEAL):
            with path.open("rb") as file:
                fingerprints[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return fingerprints


def last_good(trainer_dir: Path, out: Path) -> Path | None:
    """The newest trainer checkpoint that is as it was written, with the epochs before it."""
    return next(_good(trainer_dir, out), None)


def _good(trainer_dir: Path, out: Path) -> Iterator[Path]:
    for path in sorted(trainer_dir.glob("checkpoint-*"), key=_step, reverse=True):
        if not (path / SEAL).exists():
            shutil.rmtree(path)  # its writer was killed
        elif _sealed(path) != _fingerprints(path):
            log.warning("%s is corrupt and was removed; falling back", path)
            shutil.rmtree(path)
        elif all(is_whole(epoch_folder(out, epoch)) for epoch in range(1, _epochs(path) + 1)):
            yield path


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _epochs(checkpoint: Path) -> int:
    """Whole epochs that were trained when it was written."""
    epoch: float = json.loads((checkpoint / "trainer_state.json").read_text())["epoch"]
    return math.floor(epoch + 1e-6)


def epoch_folder(out: Path, epoch: int) -> Path:
    return out / f"epoch-{epoch}"


def is_whole(folder: Path) -> bool:
    """Tell if an epoch's weights are there and as they were written."""
    mark = folder / WEIGHTS_SHA256
    whole = mark.exists() and mark.read_text() == weights_sha256(folder)
    if folder.exists() and not whole:
        log.warning("%s is corrupt; falling back", folder)
    return whole
