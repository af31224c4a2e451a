"""Start a training on all GPUs that are visible: `python -m workers.train.launch --config FILE`.

On one GPU, or none, it trains itself. On several it starts `workers.train.train` for each by
`accelerate launch`, with a configuration of `configs/accelerate/`. Over several machines the
configuration is the operator's (FORETHOUGHT_ACCELERATE_CONFIG; `docs/operate.md`), and the others
wait with one for the same. Exit statuses are those of `workers.train.train`.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import torch

from shared.process import ending_with_us
from shared.settings import get_settings
from workers.resource_errors import OUT_OF_MEMORY, oom_kills
from workers.train.files import RANK_STATUS

CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"
ON_MACHINES = "training.json"
"""In the model store: what is trained on several machines, one training at a time."""


def main(config: Path, processes: int) -> int:
    launch = _launch(config, processes)
    if launch is None:
        from workers.train import train  # noqa: PLC0415 (TRL takes seconds, which a launcher does without)

        return train.run(config)
    status = config.parent / RANK_STATUS
    status.unlink(missing_ok=True)
    kills = oom_kills()
    ranks = ["-m", "workers.train.train", "--config", str(config)]
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch, *ranks]
    done = subprocess.run(ending_with_us(command, signal.SIGKILL))
    # The launcher says of its ranks only that one has failed.
    if done.returncode != 0 and status.exists():
        return int(status.read_text())
    if done.returncode != 0 and oom_kills() > kills:
        return OUT_OF_MEMORY
    return done.returncode


def _launch(config: Path, processes: int) -> list[str] | None:
    """Arguments of `accelerate launch`; None where nothing is to be launched."""
    if (own := get_settings().accelerate_config) is not None:
        # Where processes of other machines look for it, once all have met.
        shutil.copyfile(config, get_settings().model_store / ON_MACHINES)
        return ["--config_file", str(own)]
    if processes == 1:
        return None
    # Port 0 is any free one: several trainings may share a machine.
    options = ["--num_processes", str(processes), "--main_process_port", "0"]
    return ["--config_file", str(CONFIGS / _config(config)), *options]


def _config(config: Path) -> str:
    """Full fine-tuning shards its 16 bytes a parameter; with an adapter, a copy a GPU will do."""
    has_adapter = json.loads(config.read_text())["settings"]["lora"] is not None
    return "fsdp2.yaml" if torch.cuda.is_available() and not has_adapter else "ddp.yaml"


def command() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=max(1, torch.cuda.device_count()))
    args = parser.parse_args()
    return main(args.config, args.processes)


if __name__ == "__main__":
    sys.exit(command())
