"""Stage: preference pairs -> a model folder for each epoch, by TRL's `DPOTrainer`.

`python -m workers.train.train --config FILE.json`; the file holds a `TrainConfig`. In `out_dir`:
`epoch-1/ ...` model folders, `metrics.jsonl` a line a step, `result.json` at the end, or
`error.json` where the training is refused. Started again it resumes from its last good
checkpoint.

The reference is the start model: its log-probabilities are computed first, so that no second
model is in memory. One process, one device; `workers.train.launch` starts one for each of several,
whose steps are then the same as those of one.
"""

import argparse
import hashlib
import json
import logging
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import torch
from peft import LoraConfig
from pydantic import BaseModel, ConfigDict
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from shared.process import die_with_parent
from shared.schemas.requests import Training
from workers.models.files import ModelFolderError
from workers.models.folder import check_folder
from workers.models.weights import weights_sha256
from workers.resource_errors import exit_status
from workers.train import files, ranks
from workers.train.checkpoints import Recorder, changed_fraction, read_metrics
from workers.train.dpo import PairTrainer, computes_in_bfloat16, dpo_config, micro_batch_size
from workers.train.pairs import ChatTokens, TrainError, counts_of, tokenize_pairs
from workers.train.resume import epoch_folder, is_whole, last_good

log = logging.getLogger("workers.train.train")
STORED_PAIRS = "pairs.arrow"


class TrainConfig(BaseModel):
    """Configuration of a training. It says nothing of where the pairs came from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_path: Path
    """Folder of the start model, which is the reference too."""
    pairs_path: Path
    """JSONL; a line is a `TokenPair` or a `TextPair` of `workers/train/pairs.py`."""
    out_dir: Path
    checkpoint_seconds: float = 600.0
    """At most so much work is lost to a kill; the end of each epoch is a checkpoint, too."""
    settings: Training = Training()
    run_name: str | None = None
    """Its name where `settings.report_to` sends its figures."""


def main(config: TrainConfig) -> dict[str, Any]:
    """Train, and return what `result.json` holds. Raises `TrainError` for bad input."""
    ranks.join()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks.local_world_size()))
    config.out_dir.mkdir(parents=True, exist_ok=True)
    scratch = config.out_dir / files.SCRATCH
    if (done := ranks.from_first(lambda: _done_before(config, scratch))) is not None:
        return done
    trained = ranks.from_first(lambda: _has_all_epochs(config))
    seconds = 0.0 if trained else _train(config, scratch)
    return ranks.from_first(lambda: _write_result(config, scratch, seconds))


def _done_before(config: TrainConfig, scratch: Path) -> dict[str, Any] | None:
    _start_over_if_changed(config, scratch)
    result = config.out_dir / files.RESULT
    return json.loads(result.read_text()) if result.exists() else None


def _has_all_epochs(config: TrainConfig) -> bool:
    epochs = range(1, config.settings.epochs + 1)
    return all(is_whole(epoch_folder(config.out_dir, epoch)) for epoch in epochs)


def _write_result(config: TrainConfig, scratch: Path, seconds: float) -> dict[str, Any]:
    out = config.out_dir
    result = counts_of(scratch / STORED_PAIRS) | _result(config, seconds)
    aside = out / f"{files.RESULT}.part"
    aside.write_text(json.dumps(result, indent=2) + "\n")
    aside.replace(out / files.RESULT)
    shutil.rmtree(scratch, ignore_errors=True)
    return result


def _start_over_if_changed(config: TrainConfig, scratch: Path) -> None:
    """Keep what an earlier run left only if it had the same model, pairs and settings. How a step
    is split changes nothing of it, and is smaller after a run that was out of memory."""
    digest = hashlib.sha256(weights_sha256(config.model_path).encode())
    digest.update(config.settings.model_dump_json(exclude={"micro_batch_size"}).encode())
    with config.pairs_path.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    mark = config.out_dir / files.INPUTS
    if mark.exists() and mark.read_text() == digest.hexdigest():
        return
    shutil.rmtree(scratch, ignore_errors=True)
    for folder in config.out_dir.glob("epoch-*"):
        shutil.rmtree(folder)
    for name in (files.METRICS, files.RESULT):
        (config.out_dir / name).unlink(missing_ok=True)
    scratch.mkdir(parents=True)
    mark.write_text(digest.hexdigest())


def _train(config: TrainConfig, scratch: Path) -> float:
    """Seconds that TRL took, without the preparation of the pairs."""
    settings, base = config.settings, config.model_path
    arguments = dpo_config(settings, scratch)
    arguments.run_name = config.run_name
    try:
        check_folder(base)
    except ModelFolderError as error:
        raise TrainError(str(error), "model") from error
    if ranks.is_first():
        (config.out_dir / files.USED_SETTINGS).write_text(json.dumps(_resolved(config)))
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    tokens, longest = ChatTokens(tokenizer, _eos_ids(base)), _max_length(config)
    pairs = ranks.first_ahead(
        lambda: tokenize_pairs(config.pairs_path, tokens, longest, scratch / STORED_PAIRS)
    )
    started = time.monotonic()
    log.info("training on %d pairs of up to %d tokens", len(pairs), pairs[0]["length"])
    model = _load(settings, base)
    # Settings that only clash with one another or with this model.
    with _refusing(ValueError, NotImplementedError, ImportError):
        trainer = PairTrainer(
            model=model,
            args=arguments,
            train_dataset=pairs,
            processing_class=tokenizer,
            peft_config=_lora(settings),
            callbacks=[Recorder(base, config.out_dir, config.checkpoint_seconds)],
        )
    last = ranks.from_first(lambda: last_good(scratch, config.out_dir))
    with _refusing(ImportError):  # of what an optimizer needs, which is made last
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    return time.monotonic() - started


@contextmanager
def _refusing(*errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise TrainError(f"TRL refuses the training: {error}", "training.extra") from error


def _load(settings: Training, base: Path) -> Any:
    """The model to train. Weights in training are float32, whatever they are computed in.

    A step at a learning rate of 1e-6 is far below the spacing of bfloat16 numbers.
    """
    frozen = settings.lora is not None
    dtype = torch.bfloat16 if frozen and computes_in_bfloat16(settings) else torch.float32
    return AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False
    )


def _lora(settings: Training) -> LoraConfig | None:
    if settings.lora is None:
        return None
    return LoraConfig(
        r=settings.lora.rank,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def _max_length(config: TrainConfig) -> int:
    """Tokens of the longest pair: as set, and no more than the model can take."""
    model = AutoConfig.from_pretrained(config.model_path, trust_remote_code=False)
    positions = getattr(model.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    return min(config.settings.max_length, int(positions))


def _resolved(config: TrainConfig) -> dict[str, Any]:
    """The settings as they came to be used."""
    settings = config.settings
    used = {
        "dtype": "bfloat16" if computes_in_bfloat16(settings) else "float32",
        "micro_batch_size": micro_batch_size(settings),
        "processes": ranks.world_size(),
        "max_length": _max_length(config),
    }
    return settings.model_dump(mode="json") | used


def _eos_ids(base: Path) -> list[int]:
    """Tokens at which generation stops."""
    if not (base / "generation_config.json").exists():
        return []
    ids = GenerationConfig.from_pretrained(base).eos_token_id
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def _result(config: TrainConfig, seconds: float) -> dict[str, Any]:
    metrics = read_metrics(config.out_dir / files.METRICS)
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {
        "first_loss": metrics[0]["loss"],
        "last_loss": metrics[-1]["loss"],
        "reward_margin": metrics[-1]["rewards/margins"],
        "steps": metrics[-1]["step"],
        "tokens": round(sum(line["tokens_per_second"] * line["seconds"] for line in metrics)),
        "train_seconds": round(seconds, 3),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_gpu_memory_bytes": gpu,
        "settings": _resolved(config),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
        "checkpoints": [_checkpoint(config, n) for n in range(1, config.settings.epochs + 1)],
    }


def _checkpoint(config: TrainConfig, epoch: int) -> dict[str, Any]:
    folder = epoch_folder(config.out_dir, epoch)
    log.info("reading epoch %d", epoch)  # of a large model that takes long, and shows that it goes
    return {
        "epoch": epoch,
        "path": folder.name,
        "weights_sha256": weights_sha256(folder),
        "changed_fraction": changed_fraction(config.model_path, folder),
    }


def _stop(*_: object) -> NoReturn:
    sys.exit(143)


def command() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True)
    return run(parser.parse_args().config)


def run(config_file: Path) -> int:
    """Train as the file says; the status to exit with."""
    config = TrainConfig.model_validate_json(config_file.read_text())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    signal.signal(signal.SIGTERM, _stop)
    if ranks.world_size() > 1:
        # In a session of its own, a rank is not in the group of its stage; and one that waits for
        # others hears no other signal.
        die_with_parent(signal.SIGKILL)
    status = _status(config)
    if status != 0:
        with suppress(OSError), (config.out_dir / files.RANK_STATUS).open("x") as file:
            file.write(str(status))
    ranks.end(status)
    return status


def _status(config: TrainConfig) -> int:
    try:
        main(config)
        ranks.leave()
    except TrainError as error:
        log.error("%s", error)
        problem = {"message": error.message, "param": error.param}
        (config.out_dir / files.REFUSAL).write_text(json.dumps(problem) + "\n")
        return 2
    except Exception as error:
        log.exception("the training failed")
        return exit_status(error) or 1
    return 0


if __name__ == "__main__":
    sys.exit(command())
