"""What a scripted engine's model writes, and what goes wrong while it does."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from shared.thinking.formats import GENERIC


@dataclass(frozen=True)
class Play:
    """What happens in answer to one request: a text, and what goes wrong with it."""

    text: str
    finish: str | None = None
    """In place of the reason for which the text ends, such as `abort`."""
    breaks_after: int | None = None
    """A stream ends without a word after so many tokens."""
    fails_after: int | None = None
    """A stream ends with an error event after so many; its message holds the whole text."""
    fails: bool = False
    """The request is answered with status 500 and a message that holds the whole text."""
    tokens_an_event: tuple[int, ...] = (1,)
    """Of a stream, in turn."""


SHOWN_RESPONSE = re.compile(r"\[The Start of Assistant.*?\]\n(.*?)\n\[The End", re.DOTALL)
"""Matches a response as it is shown to a judge."""

Script = Callable[[str, int], str | Play]
"""(prompt with all its special tokens, seed) -> what the model writes before it ends its turn."""


def long_outputs(tokens: int, variants: int = 64) -> Script:
    """Outputs of about `tokens` characters in the specific format, of which one in eight does not
    parse; which one comes depends on prompt and seed."""
    filler = "so it goes on and on, "
    half = (filler * (tokens // len(filler) + 1))[: tokens // 2 - 20]
    texts = [
        half + ("<R>" if v % 8 else "") + f"word {v} " + half[: len(half) - v] + "."
        for v in range(variants)
    ]

    def script(prompt: str, seed: int) -> str:
        return texts[(seed * 2_654_435_761 + len(prompt)) % 2**32 % variants]

    return script


def chat(thought: str, answer: str, tokens_an_event: int) -> Script:
    """One thought where one is asked for, and one answer."""
    streamed = Play(answer, tokens_an_event=(tokens_an_event,))

    def script(prompt: str, _: int) -> str | Play:
        asked = GENERIC.thought_marker in prompt and prompt.endswith("assistant\n")
        return thought if asked else streamed

    return script


def prefers_short(text: str, seed: int) -> str | Play:
    """As `some_good_some_bad`; as a judge for the shorter of two responses, of equals for none."""
    if "impartial judge" not in text:
        return some_good_some_bad(text, seed)
    first, second = SHOWN_RESPONSE.findall(text)
    if len(first) == len(second):
        return "I cannot tell them apart."
    return f"The shorter one. [[{'A' if len(first) < len(second) else 'B'}]]"


def some_good_some_bad(text: str, seed: int) -> str:
    """Of the words asked for, or more; one in eight without a marker. Behind one, just words."""
    words = "word " * (1 + seed % 5)
    if not text.endswith("assistant\n"):
        return words
    return f"hm, {seed % 7} it is. {'<R>' if seed % 8 else ''} {words}"
