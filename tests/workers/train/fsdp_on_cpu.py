"""`workers.train.train` by FSDP2 on CPUs: accelerate has it on accelerators only, torch has it on
both.

`DIES_IN` in the environment names an epoch's folder at which every rank dies. `HEAD` says that the
log-probabilities are to be TRL's, as on GPUs.
"""

import os
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import Trainer

from workers.train import checkpoints, lm_head, train

create_accelerator = Trainer.create_accelerator_and_postprocess
save_model = checkpoints.save_model


def as_on_gpus(trainer: Any) -> None:
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    create_accelerator(trainer)
    assert trainer.accelerator.distributed_type is DistributedType.FSDP


def save_or_die(model: Any, base: Path, folder: Path) -> None:
    if folder.name == os.environ.get("DIES_IN"):
        os._exit(9)
    save_model(model, base, folder)


Trainer.create_accelerator_and_postprocess = as_on_gpus
checkpoints.save_model = save_or_die
if os.environ.get("HEAD") == "theirs":
    lm_head.suits = lambda model: False
sys.exit(train.command())
