"""Properties that two model folders share if a running engine can swap one for the other."""

import json
from pathlib import Path
from typing import Any

_NOT_SHAPE = {
    "_name_or_path",
    "_model_name_or_path",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
_NOT_VOCABULARY = {"padding", "truncation"}
"""Left in tokenizer.json by whoever used it last; an engine sets its own."""


def architecture(folder: Path) -> list[Any]:
    """Equal where the weights of one folder fit an engine that was started with the other.

    Swapping exchanges tensors only, so all else must be equal: the model's shape, its tokenizer,
    chat template and end tokens.
    """
    tokenizer = _read(folder / "tokenizer.json")
    template = folder / "chat_template.jinja"
    return [
        {k: v for k, v in _read(folder / "config.json").items() if k not in _NOT_SHAPE},
        {k: v for k, v in tokenizer.items() if k not in _NOT_VOCABULARY},
        template.read_text() if template.exists() else None,
        _read(folder / "tokenizer_config.json").get("chat_template"),
        _read(folder / "generation_config.json").get("eos_token_id"),
    ]


def _read(file: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return read
