"""Keeps a second thought out of an answer.

An answer begins behind the response marker, and normally holds no thought. A model may begin
another one all the same: from the thought marker, in whatever case, to the next response marker
nothing is shown. Text that may yet become a marker is held back, so the result does not depend on
where pieces end.
"""

import string

from shared.formats import ThoughtFormat

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def fold(text: str) -> str:
    """`text` without the case of its ASCII letters; every character stays in its place."""
    return text.translate(_LOWER)


class AnswerFilter:
    """`feed` the answer's pieces as they come, then `end`; what they return is to be shown."""

    def __init__(self, thought_marker: str, response_marker: str) -> None:
        self._thought_marker = fold(thought_marker)
        self._response_marker = fold(response_marker)
        self._held = ""
        self._thinking = False
        self._begun = False
        self.hidden = 0
        """Thoughts that have been kept out so far."""
        self.clear = 0
        """Characters from the answer's beginning that are known to come before any thought."""

    def feed(self, text: str) -> str:
        if not self._thought_marker:
            self.clear += len(text)
            return self._without_leading_space(text)
        self._held += text
        shown = ""
        while True:
            marker = self._response_marker if self._thinking else self._thought_marker
            folded = fold(self._held)
            at = folded.find(marker)
            end = len(folded) - held_back(folded, marker) if at < 0 else at
            if not self._thinking:
                shown += self._held[:end]
                self.clear += 0 if self.hidden else end
            if at < 0:
                self._held = self._held[end:]
                break
            self._held, self._thinking = self._held[at + len(marker) :], not self._thinking
            self.hidden += self._thinking
        return self._without_leading_space(shown)

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
    thoughts = AnswerFilter(fmt.thought_marker, fmt.response_marker)
    return thoughts.feed(response) + thoughts.end()


def held_back(text: str, marker: str) -> int:
    """Length of the longest end of `text` that is a beginning of `marker`, and not all of it."""
    return next(
        (n for n in range(min(len(text), len(marker) - 1), 0, -1) if marker.startswith(text[-n:])),
        0,
    )
