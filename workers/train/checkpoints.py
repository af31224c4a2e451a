"""Checkpoints of a training as plain model folders, and its metrics, written while it runs."""

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import TrainerCallback

from workers.models.folder import copy_tokenizer, write_aside, write_probe
from workers.models.weights import WEIGHTS_SHA256, weights_files, weights_sha256
from workers.train import ranks
from workers.train.files import METRICS
from workers.train.movement import moved
from workers.train.pairs import TrainError
from workers.train.resume import epoch_folder, seal


def trained_state(model: Any) -> dict[str, torch.Tensor]:
    """The weights under the names of the plain model, with an adapter added in.

    The model in training is left as it is: merging in place and back would change its bits.
    """
    if not isinstance(model, PeftModel):
        return _whole(model)
    base = model.get_base_model()
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in base.state_dict().items()
        if ".lora_" not in name
    }
    for name, module in base.named_modules():
        if isinstance(module, LoraLayer):
            weight = module.get_base_layer().weight
            delta = module.get_delta_weight("default")
            state[f"{name}.weight"] = weight.float() + delta.float()
    return state


def _whole(model: Any) -> dict[str, torch.Tensor]:
    """Gather a sharded model's weights on the CPU of the first rank, to be called by all ranks."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=ranks.world_size() > 1)
    state = get_model_state_dict(model, options=options)
    # Tied weights come out of their shards as two.
    one: dict[int, torch.Tensor] = {}
    tied = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    return {name: one.setdefault(tied.get(name, id(t)), t) for name, t in state.items()}


def save_model(model: Any, base: Path, folder: Path) -> None:
    """Write `folder` as a model that differs from `base` in its weights only. The first rank
    writes; all must call it."""
    trained = trained_state(model)

    def write(aside: Path) -> None:
        plain = model.get_base_model() if isinstance(model, PeftModel) else model
        stored = stored_dtype(base)
        # Tied tensors must stay one tensor, or they would be written twice.
        cast: dict[int, torch.Tensor] = {}
        state = {
            name: cast.setdefault(tensor.data_ptr(), tensor.detach().to("cpu", stored))
            for name, tensor in trained.items()
        }
        plain.save_pretrained(aside, state_dict=state)
        shutil.copyfile(base / "config.json", aside / "config.json")
        copy_tokenizer(base, aside)
        write_probe(aside)
        (aside / WEIGHTS_SHA256).write_text(weights_sha256(aside))

    if ranks.is_first():
        shutil.rmtree(folder, ignore_errors=True)
        write_aside(folder, write)
    ranks.wait()


def stored_dtype(folder: Path) -> torch.dtype:
    """The floating-point type in which a folder's weights are stored."""
    with safe_open(weights_files(folder)[0], "pt") as file:
        dtype: torch.dtype = file.get_tensor(next(iter(file.keys()))).dtype
    return dtype


def changed_fraction(base: Path, folder: Path) -> float:
    """Share of the stored weights that differ from `base`'s.

    A small learning rate can move every weight by less than bfloat16 can tell, and so train
    nothing; this shows it.
    """
    files = {name: path for path in weights_files(base) for name in _names(path)}
    changed = total = 0
    for path in weights_files(folder):
        with safe_open(path, "pt") as new:
            for name in new.keys():  # noqa: SIM118 (not a dict)
                if name not in files:
                    continue
                with safe_open(files[name], "pt") as old:
                    tensor = new.get_tensor(name)
                    changed += int((tensor != old.get_tensor(name)).sum())
                    total += tensor.numel()
    return changed / total if total else 1.0


def _names(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return list(file.keys())


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Appends a line of metrics for each step, writes a model folder for each epoch, and a trainer
    checkpoint whenever the last one is `checkpoint_seconds` old."""

    def __init__(self, base: Path, out: Path, checkpoint_seconds: float) -> None:
        self._checkpoint_seconds = checkpoint_seconds
        self._saved_at = time.monotonic()
        self._base = base
        self._out = out
        self._metrics = out / METRICS
        self._step_began = 0.0
        self._tokens = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop lines of steps that will be taken again."""
        if not ranks.is_first():
            return
        kept = [line for line in read_metrics(self._metrics) if line["step"] <= state.global_step]
        self._metrics.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._step_began = time.monotonic()

    def on_substep_end(self, args: Any, *_: Any, **__: Any) -> None:
        moved(Path(args.output_dir))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        old = time.monotonic() - self._saved_at > self._checkpoint_seconds
        if old and state.global_step < state.max_steps:
            control.should_save = True

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        seconds = time.monotonic() - self._step_began
        tokens = logs.pop("num_tokens", self._tokens)
        line = {"step": state.global_step, "total_steps": state.max_steps} | {
            name: value if math.isfinite(value) else None  # NaN is no JSON
            for name, value in logs.items()
            if name.startswith(("rewards/", "logps/"))
            or name in ("loss", "learning_rate", "grad_norm", "epoch")
        }
        line |= {"tokens_per_second": (tokens - self._tokens) / seconds, "seconds": seconds}
        self._tokens = tokens
        if ranks.is_first():
            with self._metrics.open("a") as file:
                file.write(json.dumps(line) + "\n")
        if not math.isfinite(logs["loss"]):
            raise TrainError(
                f"the loss is {logs['loss']} at step {state.global_step}; a smaller learning rate "
                "may help",
                "training.learning_rate",
            )

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        epoch = round(state.epoch)
        save_model(kwargs["model"], self._base, epoch_folder(self._out, epoch))
        if epoch >= args.num_train_epochs:
            control.should_save = False  # Nothing is left to resume.

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        ranks.wait()  # each has written its part of it
        if ranks.is_first():
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        self._saved_at = time.monotonic()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics file; a line cut by a kill is left out."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]
