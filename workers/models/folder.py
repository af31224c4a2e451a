"""Plain Hugging Face model folders: how they are written, checked and probed.

A folder holds config.json, model.safetensors in bfloat16 (one file or several), tokenizer.json,
the chat template, generation_config.json and probe.json.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shared.process import fsync, sync
from shared.thinking.formats import NATIVE, THINK, ThoughtFormat
from workers.models.files import ModelFolderError, check_files
from workers.models.weights import PROBE_FILE, weights_files

PROBE_TEXT = (
    "The quick brown fox jumps over the lazy dog. In 1969, people walked on the Moon for the first "
    "time; def main(): return 42"
)
PROBE_TOKENS = 32
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "generation_config.json",
)
"""Files that a checkpoint takes over from its base unchanged."""
CHANNEL = "<|channel|>"


def write_aside(folder: Path, write: Callable[[Path], None]) -> None:
    """Fill `folder` through a sibling that is renamed when complete, so it is whole or absent.

    A folder that another process completed meanwhile is kept.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        aside.chmod(0o755)
        write(aside)
        for path in weights_files(aside):
            path.chmod(0o644)  # safetensors makes them readable by their owner alone
        sync(aside)
        try:
            os.replace(aside, folder)
        except OSError:
            if not folder.is_dir():
                raise
        fsync(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_folder(folder: Path) -> None:
    """Raise `ModelFolderError` unless engines and trainings can read `folder`. Loads no weights."""
    config = check_files(folder)
    if "auto_map" in config:
        raise ModelFolderError(f"{folder} brings code of its own (auto_map), which is never run")
    if "quantization_config" in config:
        raise ModelFolderError(f"{folder} is quantized; training needs plain weights")
    if not (folder / "tokenizer.json").is_file():
        raise ModelFolderError(
            f"{folder} has no tokenizer.json; AutoTokenizer.from_pretrained(…).save_pretrained(…) "
            "writes one"
        )
    try:
        tokenizer = _tokenizer(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ModelFolderError(f"{folder} has no tokenizer that can be read: {error}") from error
    if not tokenizer.chat_template:
        raise ModelFolderError(f"{folder} has no chat template; an instruct model is needed")
    if CHANNEL in str(tokenizer.chat_template):
        raise ModelFolderError(
            f"{folder} writes its thoughts in channels (Harmony, as gpt-oss does), which are not "
            "told apart here; an answer would show them"
        )


def native_format(folder: Path) -> ThoughtFormat | None:
    """The thought format of a model that thinks by itself, read from its chat template."""
    template = _tokenizer(folder).chat_template
    return THINK if NATIVE.end in str(template) else None


def opens_thought(folder: Path) -> bool:
    """Tell whether the chat template begins the model's turn inside a thought."""
    question = [{"role": "user", "content": "?"}]
    turn = _tokenizer(folder).apply_chat_template(
        question, tokenize=False, add_generation_prompt=True
    )
    return str(turn).rstrip().endswith(NATIVE.begin)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer, chat template and generation config byte for byte."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    if (source / "additional_chat_templates").is_dir():
        shutil.copytree(source / "additional_chat_templates", target / "additional_chat_templates")


def probe(model: Any, tokenizer: Any) -> dict[str, list[float] | list[int]]:
    """Log-probabilities that only these weights give to a fixed text.

    `logprobs[i]` is that of `token_ids[i + 1]` after `token_ids[: i + 1]`: one fewer than tokens.
    """
    ids = tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"][:PROBE_TOKENS]
    tokens = torch.tensor([ids], device=model.device)
    with torch.inference_mode():
        logps = model(tokens).logits[0, :-1].float().log_softmax(-1)
    taken = logps.gather(-1, tokens[0, 1:, None]).squeeze(-1)
    return {"token_ids": ids, "logprobs": [round(x, 6) for x in taken.tolist()]}


def write_probe(folder: Path) -> None:
    """Probe the weights as they were saved, computed in float32 whatever their type."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    ).eval()
    (folder / PROBE_FILE).write_text(json.dumps(probe(model, _tokenizer(folder))) + "\n")


def _tokenizer(folder: Path) -> Any:
    # Left to itself, it would ask on the terminal whether code may run.
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
