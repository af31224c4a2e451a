"""Coordination of the processes of one training on several GPUs: the first writes, others wait.

`accelerate launch` gives each of them a rank by its environment; without one, there is one process.
"""

import logging
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState

T = TypeVar("T")
PATIENCE = timedelta(hours=2)
"""Time that ranks wait for the first one, which hashes a model and computes what has changed."""


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def local_world_size() -> int:
    """Number of processes of the training on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def is_first() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


def join() -> None:
    """Meet the other ranks; before anything else that is done together."""
    if world_size() > 1:
        PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def wait() -> None:
    """Until all ranks are here. Where one has died, the launcher ends those that wait."""
    if world_size() > 1:
        torch.distributed.barrier()


def leave() -> None:
    """Part from the other ranks, at the end."""
    if world_size() > 1:
        wait()
        torch.distributed.destroy_process_group()


def end(status: int) -> None:
    """Exit as a rank, without an interpreter's own end: there a thread of torch's has at times
    aborted a process whose work was done. Alone, it does nothing."""
    if world_size() > 1:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def first_ahead(make: Callable[[], T]) -> T:
    """Call `make` at the first rank, then at the others, which find its files."""
    if not is_first():
        wait()
        return make()
    made = make()
    wait()
    return made


def from_first(make: Callable[[], T]) -> T:
    """Call `make` at the first rank, and return its result at all of them."""
    if world_size() == 1:
        return make()
    box = [make() if is_first() else None]
    torch.distributed.broadcast_object_list(box)
    return box[0]  # type: ignore[return-value]
