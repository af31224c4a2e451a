"""A reward model's files: where they come from, which are refused, and what it reads of a chat."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from jinja2 import TemplateError
from transformers import AutoConfig, AutoTokenizer

from shared.errors import InvalidRequest
from shared.schemas.judge_permissions import check_code
from shared.schemas.judges import RewardModelSpec
from shared.schemas.requests import JudgeItem
from workers.judge.base import CannotJudge
from workers.leases import StageError
from workers.models.files import ModelFolderError, check_files
from workers.models.unpack import HUB_FILES
from workers.models.weights import weights_sha256
from workers.resource_errors import exit_status


@dataclass(frozen=True)
class Source:
    folder: Path
    identity: dict[str, str]
    """Commit of the Hub, or the hash of a folder's weights."""
    custom: bool
    """Its code comes with it, and the user trusts it."""
    context: int
    """Most tokens of a chat."""
    pad: int | None
    """The token that the model takes for padding wherever it stands."""
    tokenizer: Any

    def chats(self, items: Sequence[JudgeItem]) -> list[list[int]]:
        """Token ids of the chats of instruction and response, without padding.

        Raises `CannotJudge` where the chat template refuses such a chat.
        """
        chats = [
            [
                {"role": "user", "content": item.instruction},
                {"role": "assistant", "content": item.response},
            ]
            for item in items
        ]
        try:
            texts = self.tokenizer.apply_chat_template(chats, tokenize=False)
        except TemplateError as error:
            raise CannotJudge(f"its chat template takes no such chat: {error}") from error
        # The template has written what special tokens there are to be; a tokenizer of Llama's
        # would put a second BOS before them.
        rows = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
        return [self._without_padding(ids) for ids in rows["input_ids"]]

    def _without_padding(self, ids: list[int]) -> list[int]:
        """transformers scores the last token that is not padding, vLLM the last one. They differ
        where a chat ends in what is padding too, as an end of turn may be."""
        end = len(ids)
        while end > 1 and ids[end - 1] == self.pad:
            end -= 1
        return ids[:end]


def open_source(spec: RewardModelSpec) -> Source:
    """Fetches from the Hub what is not in its cache.

    Raises:
        CannotJudge: it is not there, or is no reward model that can be run.
        StageError: the Hub did not answer.
    """
    folder, identity = _find(spec)
    custom = _check_files(folder, spec)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=custom)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=custom)
    except (OSError, ValueError, KeyError) as error:
        raise CannotJudge(f"{spec.model} cannot be read: {error}") from error
    if not custom and config.num_labels != 1:
        raise CannotJudge(
            f"{spec.model} has {config.num_labels} labels, and a reward model has one (num_labels)"
        )
    if not tokenizer.chat_template:
        raise CannotJudge(f"{spec.model} has no chat template")
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None) or sys.maxsize
    context = min(int(positions), int(tokenizer.model_max_length))
    pad = getattr(text, "pad_token_id", None)
    return Source(folder, identity, custom, context, pad, tokenizer)


def _find(spec: RewardModelSpec) -> tuple[Path, dict[str, str]]:
    path = Path(spec.model).expanduser()
    if path.is_dir():
        if spec.revision is not None:
            raise CannotJudge(f"{path} is a folder and has no revisions")
        return path, {"weights_sha256": weights_sha256(path)}
    if path.is_absolute():
        raise CannotJudge(f"{path} is not a folder")
    files = [*HUB_FILES, "*.py"] if spec.trust_remote_code else HUB_FILES
    what = f"{spec.model} at {spec.revision or 'its newest commit'}"
    try:
        folder = Path(snapshot_download(spec.model, revision=spec.revision, allow_patterns=files))
    except HFValidationError as error:
        raise CannotJudge(f"{spec.model} is neither a folder nor a Hugging Face id") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise CannotJudge(f"the Hub has no {what}, or keeps it from this worker") from error
    except (httpx2.HTTPError, OSError) as error:
        if exit_status(error) is not None:  # the machine's fault, not the Hub's
            raise
        if constants.HF_HUB_OFFLINE:
            raise CannotJudge(f"{what} is not in the cache, and the Hub is not asked") from error
        raise StageError(
            f"{what} cannot be fetched from the Hub: {error}",
            code="judge_failed",
            param="judge.model",
            retry=True,
        ) from error
    return folder, {"commit": folder.name}


def _check_files(folder: Path, spec: RewardModelSpec) -> bool:
    """Tell whether the model runs code of its own."""
    try:
        config = check_files(folder)
    except ModelFolderError as error:
        raise CannotJudge(str(error)) from error
    # Of a model that transformers knows without its code it would run something else.
    custom = "auto_map" in config
    if custom and not spec.trust_remote_code:
        raise CannotJudge(
            f"{spec.model} brings code of its own (auto_map), which runs only with "
            "trust_remote_code: true"
        )
    if custom:
        try:
            check_code(spec)
        except InvalidRequest as error:
            raise CannotJudge(error.message) from error
    return custom
