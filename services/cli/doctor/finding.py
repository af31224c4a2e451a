"""The result of one check of the doctor."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Result of a check. `fix` says what to do; a `problem` stops the platform from running."""

    subject: str
    detail: str
    fix: str = ""
    problem: bool = False

    @property
    def mark(self) -> str:
        return "✗" if self.problem else "!" if self.fix else "✓"


def problem(subject: str, detail: str, fix: str) -> Finding:
    return Finding(subject, detail, fix, problem=True)
