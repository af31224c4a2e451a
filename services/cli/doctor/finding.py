"""What a look at one thing has found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """`fix` says what to do where it is not in order; a `problem` keeps things from running."""

    subject: str
    detail: str
    fix: str = ""
    problem: bool = False

    @property
    def mark(self) -> str:
        return "✗" if self.problem else "!" if self.fix else "✓"


def problem(subject: str, detail: str, fix: str) -> Finding:
    return Finding(subject, detail, fix, problem=True)
