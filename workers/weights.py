"""The identity of a model's weights: what lineage records and engines label their weights with."""

import hashlib
from pathlib import Path

CHUNK_BYTES = 1 << 22


def weights_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, sorted by name."""
    return sorted(folder.glob("*.safetensors"))


def weights_sha256(folder: Path) -> str:
    """Hash of the bytes of all safetensors files, in the order of their names."""
    digest = hashlib.sha256()
    for path in weights_files(folder):
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
