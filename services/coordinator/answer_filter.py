"""Keeps a second thought out of an answer.

An answer begins behind the response marker, and normally holds no thought. A model may begin
another one all the same: from the thought marker to the next response marker nothing is shown.
Text that may yet become a marker is held back, so the result does not depend on where pieces end.
"""


class AnswerFilter:
    """`feed` the answer's pieces as they come, then `end`; what they return is to be shown."""

    def __init__(self, thought_marker: str, response_marker: str) -> None:
        self._thought_marker = thought_marker
        self._response_marker = response_marker
        self._held = ""
        self._thinking = False
        self._begun = False

    def feed(self, text: str) -> str:
        self._held += text
        shown = ""
        while True:
            marker = self._response_marker if self._thinking else self._thought_marker
            if not marker:
                shown, self._held = shown + self._held, ""
                break
            before, found, after = self._held.partition(marker)
            keep = 0 if found else held_back(self._held, marker)
            if not self._thinking:
                shown += before[: len(before) - keep]
            if not found:
                self._held = self._held[len(self._held) - keep :]
                break
            self._held, self._thinking = after, not self._thinking
        return self._without_leading_space(shown)

    def end(self) -> str:
        """What was held back and became no marker."""
        rest = "" if self._thinking else self._held
        self._held = ""
        return self._without_leading_space(rest)

    def _without_leading_space(self, text: str) -> str:
        # White space behind the marker belongs to neither thought nor response.
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        return text


def held_back(text: str, marker: str) -> int:
    """Length of the longest end of `text` that is a beginning of `marker`, and not all of it."""
    return next(
        (n for n in range(min(len(text), len(marker) - 1), 0, -1) if marker.startswith(text[-n:])),
        0,
    )
