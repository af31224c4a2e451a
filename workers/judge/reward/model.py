"""The reward model: a sequence classifier's one logit for the chat of instruction and response.

Skywork-Reward-V2 is a good choice, e.g. `Skywork/Skywork-Reward-V2-Llama-3.1-8B`, or of its
smaller ones. ArmoRM, whose output has a `score`, needs `trust_remote_code: true`.
"""

import logging
from collections.abc import Sequence

from shared.schemas.judges import RewardModelSpec
from shared.schemas.requests import JudgeItem
from workers.judge.base import CannotJudge, Judge, JudgeContext, Score, finite
from workers.judge.reward.runners import RUNNERS, Runner, UnfitError, free_memory
from workers.judge.reward.source import Source, open_source
from workers.resource_errors import OUT_OF_MEMORY, exit_status

log = logging.getLogger(__name__)
AUTO = ("vllm", "transformers")
"""Runners that `runner: auto` tries, the faster one first (docs/benchmarks.md)."""


class RewardModel(Judge):
    name = "reward_model/1"

    def __init__(self, spec: RewardModelSpec, _: JudgeContext) -> None:
        self._spec = spec
        self._batch_tokens = spec.batch_tokens
        self._source: Source | None = None
        self._runner: Runner | None = None

    def score(self, items: Sequence[JudgeItem]) -> list[Score]:
        """Raw logits. A chat longer than the model's context has no score: cut, it would be judged
        by an answer that nobody gave. The first call loads the model."""
        if not items:
            return []
        self._source = self._source or open_source(self._spec)
        chats = self._source.chats(items)
        values = self._values(self._source, chats)
        return [
            Score(None, {"reason": "too_long"}) if value is None else finite(value)
            for value in values
        ]

    def versions(self) -> dict[str, str]:
        versions = {"judge": self.name, "judge_model": self._spec.model}
        if self._source is not None:
            versions |= self._source.identity
        if self._runner is not None:
            versions |= {"runner": self._runner.version, "dtype": self._runner.dtype}
        return versions

    def _values(self, source: Source, chats: list[list[int]]) -> list[float | None]:
        """None for a chat that is too long."""
        while True:
            try:
                self._runner = self._runner or self._open(source)
                return _fitting(self._runner, source.context, chats)
            except (RuntimeError, MemoryError) as error:
                if exit_status(error) != OUT_OF_MEMORY:
                    raise
            # Out here the error is gone, and with it the tensors that it held.
            self._halve()

    def _halve(self) -> None:
        """Halve the batch, once; after that raise `CannotJudge`."""
        if self._batch_tokens < self._spec.batch_tokens:
            raise CannotJudge(
                f"out of memory with {self._batch_tokens} tokens in a batch, half of batch_tokens; "
                "this machine is too small for the model or its longest chat"
            )
        self._batch_tokens //= 2
        log.warning("out of memory: once more with %d tokens in a batch", self._batch_tokens)
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def _open(self, source: Source) -> Runner:
        """The first runner that loads the model.

        Raises `CannotJudge` with what the last one says; an error of memory as it is.
        """
        names = (self._spec.runner,) if self._spec.runner != "auto" else AUTO
        if source.custom:  # vLLM would take it for the model that it is made of
            if self._spec.runner == "vllm":
                raise CannotJudge(f"{self._spec.model}: code of its own runs by transformers only")
            names = ("transformers",)
        for name in names:
            try:
                runner = RUNNERS[name](source, self._batch_tokens)
            except UnfitError as error:
                raise CannotJudge(f"{self._spec.model}: {error}") from error
            except Exception as error:
                last = name == names[-1]
                if last and exit_status(error) == OUT_OF_MEMORY:
                    raise
                message = f"{name} cannot load {self._spec.model}: {error}"
                if last:
                    raise CannotJudge(message) from error
                log.warning("%s", message)
            else:
                log.info("%s is judged with by %s", self._spec.model, runner.version)
                return runner
            free_memory()
        raise AssertionError("no runner was tried")


def _fitting(runner: Runner, context: int, chats: list[list[int]]) -> list[float | None]:
    longest = min(context, runner.longest)
    scores: list[float | None] = [None] * len(chats)
    fitting = [i for i, chat in enumerate(chats) if len(chat) <= longest]
    for i, score in zip(fitting, runner.scores([chats[i] for i in fitting]), strict=True):
        scores[i] = score
    return scores
