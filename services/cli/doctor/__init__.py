"""`forethought doctor`: checks a machine and says what to fix."""

import os
from collections.abc import Iterator

from services.cli.doctor import gpu, machine, packages, servers
from services.cli.doctor.finding import Finding
from services.cli.machine.datadir import DataDir

DEPLOYED = ("FORETHOUGHT_DATABASE_URL", "FORETHOUGHT_MODEL_STORE")
"""Settings that every process of a deployed platform has, for example in a container."""


def examine(data: DataDir) -> Iterator[Finding]:
    """Check everything. `data` is the folder of `forethought up`; a deployed platform has none."""
    deployed = all(os.environ.get(name) for name in DEPLOYED)
    yield from packages.examine()
    yield from machine.examine(None if deployed else data)
    yield from servers.examine(None if deployed else data)
    yield from gpu.examine()
