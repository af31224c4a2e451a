"""Judges and their settings; `workers/judge/` runs them."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, TypeAdapter, model_validator

from shared.base import RequestModel, normalized_url

Address = Annotated[str, AfterValidator(normalized_url)]


class Needs(enum.StrEnum):
    """Part of its worker's machine that a judge uses."""

    nothing = "nothing"
    engine = "engine"
    """The worker's engine, with the judge's own model."""
    device = "device"
    """The GPU for itself: the engine sleeps meanwhile."""


class _Judge(RequestModel):
    @property
    def needs(self) -> Needs:
        return Needs.nothing

    @property
    def worst(self) -> float | None:
        """The lower end of the scores that an evaluation sees; None where they have none. Where the
        judge compares, it sees shares won, whatever the judge's own scores are."""
        return 0.0

    @property
    def compares(self) -> bool:
        """True if a score says only how a response ranks among those it was judged with.

        Then all responses to an instruction are judged together, and models are compared response
        against response."""
        return False


class VerifierSpec(_Judge):
    """The share of a prompt's checks that its response satisfies."""

    kind: Literal["verifier"] = "verifier"


class RewardModelSpec(_Judge):
    """A sequence classifier with one logit, given the chat of instruction and response."""

    kind: Literal["reward_model"]
    model: str = Field(min_length=1, max_length=1000)
    """A Hugging Face id, or a folder as the worker sees it."""
    revision: str | None = Field(default=None, min_length=1, max_length=100)
    """Branch, tag or commit of a Hugging Face id."""
    trust_remote_code: bool = False
    """Run the model's own Python code, and take the `score` of its output where it has one."""
    batch_tokens: int = Field(default=16_384, ge=128, le=1_048_576)
    """Maximum tokens in one forward pass, padding included; a longer chat gets a pass to itself."""
    runner: Literal["auto", "transformers", "vllm"] = "auto"

    @property
    def needs(self) -> Needs:
        return Needs.device

    @property
    def worst(self) -> float | None:
        return None


class Pairwise(_Judge):
    """Compares two responses at a time in the Self-Taught Evaluator's format. Scores are Elo
    ratings, in nats."""

    share: float = Field(default=1.0, gt=0, le=1)
    """Fraction of the ordered response pairs per instruction that the judge compares. All of them
    are K(K-1) calls; with a third the ranking is nearly the same (`docs/judges.md`)."""
    max_tokens: int = Field(default=2048, ge=1, le=32_768)
    """Maximum tokens of a verdict, including its reasoning."""

    @property
    def compares(self) -> bool:
        return True


class Pointwise(_Judge):
    """A score from 0 to 10 by a rubric."""

    rubric: str | None = Field(default=None, min_length=1, max_length=20_000)
    """Description of a good response. Without it a general rubric is used."""
    samples: int = Field(default=1, ge=1, le=64)
    """Number of scores that are averaged; several are sampled at temperature 1."""
    expected: bool = False
    """Compute the score as the mean over the probabilities of its token. The judge is then asked
    for a score from 0 to 9, without reasoning."""
    max_tokens: int = Field(default=1024, ge=1, le=32_768)
    """Maximum tokens of a verdict, including its reasoning."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.expected and self.samples > 1:
            raise ValueError("samples: an expected score is computed, not sampled; leave it at 1")
        return self


class _OnEngine(_Judge):
    model: str = Field(min_length=1, max_length=500)
    """Registered model that judges: its id, `name@v1`, or `name` for the latest version."""

    @property
    def needs(self) -> Needs:
        return Needs.engine


class PairwiseSpec(_OnEngine, Pairwise):
    kind: Literal["pairwise"]


class PointwiseSpec(_OnEngine, Pointwise):
    kind: Literal["pointwise_llm"]


class OpenAISpec(_Judge):
    """A pairwise or pointwise judge behind an OpenAI-compatible address."""

    kind: Literal["openai"]
    model: str = Field(min_length=1, max_length=500)
    base_url: Address = "https://api.openai.com/v1"
    """Base address of the API; the operator must allow it in FORETHOUGHT_JUDGE_ADDRESSES."""
    sends_sampling: bool = True
    """Send temperature and seed; false for models that refuse them."""
    pairwise: Pairwise | None = None
    pointwise: Pointwise | None = None
    requests_per_minute: int = Field(default=600, ge=1, le=1_000_000)
    concurrency: int = Field(default=16, ge=1, le=1024)
    price_in: float = Field(default=0.0, ge=0)
    """Dollars per million prompt tokens, for the report."""
    price_out: float = Field(default=0.0, ge=0)
    """Dollars per million output tokens, for the report."""

    @model_validator(mode="after")
    def _one_method(self) -> Self:
        if (self.pairwise is None) == (self.pointwise is None):
            raise ValueError("pairwise: exactly one of pairwise and pointwise is required")
        return self

    @property
    def compares(self) -> bool:
        return self.pairwise is not None


class Weighted(RequestModel):
    judge: SingleSpec
    weight: float = Field(default=1.0, gt=0, le=1000)


class MixtureSpec(_Judge):
    """Weighted judges, each normalised over the responses to one instruction.

    The verifier has no say on an instruction without checks, so verifiable prompts and open ones
    train together."""

    kind: Literal["mixture"]
    judges: list[Weighted] = Field(min_length=2, max_length=8)

    @model_validator(mode="after")
    def _one_machine(self) -> Self:
        if sum(w.judge.needs is not Needs.nothing for w in self.judges) > 1:
            raise ValueError("judges: at most one may have a model of its own to run")
        return self

    @property
    def needs(self) -> Needs:
        needs = (w.judge.needs for w in self.judges)
        return next((n for n in needs if n is not Needs.nothing), Needs.nothing)

    @property
    def compares(self) -> bool:
        return True


_AnySingle = VerifierSpec | RewardModelSpec | PairwiseSpec | PointwiseSpec | OpenAISpec
AnySpec = _AnySingle | MixtureSpec
SingleSpec = Annotated[_AnySingle, Field(discriminator="kind")]
JudgeSpec = Annotated[AnySpec, Field(discriminator="kind")]
Weighted.model_rebuild()
MixtureSpec.model_rebuild()
_SPEC: TypeAdapter[Any] = TypeAdapter(JudgeSpec)


def judge_spec(value: Any) -> AnySpec:
    """Parse a judge's JSON. Raises `ValidationError`."""
    spec: AnySpec = _SPEC.validate_python(value)
    return spec


def model_of(spec: AnySpec) -> str | None:
    """Return the registered model that the judge runs on the worker's engine, if any."""
    match spec:
        case PairwiseSpec() | PointwiseSpec():
            return spec.model
        case MixtureSpec():
            return next((m for w in spec.judges if (m := model_of(w.judge))), None)
    return None


def with_model(spec: AnySpec, change: Callable[[str], str]) -> AnySpec:
    """Return the judge with the name of its registered model changed."""
    match spec:
        case PairwiseSpec() | PointwiseSpec():
            return spec.model_copy(update={"model": change(spec.model)})
        case MixtureSpec():
            judges = [
                w.model_copy(update={"judge": with_model(w.judge, change)}) for w in spec.judges
            ]
            return spec.model_copy(update={"judges": judges})
    return spec
