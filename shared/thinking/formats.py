"""Thought formats: how a model is asked to think, and where its thought ends.

A format is data. `response_marker` ends the thought by plain string matching; a format without
one (`none`) is the direct baseline, whose whole output is the response.
Source of the generic and specific prompts: Wu et al., arXiv 2410.10630, figure 2.
"""

from typing import NamedTuple

from pydantic import Field, model_validator

from shared.base import RequestModel


class Marks(NamedTuple):
    """The markers that a thought begins and ends with."""

    begin: str
    end: str


NATIVE = Marks("<think>", "</think>")


class ThoughtFormat(RequestModel):
    """A thought prompt with its markers. `{query}` in the template is the user's instruction."""

    name: str = Field(min_length=1, max_length=64)
    template: str = Field(default="{query}", max_length=20_000)
    thought_marker: str = Field(default="", max_length=200)
    response_marker: str = Field(default="", max_length=200)
    prefill: bool = False
    """Begin the model's turn with the thought marker, instead of asking the model for it."""

    @model_validator(mode="after")
    def _is_usable(self) -> "ThoughtFormat":
        if "{query}" not in self.template:
            raise ValueError("template: must contain {query}")
        if self.thought_marker and not self.response_marker:
            raise ValueError("response_marker: is required with a thought_marker")
        if self.response_marker and self.response_marker in self.thought_marker:
            raise ValueError("response_marker: must not be a part of the thought_marker")
        marker = self.thought_marker.lower()
        if marker.startswith(NATIVE.begin) and marker != NATIVE.begin:
            raise ValueError(f"thought_marker: must not begin with {NATIVE.begin}, a marker itself")
        if self.prefill and not self.thought_marker:
            raise ValueError("prefill: needs a thought_marker")
        if self.response_marker != self.response_marker.strip():
            raise ValueError("response_marker: must not begin or end with white space")
        return self

    @property
    def thinks(self) -> bool:
        return bool(self.response_marker)

    @property
    def prefix(self) -> str:
        """Text that the model's turn begins with before it writes; a part of the output."""
        return self.thought_marker if self.prefill else ""

    @property
    def marks(self) -> tuple["Marks", ...]:
        """Between which nothing of an answer is shown: the format's own, and those that models
        which think by themselves write whatever they are asked for."""
        own = Marks(self.thought_marker, self.response_marker)
        return tuple(dict.fromkeys(m for m in (own, NATIVE) if m.begin))

    def prompt(self, query: str) -> str:
        """The user message for `query`. Plain replacement: braces in a query mean nothing."""
        return self.template.replace("{query}", query)

    def response_start(self, output: str) -> int | None:
        """Offset in characters of the response in `output`, or None where it does not parse.

        The response begins after the first response marker and its following white space. An
        output without the marker, or with nothing behind it, has no response.
        """
        start = 0
        if self.thinks:
            at = output.find(self.response_marker)
            if at < 0:
                return None
            start = at + len(self.response_marker)
        start += len(output[start:]) - len(output[start:].lstrip())
        return start if start < len(output) else None


GENERIC = ThoughtFormat(
    name="generic",
    template=(
        "Respond to the following user query in a comprehensive and detailed way. You can write "
        "down your thought process before responding. Write your thoughts after "
        '"Here is my thought process:" and write your response after "Here is my response:".'
        "\n\nUser query: {query}"
    ),
    thought_marker="Here is my thought process:",
    response_marker="Here is my response:",
)
SPECIFIC = ThoughtFormat(
    name="specific",
    template=(
        "Respond to the following user query in a comprehensive and detailed way. But first write "
        "down your internal thoughts. This must include your draft response and its evaluation. "
        'After this, write your final response after "<R>".\n\nUser query: {query}'
    ),
    response_marker="<R>",
)
THINK = ThoughtFormat(
    name="think", thought_marker=NATIVE.begin, response_marker=NATIVE.end, prefill=True
)
NONE = ThoughtFormat(name="none")

FORMATS = {f.name: f for f in (GENERIC, SPECIFIC, THINK, NONE)}
