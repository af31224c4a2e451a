"""Sampling settings of a generate job."""

from typing import Literal, Self

from pydantic import Field, model_validator

from shared.base import RequestModel

GREEDY_BELOW = 1e-5
"""A lower temperature samples greedily in vLLM."""


def refuse_equal_samples(samples: int, temperature: float) -> None:
    if samples > 1 and temperature < GREEDY_BELOW:
        raise ValueError("temperature: must be above 0 for several samples, which would be equal")


class Sampling(RequestModel):
    """Settings by which outputs are sampled. Lengths are in tokens."""

    samples: int = Field(default=8, ge=1, le=64)
    temperature: float = Field(default=0.8, ge=0, le=2)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_thought_tokens: int = Field(default=1024, ge=1, le=131_072)
    max_response_tokens: int = Field(default=1024, ge=1, le=131_072)
    boundary: Literal["natural", "forced"] = "natural"
    seed: int = Field(default=0, ge=0, le=2**31 - 1)

    @model_validator(mode="after")
    def _differ(self) -> Self:
        refuse_equal_samples(self.samples, self.temperature)
        return self
