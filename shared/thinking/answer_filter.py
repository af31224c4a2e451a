"""Keeps thoughts out of an answer.

An answer begins behind the response marker, and normally holds no thought. A model may begin
another one all the same: from a thought's marker, in whatever case, to the one that ends it
nothing is shown. And a model whose thought was cut short may go on with it behind the marker that
was put in, until it writes that marker itself: such an answer is shown once it is known not to.
Text that may yet become a marker is held back, so the result does not depend on where pieces end.
"""

import json
import re
import string
from collections.abc import Sequence

from shared.thinking.formats import Marks, ThoughtFormat

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
        self._cut_end = _pattern(cut_before, calls) if cut_before else None
        self._searched = 0
        """Up to here, what is held has no marker that ends a thought that was cut short."""
        self._in_call = False
        """True while a tool call has begun and not ended."""
        self._calls = calls
        self._held = ""
        self._open: Marks | None = None
        """The marks of the thought whose end is awaited."""
        self._begun = self._is_over = False
        self.hidden = 0
        """Thoughts that have been kept out so far."""
        self.clear = 0
        """Characters from the answer's beginning that are known to be shown as they are."""
        self._is_whole = True
        """True as long as nothing has been left out."""

    def feed(self, text: str) -> str:
        self._held += text
        if self._cut_end:
            put_in = self._marker_of_cut(self._cut_end, len(text))
            if put_in is None:
                return ""
            self.hidden += bool(self._held[: put_in.start()].strip())
            self._held, self._cut_end = self._held[put_in.end() :], None
            self._is_whole = False
        shown = ""
        while (found := self._found()) is not None:
            at, marker, marks = found
            is_call = marks is self._calls
            shown += self._shown(at + len(marker) if is_call else at)
            self._held = self._held[at + len(marker) :]
            self._open = None if self._open else marks
            self.hidden += self._thinking
            self._is_whole &= not self._thinking
        kept = max((held_back(self._text(marks), m) for m, marks in self._awaited()), default=0)
        end = len(self._held) - kept
        shown += self._shown(end)
        self._held = self._held[end:]
        return self._without_leading_space(shown)

    def _marker_of_cut(self, pattern: re.Pattern[str], new: int) -> re.Match[str] | None:
        """Behind which the answer begins. A call is passed over: its arguments may hold one. The
        answer may be long: what has been searched is not searched again."""
        if self._in_call and self._calls and not self._is_over:
            recent = self._held[-new - len(self._calls.end) :]
            if self._calls.end not in recent:
                return None
        at = self._searched
        while (found := pattern.search(self._held, at)) is not None:
            if found["marker"] is not None:
                return found
            self._in_call = found["open"] is not None and not self._is_over
            if self._in_call:
                self._searched = found.start()
                return None
            at = found.end() if _is_json(found["call"]) else found.start() + 1
        self._searched = max(at, len(self._held) - len(pattern.pattern))
        return None

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
        """Find the first awaited marker: its offset, the marker, and the marks around it."""
        places = [(self._text(marks).find(m), m, marks) for m, marks in self._awaited()]
        return min((p for p in places if p[0] >= 0), key=lambda p: p[0], default=None)

    def _shown(self, end: int) -> str:
        """Release the held text up to here, unless it is a thought."""
        if self._thinking:
            return ""
        self.clear += end if self._is_whole else 0
        return self._held[:end]

    def end(self) -> str:
        """Release the text that was held back and became no marker."""
        self._is_over = True
        shown = self.feed("")
        if self._cut_end:
            self._cut_end = None
            shown = self.feed("")
        rest = "" if self._thinking else self._held
        self._held = ""
        self.clear += len(rest) if self._is_whole else 0
        return shown + self._without_leading_space(rest)

    def _without_leading_space(self, text: str) -> str:
        # White space behind the marker belongs to neither thought nor response.
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        return text


def visible(response: str | None, fmt: ThoughtFormat, *, forced: bool) -> str | None:
    """Return the part of a whole response that a reader without the scope `thoughts` may see. None
    stands for no response. `forced` tells if the marker before the response was put in."""
    if response is None:
        return None
    thoughts = AnswerFilter(fmt.marks, cut_before=fmt.response_marker if forced else "")
    return thoughts.feed(response) + thoughts.end()


def _pattern(marker: str, calls: Marks | None) -> re.Pattern[str]:
    """A `marker`, in whatever case, or what looks like a `call`, `open` if its end is to come."""
    either = f"(?P<marker>(?ai:{re.escape(marker)}))"
    begin, end = map(re.escape, calls) if calls else ("(?!)", "")
    call = rf"{begin}(?P<call>\s*\{{.*?)(?:{end}|(?P<open>\Z))"
    return re.compile(f"{either}|{call}", re.DOTALL)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def held_back(text: str, marker: str) -> int:
    """Length of the longest end of `text` that is a beginning of `marker`, and not all of it."""
    return next(
        (n for n in range(min(len(text), len(marker) - 1), 0, -1) if marker.startswith(text[-n:])),
        0,
    )
