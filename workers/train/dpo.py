"""TRL's `DPOTrainer` set up for pairs that are tokens already, and `Training` as its config."""

import dataclasses
import importlib.util
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from datasets import Dataset
from pydantic import TypeAdapter, ValidationError
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import Sampler
from trl import DPOConfig, DPOTrainer
from trl.trainer import dpo_trainer

from shared.schemas.requests import Training
from workers.train import lm_head, ranks
from workers.train.movement import moved
from workers.train.pairs import TrainError

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
SETTING_OF = {
    "beta": "beta",
    "loss_type": "loss",
    "loss_weights": "irpo_alpha",
    "learning_rate": "learning_rate",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "micro_batch_size",
    "gradient_accumulation_steps": "batch_size",
    "warmup_steps": "warmup_fraction",
    "lr_scheduler_type": "schedule",
    "max_grad_norm": "max_grad_norm",
    "max_length": "max_length",
    "bf16": "dtype",
    "seed": "seed",
    "report_to": "report_to",
}
"""Keys of `DPOConfig` that have a name of their own in `Training`."""
OURS = {
    "output_dir", "max_steps", "precompute_ref_log_probs", "logging_steps", "logging_strategy",
    "save_strategy", "save_only_model", "save_total_limit", "run_name", "project",
    "use_cpu", "fp16",
    "remove_unused_columns", "model_init_kwargs", "trust_remote_code", "eval_strategy", "do_eval",
    "padding_free", "truncation_mode", "sync_ref_model", "load_best_model_at_end",
    "fsdp", "fsdp_config", "deepspeed", "accelerator_config", "parallelism_config", "ddp_backend",
    "ddp_timeout", "ddp_find_unused_parameters", "logging_dir", "resume_from_checkpoint",
}  # fmt: skip
"""Keys that progress, checkpoints, resuming, several GPUs and the method rest on, that name files
of the worker's, or that say where its figures go, with the worker's token."""
OURS_BEGIN = ("hub_", "push_to_hub", "trackio_")
"""Beginnings of other keys that are refused."""


class StepSampler(Sampler[int]):  # type: ignore[misc]
    """Random pairs for each optimizer step, sorted by length inside it.

    Gradients of a step are summed, so the order inside it means nothing, but micro-batches of
    like lengths need little padding. An epoch's order follows from seed and epoch alone.
    """

    def __init__(self, lengths: Sequence[int], step_pairs: int, seed: int) -> None:
        self._lengths = lengths
        self._step_pairs = step_pairs
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        for at in range(0, len(order), self._step_pairs):
            step = order[at : at + self._step_pairs]
            yield from sorted(step, key=lambda pair: -self._lengths[pair])


def _sharded(reference: Any, accelerator: Any) -> Any:
    """For `trl.models.prepare_fsdp`, by which the reference would be noise at every rank that has
    left the reading of its weights to the first, and in one piece where it is gathered."""
    return fsdp2_prepare_model(accelerator, reference).eval()


@contextmanager
def _replaced(ours: dict[str, Any]) -> Iterator[None]:
    """Put functions in the place of TRL's, which it takes from its module by name and offers no
    hook for. Raises `AttributeError` if TRL has no function of such a name any more."""
    theirs = {name: getattr(dpo_trainer, name) for name in ours}
    try:
        for name, function in ours.items():
            setattr(dpo_trainer, name, function)
        yield
    finally:
        for name, function in theirs.items():
            setattr(dpo_trainer, name, function)


class PairTrainer(DPOTrainer):  # type: ignore[misc]
    """`DPOTrainer` on tokenized pairs. The reference is the start model, computed beforehand."""

    def __init__(self, *, model: Any, **kwargs: Any) -> None:
        ours: dict[str, Any] = {"prepare_fsdp": _sharded}
        if lm_head.suits(model):
            ours["add_fused_lm_head"] = lm_head.add_completion_head
        with _replaced(ours):
            super().__init__(model=model, **kwargs)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        # The argument has lost the columns that the model does not take.
        lengths = self.train_dataset["length"][:]
        pairs = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        # Ranks take its batches in turn, so a step of all of them is one of its steps.
        return StepSampler(lengths, pairs * ranks.world_size(), self.args.seed)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and self.args.bf16:
            # accelerate's own would sum gradients, and return log-probabilities, in bfloat16.
            plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32
            )

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        moved(Path(self.args.output_dir))
        return super().compute_ref_log_probs(model, inputs)

    def _send_telemetry(self) -> None:
        """Nothing is told to anybody."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Lineage is in the database."""


def computes_in_bfloat16(settings: Training) -> bool:
    """`auto` is bfloat16 on a GPU, and float32 on a CPU, where it is several times faster."""
    if settings.dtype == "auto":
        return bool(torch.cuda.is_available())
    return settings.dtype == "bfloat16"


def micro_batch_size(settings: Training) -> int:
    """The largest one allowed of which whole rounds of all ranks make up a step."""
    pairs, rest = divmod(settings.batch_size, ranks.world_size())
    if rest:
        raise TrainError(
            f"training.batch_size: {settings.batch_size} pairs a step cannot be shared evenly by "
            f"{ranks.world_size()} GPUs",
            "training.batch_size",
        )
    allowed = range(1, min(settings.micro_batch_size, pairs) + 1)
    return max(n for n in allowed if pairs % n == 0)


def dpo_config(settings: Training, out: Path) -> DPOConfig:
    """`settings` for TRL. Raises `TrainError` naming the key that TRL refuses."""
    _check_extra(settings.extra)
    _check_report_to(settings.report_to)
    fields = _fields(settings, out)
    for key, value in settings.extra.items():
        _build(fields | {key: value}, f"training.extra.{key}")
    return _build(fields | settings.extra, "training.extra" if settings.extra else "training")


def _fields(settings: Training, out: Path) -> dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    irpo = settings.loss == "irpo"
    micro = micro_batch_size(settings)
    return {
        "output_dir": str(out),
        "beta": settings.beta,
        # IRPO: DPO's sigmoid loss plus the mean negative log-likelihood of the chosen tokens.
        "loss_type": ["sigmoid", "sft"] if irpo else ["sigmoid"],
        "loss_weights": [1.0, settings.irpo_alpha] if irpo else None,
        "precompute_ref_log_probs": True,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": SCHEDULES[settings.schedule],
        "warmup_steps": settings.warmup_fraction if settings.warmup_fraction < 1 else 0.999999,
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": settings.batch_size // (micro * ranks.world_size()),
        "max_grad_norm": settings.max_grad_norm,
        "max_length": None,  # Checked in preflight: TRL would cut.
        "seed": settings.seed,
        "bf16": computes_in_bfloat16(settings),
        "use_cpu": not on_gpu,
        # It trades a third of the speed for memory; a CPU's memory is large beside its speed.
        "gradient_checkpointing": on_gpu,
        "dataloader_pin_memory": on_gpu,
        "disable_dropout": settings.lora is None or settings.lora.dropout == 0,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "epoch",
        "save_total_limit": 2,  # One to fall back to, should the last be corrupt.
        "ddp_timeout": int(ranks.PATIENCE.total_seconds()),
        "ddp_find_unused_parameters": False,
        "report_to": settings.report_to or "none",
        "disable_tqdm": True,
    }


def _check_extra(extra: dict[str, Any]) -> None:
    known = {field.name for field in dataclasses.fields(DPOConfig) if field.init}
    hints = typing.get_type_hints(DPOConfig)
    for key, value in extra.items():
        if key in SETTING_OF:
            what = f"is set by training.{SETTING_OF[key]}"
        elif key in OURS or key.startswith(OURS_BEGIN):
            what = "is set by the platform"
        elif key not in known:
            what = "is no setting of trl.DPOConfig"
        elif not _is_a(value, hints[key]):
            # A dataclass checks no types: it would fail in the middle of the training.
            what = f"is not of the type {hints[key]}"
        else:
            continue
        raise TrainError(f"training.extra.{key} {what}", f"training.extra.{key}")


def _check_report_to(names: Sequence[str]) -> None:
    # Its absence would only be found once the model is loaded.
    for name in names:
        if importlib.util.find_spec(name) is None:
            message = f"training.report_to: {name} is not installed where this trains"
            raise TrainError(message, "training.report_to")


def _is_a(value: Any, hint: Any) -> bool:
    try:
        TypeAdapter(hint).validate_python(value)
    except ValidationError:
        return False
    return True


def _build(fields: dict[str, Any], param: str) -> DPOConfig:
    try:
        return DPOConfig(**fields)
    except Exception as error:  # Whatever its dozens of checks raise, it is the setting's fault.
        raise TrainError(f"{param} is refused by TRL: {error}", param) from error
