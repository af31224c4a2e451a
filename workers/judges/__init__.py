"""Judges by kind. A new one is a file here, a line below and its kind in `JudgeSpec`."""

from shared.schemas import JudgeSpec
from workers.judges.base import Judge, Score
from workers.judges.verifier import Verifier

__all__ = ["JUDGES", "Judge", "Score", "make_judge"]

JUDGES: dict[str, type[Judge]] = {
    "verifier": Verifier,
}


def make_judge(spec: JudgeSpec) -> Judge:
    return JUDGES[spec.kind](spec)
