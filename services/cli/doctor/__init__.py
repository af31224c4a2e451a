"""`forethought doctor`: what this machine lacks, and what to do about it."""

from collections.abc import Iterator

from services.cli.datadir import DataDir
from services.cli.doctor import gpu, machine, packages, servers
from services.cli.doctor.finding import Finding


def examine(data: DataDir) -> Iterator[Finding]:
    yield from packages.examine()
    yield from machine.examine(data)
    yield from servers.examine(data)
    yield from gpu.examine()
