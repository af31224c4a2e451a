"""The identity of a model's weights: what lineage records and engines label their weights with."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from shared.db.tables import Model

CHUNK_BYTES = 1 << 22
PROBE_FILE = "probe.json"
"""In a model folder: log-probabilities that only its weights give."""
WEIGHTS_SHA256 = "weights.sha256"
"""In an epoch's model folder: the hash of its weights as they were written."""


@dataclass(frozen=True)
class ModelWeights:
    """A registered model's weights on disk."""

    id: str
    path: Path
    sha256: str

    @classmethod
    def of(cls, model: Model) -> Self | None:
        """The weights of a row; None where they were never made or have been pruned."""
        if model.path is None or model.weights_sha256 is None:
            return None
        return cls(str(model.id), Path(model.path), model.weights_sha256)


def weights_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, sorted by name."""
    return sorted(folder.glob("*.safetensors"))


def folder_bytes(folder: Path) -> int:
    """The size of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def weights_sha256(folder: Path) -> str:
    """Hash of the bytes of all safetensors files, in the order of their names."""
    digest = hashlib.sha256()
    for path in weights_files(folder):
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
