"""`forethought doctor`: what this machine lacks, and what to do about it."""

import os
from collections.abc import Iterator

from services.cli.doctor import gpu, machine, packages, servers
from services.cli.doctor.finding import Finding
from services.cli.machine.datadir import DataDir

DEPLOYED = ("FORETHOUGHT_DATABASE_URL", "FORETHOUGHT_MODEL_STORE")
"""What is set for each process of a deployed platform, as in its containers."""


def examine(data: DataDir) -> Iterator[Finding]:
    """`data` is that of `forethought up`, which a deployed platform has no use for."""
    of_up = None if all(os.environ.get(name) for name in DEPLOYED) else data
    yield from packages.examine()
    yield from machine.examine(of_up)
    yield from servers.examine(of_up)
    yield from gpu.examine()
