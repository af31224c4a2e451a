"""The visible part of one answer: text, tool calls and log-probabilities, made from the pieces
that the engine's second phase makes. No I/O."""

import string
from dataclasses import dataclass, field

from services.chat.tool_calls import Call, ToolCallReader
from shared.errors import PlatformError, Unavailable
from shared.thinking.answer_filter import AnswerFilter
from shared.vllm.answers import Choice, TokenLogprob

UNTOLD = string.whitespace + "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Piece:
    """To be shown next; the last piece of a choice has a `finish_reason` of OpenAI's."""

    text: str = ""
    calls: list[Call] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None


class AnswerReader:
    """`read` the engine's pieces in their order. What they are cut into changes nothing."""

    def __init__(self, thoughts: AnswerFilter, tools: ToolCallReader | None) -> None:
        self._thoughts = thoughts
        self._tools = tools
        self._logprobs = _Logprobs(thoughts)
        self._has_text = False
        self._has_calls = False

    def read(self, choice: Choice) -> Piece:
        """Raises `PlatformError` where an answer ends without having said anything."""
        text = self._thoughts.feed(choice.text)
        if choice.finish_reason:
            text += self._thoughts.end()
        calls: list[Call] = []
        if self._tools:
            text, calls = self._tools.feed(text)
            if choice.finish_reason:
                text += self._tools.end()
        self._has_text |= bool(text)
        self._has_calls |= bool(calls)
        logprobs = self._logprobs.take(choice)
        return Piece(text, calls, logprobs, self._finish_reason(choice))

    @property
    def hidden(self) -> int:
        """Thoughts that the answer would have shown."""
        return self._thoughts.hidden

    def _finish_reason(self, choice: Choice) -> str | None:
        if choice.finish_reason in (None, "length"):
            return choice.finish_reason
        if choice.finish_reason != "stop":
            # The engine gave the request up, as for a model that takes this one's place.
            raise Unavailable("the answer was cut off; ask again", retry_after=5)
        if self._has_calls:
            return "tool_calls"
        if not self._has_text and not isinstance(choice.stop_reason, str):
            raise PlatformError("the model gave an empty answer; ask again", code="empty_answer")
        return "stop"


class _Logprobs:
    """Gives a token out once its text is shown: not while that is held back, nor behind a hidden
    thought, nor where it is part of a stop string or the model's end.

    A token is found in the answer by its text. Lengths do not add up: an engine writes nothing for
    a part of a character, and some write a token without the space before it.
    """

    def __init__(self, thoughts: AnswerFilter) -> None:
        self._thoughts = thoughts
        self._waiting: list[TokenLogprob] = []
        self._answer = ""
        self._end = 0
        """Offset in the answer of the last token given out."""

    def take(self, choice: Choice) -> list[TokenLogprob]:
        if not (choice.logprobs or self._answer):
            return []  # none are asked for
        self._answer += choice.text
        self._waiting += choice.logprobs
        count = 0
        while count < len(self._waiting) and self._passes(self._waiting[count].text):
            count += 1
        given, self._waiting = self._waiting[:count], self._waiting[count:]
        return given

    def _passes(self, text: str) -> bool:
        clear = self._thoughts.clear
        bare = text.strip(UNTOLD)
        if not bare:  # says nothing, but may be part of a stop string
            return not text or self._end < clear
        while self._end < clear and self._answer[self._end] in UNTOLD:
            self._end += 1
        end = self._end + len(bare)
        if end > clear or not self._answer.startswith(bare, self._end):
            return False
        self._end = end
        return True
