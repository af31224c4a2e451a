"""Keeps thoughts out of an answer.

An answer begins behind the response marker, and normally holds no thought. A model may begin
another one all the same: from a thought's marker, in whatever case, to the one that ends it
nothing is shown. And a model whose thought was cut short may go on with it behind the marker that
was put in, until it writes that marker itself: such an answer is shown once it is known not to.
Text that may yet become a marker is held back, so the result does not depend on where pieces end.
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

    def __init__(
        self, marks: Sequence[Marks], *, cut_before: str = "", calls: Marks | None = None
    ) -> None:
        """Without `marks`, all is shown. `cut_before` is the marker that was put in where a thought
        was cut short. Between `calls`, written exactly so, nothing is looked for: the JSON of a
        tool's arguments may hold any text."""
        self._marks = [Marks(fold(begin), fold(end)) for begin, end in marks]
        self._cut_before = fold(cut_before)
        self._calls = calls
        self._held = ""
        self._open: Marks | None = None
        """Whose end is awaited."""
        self._begun = False
        self.hidden = 0
        """Thoughts that have been kept out so far."""
        self.clear = 0
        """Characters from the answer's beginning that are known to come before any thought."""

    def feed(self, text: str) -> str:
        self._held += text
        if self._cut_before:
            # The answer may be long: what has been searched is not searched again.
            new = max(0, len(self._held) - len(text) - len(self._cut_before) + 1)
            rest, marker, behind = partition(self._held[new:], self._cut_before)
            if not marker:
                return ""
            self.hidden += bool(self._held[:new].strip() or rest.strip())
            self._held, self._cut_before = behind, ""
        shown = ""
        while (found := self._found()) is not None:
            at, marker, marks = found
            is_call = marks is self._calls
            shown += self._shown(at + len(marker) if is_call else at)
            self._held = self._held[at + len(marker) :]
            self._open = None if self._open else marks
            self.hidden += self._thinking
        kept = max((held_back(self._text(marks), m) for m, marks in self._awaited()), default=0)
        end = len(self._held) - kept
        shown += self._shown(end)
        self._held = self._held[end:]
        return self._without_leading_space(shown)

    @property
    def _thinking(self) -> bool:
        return self._open is not None and self._open is not self._calls

    def _awaited(self) -> list[tuple[str, Marks]]:
        """Markers that change what is shown, each with its pair."""
        if self._open:
            return [(self._open.end, self._open)]
        every = [*self._marks, *([self._calls] if self._calls else [])]
        return [(marks.begin, marks) for marks in every]

    def _text(self, marks: Marks) -> str:
        """In which a marker of this pair is looked for."""
        return self._held if marks is self._calls else fold(self._held)

    def _found(self) -> tuple[int, str, Marks] | None:
        """Where the first of them stands."""
        places = [(self._text(marks).find(m), m, marks) for m, marks in self._awaited()]
        return min((p for p in places if p[0] >= 0), key=lambda p: p[0], default=None)

    def _shown(self, end: int) -> str:
        """What is held, up to here, unless it is a thought."""
        if self._thinking:
            return ""
        self.clear += 0 if self.hidden else end
        return self._held[:end]

    def end(self) -> str:
        """What was held back and became no marker."""
        self._cut_before = ""
        shown = self.feed("")
        rest = "" if self._thinking else self._held
        self._held = ""
        self.clear += 0 if self.hidden else len(rest)
        return shown + self._without_leading_space(rest)

    def _without_leading_space(self, text: str) -> str:
        # White space behind the marker belongs to neither thought nor response.
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        return text


def visible(response: str | None, fmt: ThoughtFormat, *, forced: bool) -> str | None:
    """What of a whole response is shown to who may not read thoughts; None is no response. `forced`
    tells whether the marker before it was put in."""
    if response is None:
        return None
    thoughts = AnswerFilter(fmt.marks, cut_before=fmt.response_marker if forced else "")
    return thoughts.feed(response) + thoughts.end()


def partition(text: str, marker: str) -> tuple[str, str, str]:
    """As `str.partition`, in whatever case; `marker` is folded."""
    at = fold(text).find(marker)
    if at < 0:
        return text, "", ""
    end = at + len(marker)
    return text[:at], text[at:end], text[end:]


def held_back(text: str, marker: str) -> int:
    """Length of the longest end of `text` that is a beginning of `marker`, and not all of it."""
    return next(
        (n for n in range(min(len(text), len(marker) - 1), 0, -1) if marker.startswith(text[-n:])),
        0,
    )
