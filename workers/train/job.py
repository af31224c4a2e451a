"""Stage: pairs -> checkpoints. The edge between the database and `workers.train.train`.

`python -m workers.train.job --job ID`. Writes the pairs to a file, runs the training in a process
of its own (in this one's group), passes its progress on, and registers the checkpoints.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import and_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased

from shared.db.engine import transaction
from shared.db.tables import Completion, Iteration, Job, Json, Model, Pair, Prompt, SampledPrompt
from shared.jobs.shards import Claim
from shared.process import ending_with_us
from shared.registry.lineage import checkpoint_lineage, iteration_of
from shared.registry.models import training_folder
from shared.settings import get_settings
from shared.thinking.formats import ThoughtFormat
from workers.job_spec import JobSpec
from workers.leases import Leases, StageError, bound, leases
from workers.models.weights import ModelWeights, folder_bytes
from workers.resource_errors import DISK_FULL, OUT_OF_MEMORY, disk_full_message, oom_kills
from workers.stage import LEASE_LOST, arguments, start
from workers.train import files
from workers.train.metrics_file import MetricsFile
from workers.train.movement import Movement
from workers.train.resume import SEAL

log = logging.getLogger(__name__)
POLL_SECONDS = 0.5
FIXED_THREADS = {"MKL_DYNAMIC": "FALSE", "OMP_DYNAMIC": "FALSE"}
"""On a busy CPU, MKL may take fewer threads for a product, whose sums then round otherwise."""
CHUNK = 100
"""Pairs in memory at once."""


class OutOfMemory(Exception):
    """The training died for want of memory."""


def main(job: JobSpec, worker: str) -> None:
    assert job.weights is not None
    with leases(job.id, worker) as held:
        claim = held.claim(on_lost=_leave)
        if claim is None:
            return
        with bound(claim):
            try:
                _train(held, claim, job.params, job.weights)
            except StageError as error:
                held.fail(claim, error)


def _leave() -> None:
    # Another worker has the training now; the runtime ends this group when it sees us gone.
    log.warning("lease lost, leaving")
    os._exit(LEASE_LOST)


def _train(held: Leases, claim: Claim, params: Json, base: ModelWeights) -> None:
    with held.ours(claim):
        out = _workplace(training_folder(claim.job_id), claim)
    pairs = out / files.PAIRS
    _write_pairs(claim, params, pairs)
    training = params["training"] | claim.payload.get("smaller", {})
    config = {
        "model_path": str(base.path),
        "pairs_path": str(pairs),
        "out_dir": str(out),
        "checkpoint_seconds": get_settings().checkpoint_seconds,
        "settings": training,
        "run_name": str(claim.job_id),
    }
    (out / files.CONFIG).write_text(json.dumps(config, indent=2))
    try:
        _run(held, claim, out)
    except OutOfMemory:
        held.hand_back(claim, claim.payload | {"smaller": _smaller(claim, out, training)})
        return
    result = json.loads((out / files.RESULT).read_text())
    for checkpoint in result["checkpoints"]:
        checkpoint["path"] = str((out / checkpoint["path"]).resolve())
    held.finish(claim, result, lambda session: _register(session, claim, base, result))


def _workplace(job_folder: Path, claim: Claim) -> Path:
    """A folder of this attempt's own, begun with all that the attempt before has left.

    That one may be suspended, and woken later: it knows the old name alone, so it cannot write
    into this folder. Nor may it take the folder back: the claim must be held meanwhile.
    """
    out = job_folder / f"attempt-{claim.token.hex[:8]}"
    job_folder.mkdir(parents=True, exist_ok=True)
    for earlier in job_folder.glob("attempt-*"):
        if (earlier / files.INPUTS).exists() and not out.exists():
            with suppress(FileNotFoundError):
                earlier.rename(out)
        else:
            shutil.rmtree(earlier, ignore_errors=True)
    out.mkdir(exist_ok=True)
    for aside in out.glob(".epoch-*"):
        shutil.rmtree(aside)  # its writer was killed
    return out


def _smaller(claim: Claim, out: Path, training: Json) -> Json:
    """Settings of the one retry after an out-of-memory death."""
    used = out / files.USED_SETTINGS
    micro = (json.loads(used.read_text()) if used.exists() else training)["micro_batch_size"]
    if "smaller" in claim.payload or micro == 1:
        raise StageError(
            f"the training ran out of memory with a micro-batch of {micro} pairs; a smaller one, "
            "a smaller max_length or lora may help",
            code="out_of_memory",
            param="training.micro_batch_size",
        )
    log.warning("out of memory with micro-batches of %d pairs; halving", micro)
    return {"micro_batch_size": micro // 2}


def _write_pairs(claim: Claim, params: Json, path: Path) -> None:
    """JSONL, a line a pair: a `TokenPair` where its outputs have token ids, else a `TextPair`."""
    with path.open("w") as file, transaction() as session:
        rows = claim.payload.get("pairs") or _iteration_pairs(session, params)
        for row in rows:
            file.write(json.dumps(row) + "\n")


def _iteration_pairs(session: Session, params: Json) -> Iterator[Json]:
    iteration = session.get_one(Iteration, uuid.UUID(params["iteration_id"]))
    format_ = ThoughtFormat.model_validate(iteration.config["thought_format"])
    chosen, rejected = aliased(Completion), aliased(Completion)
    rows = session.execute(
        select(
            Prompt.text, chosen, rejected, SampledPrompt.ids, chosen.output_ids, rejected.output_ids
        )
        .select_from(Pair)
        .join(Prompt, Prompt.id == Pair.prompt_id)
        .join(chosen, chosen.id == Pair.chosen_id)
        .join(rejected, rejected.id == Pair.rejected_id)
        .join(Job, Job.id == chosen.job_id)
        .outerjoin(
            SampledPrompt,
            and_(
                SampledPrompt.job_id == chosen.job_id,
                SampledPrompt.prompt_index == chosen.prompt_index,
                # Ids mean something to the tokenizer that they were sampled with.
                Job.params["model"].as_string() == params["model"],
            ),
        )
        .where(Pair.iteration_id == iteration.id)
        .order_by(Pair.id)
        .execution_options(yield_per=CHUNK)
    )
    for text, good, bad, prompt_ids, chosen_ids, rejected_ids in rows:
        if prompt_ids is not None:
            yield {
                "prompt_ids": prompt_ids,
                "chosen_ids": chosen_ids,
                "rejected_ids": rejected_ids,
            }
        else:
            yield {
                "prompt": format_.prompt(text),
                "chosen": good.output,
                "rejected": bad.output,
                "chosen_truncated": good.truncated,
                "rejected_truncated": bad.truncated,
            }


def _run(held: Leases, claim: Claim, out: Path) -> None:
    """Run the training; its output goes to a log file beside the checkpoints."""
    error_file = out / files.REFUSAL
    error_file.unlink(missing_ok=True)
    kills = oom_kills()
    metrics = MetricsFile(out / files.METRICS)
    with (out / files.LOG).open("ab") as output:
        child = subprocess.Popen(
            # At once: it has nothing to put in order, and the next attempt resumes.
            ending_with_us(
                [sys.executable, "-m", "workers.train.launch", "--config", str(out / files.CONFIG)],
                signal.SIGKILL,
            ),
            env={**FIXED_THREADS, **os.environ},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        saved, movement = _checkpoints(out), Movement(out)
        while child.poll() is None:
            if movement.still_seconds() > get_settings().training_stall_seconds:
                child.kill()
                raise _hung()
            if (latest := metrics.latest()) is not None:
                held.report(claim, latest)
            there = _checkpoints(out)
            if there - saved:
                held.count_anew(claim)
            saved = there  # a training that began anew has removed the earlier ones
            time.sleep(POLL_SECONDS)
    if child.returncode == 0:
        return
    if child.returncode == DISK_FULL:
        raise StageError(disk_full_message(out), code="disk_full")
    killed_for_memory = child.returncode == -signal.SIGKILL and oom_kills() > kills
    if child.returncode == OUT_OF_MEMORY or killed_for_memory:
        raise OutOfMemory
    if error_file.exists():
        error = json.loads(error_file.read_text())
        raise StageError(error["message"], code="training_refused", param=error["param"])
    tail = (out / files.LOG).read_text(errors="replace").splitlines()[-15:]
    raise StageError(
        f"the training ended with {child.returncode}; its last lines:\n" + "\n".join(tail),
        code="training_failed",
        retry=True,
    )


def _hung() -> StageError:
    minutes = round(get_settings().training_stall_seconds / 60)
    message = f"the training wrote nothing for {minutes} minutes; see the end of its {files.LOG}"
    return StageError(message, code="training_hung", retry=True)


def _checkpoints(out: Path) -> set[str]:
    """Checkpoints that a next attempt would resume from."""
    return {path.parent.name for path in out.glob(f"{files.SCRATCH}/checkpoint-*/{SEAL}")}


def _register(session: Session, claim: Claim, base: ModelWeights, result: dict[str, Any]) -> None:
    """A row for each checkpoint. Ids derive from job and epoch, so a repeat finds the same."""
    iteration = iteration_of(session, claim.job_id)
    training = {"training": result["settings"], "versions": result["versions"]}
    lineage = checkpoint_lineage(session, iteration, training)
    rows = [
        {
            "id": uuid.uuid5(claim.job_id, f"epoch-{checkpoint['epoch']}"),
            "source": f"train:{claim.job_id}",
            "path": checkpoint["path"],
            "weights_sha256": checkpoint["weights_sha256"],
            "size_bytes": folder_bytes(Path(checkpoint["path"])),
            "parent_id": uuid.UUID(base.id),
            "job_id": claim.job_id,
            "epoch": checkpoint["epoch"],
            "lineage": lineage,
        }
        for checkpoint in result["checkpoints"]
    ]
    session.execute(insert(Model).values(rows).on_conflict_do_nothing())


if __name__ == "__main__":
    args = arguments(__doc__)
    start(args, lambda job: main(job, args.worker))
