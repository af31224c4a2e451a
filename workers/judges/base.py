"""What a judge is: it scores responses, and sees no thought and no thought prompt."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from shared.schemas import JudgeItem, JudgeSpec


@dataclass(frozen=True, slots=True)
class Score:
    """Higher is better; the range is the judge's own. `details` is stored as JSON."""

    value: float
    details: dict[str, Any] = field(default_factory=dict)


class Judge(ABC):
    name: ClassVar[str]
    """Kind and version, e.g. `verifier/1`: stored with every score, raised with every change
    that can change a score."""

    def __init__(self, spec: JudgeSpec) -> None:
        self.spec = spec

    @abstractmethod
    def score(self, items: Sequence[JudgeItem]) -> list[Score]:
        """One score an item, in order.

        Raises ValueError where the items or the spec can't be judged at all; trying again won't
        help then.
        """
