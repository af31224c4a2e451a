"""Refuses model folders by their files alone, before any library reads them.

A folder or a Hub repository may be anybody's. Weights come from safetensors only, for unpickling
runs what a file says; no code of a model runs unasked; and no link leads out of the folder, where
a model's "tokenizer" might be a secret that ends up in its checkpoints.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from workers.models.weights import weights_files

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"})


class ModelFolderError(Exception):
    """A folder that cannot be used as a model; the message says what is wrong with it."""


def check_files(folder: Path) -> dict[str, Any]:
    """The folder's config. Raises `ModelFolderError`; loads no weights."""
    if not folder.is_dir():
        raise ModelFolderError(f"{folder} is not a folder")
    if not (folder / "config.json").exists():
        raise ModelFolderError(f"{folder} has no config.json")
    for path in _below(folder):
        _check_file(path, folder)
    if not weights_files(folder):
        raise ModelFolderError(f"{folder} has no .safetensors file; other weights are not read")
    for path in weights_files(folder):
        _check_header(path)
    return _config(folder)


def _below(folder: Path) -> Iterator[Path]:
    """Files and links. Links are not followed, or one could lead around in a circle."""
    for parent, folders, files in os.walk(folder):
        yield from (Path(parent, name) for name in (*folders, *files))


def _check_file(path: Path, folder: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(_home(folder)):
        raise ModelFolderError(f"{path} is a link that leads out of its folder")
    if path.parent != folder:
        return  # nothing reads below, as what Llama's repositories have in original/
    if path.suffix.lower() in PICKLES:
        raise ModelFolderError(
            f"{path} may be a pickle, which runs code where it is read; only safetensors are "
            "taken, so remove it"
        )
    if path.name == "adapter_config.json":
        raise ModelFolderError(
            f"{path} makes this an adapter to a model elsewhere; merge it into that model first"
        )


def _home(folder: Path) -> Path:
    """The folder that its links may lead to. In the Hub's cache a snapshot is links to blobs."""
    real = folder.resolve()
    return real.parent.parent if real.parent.name == "snapshots" else real


def _check_header(path: Path) -> None:
    try:
        with safe_open(path, "pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise ModelFolderError(f"{path} cannot be read as safetensors: {error}") from error


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(f"{folder}/config.json is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelFolderError(f"{folder}/config.json is not an object")
    if kernel := next(_kernels(config), None):
        raise ModelFolderError(f"{folder}/config.json wants code from elsewhere: {kernel}")
    return config


def _kernels(config: dict[str, Any]) -> Iterator[str]:
    """Implementations of attention that transformers would fetch from the Hub, and run."""
    for name, value in config.items():
        if name.endswith("attn_implementation") and "/" in str(value):
            yield f"{name}: {value}"
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                yield from _kernels(inner)
