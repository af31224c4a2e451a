"""Keeps a second thought out of an answer.

An answer begins behind the response marker, and normally holds no thought. A model may begin
another one all the same: from a thought's marker, in whatever case, to the one that ends it
nothing is shown. Text that may yet become a marker is held back, so the result does not depend on
where pieces end.
"""

import string
from collections.abc import Sequence

from shared.formats import Marks, ThoughtFormat

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def fold(text: str) -> str:
    """`text` without the case of its ASCII letters; every character stays in its place."""
    return text.translate(_LOWER)


class AnswerFilter:
    """`feed` the answer's pieces as they come, then `end`; what they return is to be shown."""

    def __init__(self, marks: Sequence[Marks]) -> None:
        """Without `marks`, all is shown."""
        self._marks = [Marks(fold(begin), fold(end)) for begin, end in marks]
        self._held = ""
        self._thinking: Marks | None = None
        self._begun = False
        self.hidden = 0
        """Thoughts that have been kept out so far."""
        self.clear = 0
        """Characters from the answer's beginning that are known to come before any thought."""

    def feed(self, text: str) -> str:
        self._held += text
        shown = ""
        while (found := self._found()) is not None:
            at, marker, marks = found
            shown += self._shown(at)
            self._held = self._held[at + len(marker) :]
            self._thinking = None if self._thinking else marks
            self.hidden += self._thinking is not None
        folded = fold(self._held)
        end = len(folded) - max((held_back(folded, m) for m, _ in self._awaited()), default=0)
        shown += self._shown(end)
        self._held = self._held[end:]
        return self._without_leading_space(shown)

    def _awaited(self) -> list[tuple[str, Marks]]:
        """Markers that change what is shown, each with its pair."""
        if self._thinking:
            return [(self._thinking.end, self._thinking)]
        return [(marks.begin, marks) for marks in self._marks]

    def _found(self) -> tuple[int, str, Marks] | None:
        """Where the first of them stands."""
        folded = fold(self._held)
        places = [(folded.find(m), m, marks) for m, marks in self._awaited()]
        return min((p for p in places if p[0] >= 0), key=lambda p: p[0], default=None)

    def _shown(self, end: int) -> str:
        """What is held, up to here, unless it is a thought."""
        if self._thinking:
            return ""
        self.clear += 0 if self.hidden else end
        return self._held[:end]

    def end(self) -> str:
        """What was held back and became no marker."""
        rest = "" if self._thinking else self._held
        self._held = ""
        self.clear += 0 if self.hidden else len(rest)
        return self._without_leading_space(rest)

    def _without_leading_space(self, text: str) -> str:
        # White space behind the marker belongs to neither thought nor response.
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        return text


def visible(response: str | None, fmt: ThoughtFormat) -> str | None:
    """What of a whole response is shown to who may not read thoughts; None is no response."""
    if response is None:
        return None
    thoughts = AnswerFilter(fmt.marks)
    return thoughts.feed(response) + thoughts.end()


def held_back(text: str, marker: str) -> int:
    """Length of the longest end of `text` that is a beginning of `marker`, and not all of it."""
    return next(
        (n for n in range(min(len(text), len(marker) - 1), 0, -1) if marker.startswith(text[-n:])),
        0,
    )
