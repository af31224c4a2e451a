"""The sampling fields of a request to vLLM."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling parameters of a request, by vLLM's own names. Fields that are None are not sent."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    """vLLM gives sample k of a request the seed `seed + k`."""
    n: int = 1
    min_tokens: int = 0
    """vLLM looks for no stop string before it has generated this many tokens."""
    stop: Sequence[str] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logprobs: int | None = None
    logit_bias: Mapping[str, float] | None = None
    response_format: Mapping[str, Any] | None = None

    def body(self) -> dict[str, Any]:
        """The fields of a request for these samples and their token ids."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        sent = {name: value for name, value in values.items() if value is not None}
        return {**sent, "return_token_ids": True}
