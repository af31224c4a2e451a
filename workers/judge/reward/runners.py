"""Runners of a reward model: transformers, or vLLM's pooling engine in this process.

Both take token ids and give the raw logit of each chat, its head computed in float32.
"""

import argparse
import gc
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.metadata import version
from itertools import count
from typing import Any, Protocol

import torch
from transformers import AutoModelForSequenceClassification

from shared.settings import get_settings
from workers.engine.process import environment, has_gpu
from workers.judge.base import CannotJudge
from workers.judge.reward.source import Source

log = logging.getLogger(__name__)
SEQUENCES = 256
"""Maximum chats that vLLM works on at once."""
ENGINES_SHARE, SLEEPERS_SHARE = 0.9, 0.05
"""Shares of the GPU's memory: vLLM's default, and what a sleeping engine keeps."""


def gpu_share(engine_args: str) -> float:
    """The share of the GPU that the worker's sleeping engine leaves free. The share of another
    engine on the same GPU is not touched."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--gpu-memory-utilization", type=float, default=ENGINES_SHARE)
    given, _ = parser.parse_known_args(shlex.split(engine_args))
    return float(given.gpu_memory_utilization) - SLEEPERS_SHARE


class Runner(Protocol):
    version: str
    dtype: str
    longest: int
    """Maximum tokens of a chat that fit in memory."""

    def scores(self, chats: Sequence[list[int]]) -> list[float]:
        """Score each chat, in order. Raises torch's errors when memory runs out."""
        ...

    def close(self) -> None:
        """Give the memory back; nothing can be scored any more."""
        ...


class UnfitError(CannotJudge):
    """The model cannot be a judge, whichever runner loads it."""


class TransformersRunner:
    def __init__(self, source: Source, batch_tokens: int) -> None:
        """`batch_tokens` of a forward pass, padding included; a longer chat has one to itself."""
        self.version = f"transformers {version('transformers')}"
        self.longest = sys.maxsize
        self._source = source
        self._batch_tokens = batch_tokens
        on_gpu = torch.cuda.is_available()
        dtype = torch.bfloat16 if on_gpu else torch.float32
        self.dtype = str(dtype).removeprefix("torch.")
        if not on_gpu:
            torch.set_num_threads(len(os.sched_getaffinity(0)))
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source.folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=source.custom,
            output_loading_info=True,
        )
        if info["missing_keys"]:
            lacking = ", ".join(sorted(info["missing_keys"])[:3])
            raise UnfitError(f"its files lack {lacking}: it was not trained to score")
        model.config.use_cache = False
        float32_head(model)
        self._model = model.to("cuda" if on_gpu else "cpu").eval()

    def scores(self, chats: Sequence[list[int]]) -> list[float]:
        scores = [0.0] * len(chats)
        for batch in batches([len(chat) for chat in chats], self._batch_tokens):
            batch_scores = self._forward([chats[i] for i in batch])
            for i, score in zip(batch, batch_scores, strict=True):
                scores[i] = score
        return scores

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def _forward(self, chats: list[list[int]]) -> list[float]:
        width = max(map(len, chats))
        pad = self._pad(chats)
        ids = torch.tensor([chat + [pad] * (width - len(chat)) for chat in chats])
        mask = torch.tensor([[1] * len(chat) + [0] * (width - len(chat)) for chat in chats])
        device = self._model.device
        output = self._model(input_ids=ids.to(device), attention_mask=mask.to(device))
        score = getattr(output, "score", None) if self._source.custom else None
        score = output.logits if score is None else score
        if score.numel() != len(chats):
            each = score.numel() // len(chats)
            raise UnfitError(f"it gives {each} numbers for a chat, and a reward model one")
        values: list[float] = score.float().flatten().tolist()
        return values

    def _pad(self, chats: list[list[int]]) -> int:
        """The model finds a chat's end as the last token that is not padding, so one that the
        tokenizer pads with, and that chats end in, gives other scores in a batch than alone."""
        pad = self._source.pad
        if pad is None or pad < 0:
            used = set().union(*chats)
            pad = next(i for i in count() if i not in used)
            config = self._model.config
            config.pad_token_id = config.get_text_config().pad_token_id = pad
        return pad

    def close(self) -> None:
        del self._model
        free_memory()


def float32_head(model: Any) -> None:
    """As vLLM computes it. Logits in bfloat16 are 1/8 apart at 16, and responses would tie."""
    head = getattr(model, "score", None)
    if isinstance(head, torch.nn.Linear):
        head.float()
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Places in `lengths`, the longest first, so that memory runs out at once or not at all."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


class VllmRunner:
    def __init__(self, source: Source, batch_tokens: int) -> None:
        """`batch_tokens` of a step; longer chats are computed in chunks."""
        # A process of its own would import everything again, and hide why it ended.
        os.environ |= environment() | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        vllm: Any = import_module("vllm")
        self.version = f"vllm {vllm.__version__}"
        self.dtype = "bfloat16" if has_gpu() else "float32"
        on_cpu: dict[str, int] = {} if has_gpu() else {"block_size": 32}
        self._llm = vllm.LLM(
            model=str(source.folder),
            runner="pooling",
            convert="classify",
            pooler_config=vllm.config.PoolerConfig(use_activation=False),
            dtype=self.dtype,
            max_model_len=-1,  # what fits in memory
            max_num_batched_tokens=batch_tokens,
            max_num_seqs=min(SEQUENCES, batch_tokens),
            gpu_memory_utilization=gpu_share(get_settings().engine_args),
            trust_remote_code=source.custom,
            enforce_eager=True,  # prompts alone gain little by graphs, which take a minute
            disable_log_stats=True,
            **on_cpu,
        )
        self.longest = int(self._llm.llm_engine.model_config.max_model_len)
        self.scores([[0]])  # an attention that it has no kernel for is found only now

    def scores(self, chats: Sequence[list[int]]) -> list[float]:
        prompts = [{"prompt_token_ids": chat} for chat in chats]
        outputs = self._llm.classify(prompts, use_tqdm=False)
        each = {len(output.outputs.probs) for output in outputs}
        if each - {1}:
            raise UnfitError(f"it gives {max(each)} numbers for a chat, and a reward model one")
        return [float(output.outputs.probs[0]) for output in outputs]

    def close(self) -> None:
        del self._llm
        import_module("vllm.distributed").cleanup_dist_env_and_memory()
        free_memory()


def free_memory() -> None:
    """Free memory that nothing refers to any more."""
    gc.collect()
    torch.cuda.empty_cache()


RUNNERS: dict[str, type[TransformersRunner] | type[VllmRunner]] = {
    "transformers": TransformersRunner,
    "vllm": VllmRunner,
}
