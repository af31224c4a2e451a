"""Requests of the job services and of the coordinator, as JSON."""

from __future__ import annotations

import uuid
from itertools import groupby
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from shared.base import RequestModel
from shared.schemas.checks import Check
from shared.schemas.judges import AnySpec, JudgeSpec, VerifierSpec
from shared.thinking.formats import FORMATS, GENERIC, ThoughtFormat
from shared.thinking.sampling import Sampling, refuse_equal_samples

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
"""Names of datasets and model families: safe in paths and in `name@v1`."""
DIRECT = "-direct"
"""Suffix of the family name of a direct baseline's models."""
ModelRef = Annotated[str, Field(min_length=1, max_length=500)]
"""A registered model: its id, `name@v1`, or `name` (the latest version)."""
ThinkingEffort = Literal["minimal", "low", "medium", "high", "xhigh", "max"]
Effort = Literal["none", ThinkingEffort]
"""OpenAI's `reasoning_effort`."""
MAX_COMPARED = 64
"""Maximum responses to one instruction, the same as of `Sampling.samples`."""
Text = Annotated[str, Field(min_length=1, max_length=200_000)]


class InlinePrompt(RequestModel):
    text: Text
    category: str | None = Field(default=None, max_length=200)
    """Category of the prompt; reports show a score for each."""
    checks: list[Check] = Field(default_factory=list, max_length=32)


def _as_thought_format(value: Any) -> Any:
    """Look up a format that is given by name."""
    if isinstance(value, str):
        if value not in FORMATS:
            raise ValueError(f"unknown thought format {value!r}; known: {', '.join(FORMATS)}")
        return FORMATS[value]
    return value


Format = Annotated[
    ThoughtFormat, BeforeValidator(_as_thought_format, json_schema_input_type=ThoughtFormat | str)
]
"""A known format's name, or a whole format of the user's own."""


class GenerateRequest(RequestModel):
    """Sample outputs for prompts: given here, or those an iteration has drawn."""

    model: ModelRef
    thought_format: Format = GENERIC
    prompts: list[InlinePrompt] = Field(default_factory=list, max_length=100_000)
    iteration_id: uuid.UUID | None = None
    split: Literal["train", "validation"] = "train"
    sampling: Sampling = Sampling()
    shard_size: int = Field(default=16, ge=1, le=1024)
    """Number of prompts in a shard, the unit that is committed and retried."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.prompts) == (self.iteration_id is not None):
            raise ValueError("prompts: exactly one of prompts and iteration_id is required")
        return self


class JudgeItem(RequestModel):
    instruction: Text
    response: str = Field(max_length=1_000_000)
    checks: list[Check] = Field(default_factory=list, max_length=32)


class JudgeRequest(RequestModel):
    """Score responses: given here, or those of a generate job (also while it still runs).

    Items of one instruction stand together: a judge that compares judges them together.
    """

    judge: JudgeSpec = VerifierSpec()
    items: list[JudgeItem] = Field(default_factory=list, max_length=100_000)
    generate_job_id: uuid.UUID | None = None
    against_generate_job_id: uuid.UUID | None = None
    """Finished generate job on the same prompts. A score is then the share of that job's responses
    to the prompt that a response wins against."""
    shard_size: int = Field(default=256, ge=1, le=10_000)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.judge.compares:
            groups = groupby(self.items, key=lambda item: item.instruction)
            if any(len(list(group)) > MAX_COMPARED for _, group in groups):
                raise ValueError(
                    f"items: this judge compares no more than {MAX_COMPARED} responses to one "
                    "instruction"
                )
        if bool(self.items) == (self.generate_job_id is not None):
            raise ValueError("items: exactly one of items and generate_job_id is required")
        if self.items and self.against_generate_job_id is not None:
            raise ValueError("against_generate_job_id: goes with generate_job_id, not with items")
        return self


class InlinePair(RequestModel):
    """A preference pair: the user message as the model saw it, and two whole outputs."""

    prompt: Text
    chosen: Text
    rejected: Text

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.chosen == self.rejected:
            raise ValueError("rejected: is the same text as chosen")
        return self


class LoraSettings(RequestModel):
    rank: int = Field(default=16, ge=1, le=1024)
    alpha: int = Field(default=32, ge=1, le=4096)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class Training(RequestModel):
    """DPO settings; defaults are those of neighbours of the paper on an 8B model."""

    loss: Literal["dpo", "irpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0, le=10)
    irpo_alpha: float = Field(default=1.0, ge=0, le=100)
    """Weight of the negative log-likelihood term of the loss `irpo`."""
    learning_rate: float = Field(default=5e-7, gt=0, le=1)
    epochs: int = Field(default=1, ge=1, le=100)
    batch_size: int = Field(default=32, ge=1, le=4096)
    """Number of pairs in an optimizer step."""
    micro_batch_size: int = Field(default=4, ge=1, le=512)
    """Number of pairs in one forward pass; gradients accumulate up to `batch_size`."""
    warmup_fraction: float = Field(default=0.1, ge=0, le=1)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_length: int = Field(default=4096, ge=16, le=1_048_576)
    """Maximum tokens of prompt and output together. Longer pairs are left out and counted; no pair
    is cut."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    lora: LoraSettings | None = None
    """Settings of an adapter that is trained and merged; without them all weights are trained."""
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    report_to: list[Literal["mlflow", "trackio"]] = Field(default_factory=list, max_length=2)
    """Experiment trackers that receive the metrics of each step (`docs/metrics.md`)."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `trl.DPOConfig`, passed on as given."""


class TrainRequest(RequestModel):
    """Train `model` on pairs: given here, or those an iteration has chosen."""

    model: ModelRef
    pairs: list[InlinePair] = Field(default_factory=list, max_length=100_000)
    iteration_id: uuid.UUID | None = None
    training: Training = Training()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.pairs) == (self.iteration_id is not None):
            raise ValueError("pairs: exactly one of pairs and iteration_id is required")
        return self


class Resume(RequestModel):
    """Continues an iteration or job that failed or was cancelled."""

    training: Training | None = None
    """New settings for a training that has not succeeded; it starts again from its pairs."""


class LengthControl(RequestModel):
    rho: float = Field(default=0.25, ge=0, le=0.5)


class Pairing(RequestModel):
    max_parse_failure_fraction: float = Field(default=0.1, ge=0, le=1)
    """Maximum fraction of an iteration's pairs whose rejected output does not parse."""


class Validation(RequestModel):
    prompts: int = Field(default=500, ge=1, le=100_000)
    samples: int = Field(default=1, ge=1, le=16)
    temperature: float = Field(default=0.0, ge=0, le=2)
    checkpoints: Literal["all", "last"] = "all"
    """Judge the checkpoint of each epoch and keep the best, or take the last one."""
    judge: JudgeSpec | None = None
    """Judge of the models; by default the judge of training outputs. A separate one is fairer: a
    judge that a model was trained to please flatters it."""

    @model_validator(mode="after")
    def _differ(self) -> Self:
        refuse_equal_samples(self.samples, self.temperature)
        return self


class IterationRequest(RequestModel):
    """One or more iterations in a row, each on the last one's model and on fresh prompts."""

    name: Name
    """The family of the models made here: name@v1, name@v2, …"""
    base_model: ModelRef
    thought_format: Format = GENERIC
    dataset: Name | None = None
    prompts: list[InlinePrompt] = Field(default_factory=list, max_length=100_000)
    """Training prompts given in the request instead of a dataset; `validation_prompts` are required
    with them."""
    validation_prompts: list[InlinePrompt] = Field(default_factory=list, max_length=100_000)
    prompts_per_iteration: int | None = Field(default=None, ge=1, le=1_000_000)
    """Number of fresh training prompts per iteration; by default an equal share of all prompts."""
    count: int = Field(default=1, ge=1, le=100)
    sampling: Sampling = Sampling()
    judge: JudgeSpec = VerifierSpec()
    length_control: LengthControl = LengthControl()
    pairing: Pairing = Pairing()
    training: Training = Training()
    validation: Validation = Validation()
    baseline: bool = False
    """Start a second run that does the same without thoughts, for comparison."""
    promote: Literal["never", "always", "if_better"] = "if_better"
    """When chat gets the new model; `if_better`: when its validation score is above the seed's."""
    shard_size: int = Field(default=16, ge=1, le=1024)
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] = (
        Field(default_factory=dict, max_length=16)
    )

    @property
    def evaluating_judge(self) -> AnySpec:
        """The judge of the models."""
        return self.validation.judge or self.judge

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.dataset is None) == (not self.prompts):
            raise ValueError("dataset: exactly one of dataset and prompts is required")
        if self.prompts and not self.validation_prompts:
            raise ValueError("validation_prompts: required with inline prompts")
        if self.dataset and self.validation_prompts:
            raise ValueError("validation_prompts: goes with inline prompts, not with a dataset")
        if self.sampling.samples < 2:
            raise ValueError("sampling.samples: must be at least 2, since a pair needs two outputs")
        if self.baseline and not self.thought_format.thinks:
            raise ValueError("baseline: a run without thoughts is the direct baseline itself")
        if self.baseline and len(self.name) + len(DIRECT) > 64:
            raise ValueError(f"name: with a baseline at most {64 - len(DIRECT)} characters")
        return self


class ModelRegistration(RequestModel):
    """A model by Hub id, folder or GGUF file; it becomes the next version of `name`.

    `thought_format` says how chat is to have it think when it is promoted as it is. Without it, it
    is `think` for a model whose chat template knows `</think>`, and others answer directly.
    Training sets a format of its own.
    """

    name: Name
    source: str = Field(min_length=1, max_length=1000)
    """A Hugging Face id, a folder with safetensors, or a .gguf file, seen from the server."""
    thought_format: Format | None = None


class Promotion(RequestModel):
    """Makes a model the one that chat serves.

    `thought_format` goes with `name`: how the checkpoint is to think. Without it, as in the
    iteration whose pairs it was trained on, or else as the model that it was trained from.
    """

    name: Name | None = None
    """Family that a checkpoint without a name becomes the next version of."""
    thought_format: Format | None = None
    thought_budgets: dict[ThinkingEffort, Annotated[int, Field(ge=0, le=10**6)]] | None = None
    """Maximum tokens of a thought for each `reasoning_effort`. An effort that is not named gets a
    share of the budget that the model was trained with (`medium`: all of it). Without this field
    the budgets stay as they are."""
