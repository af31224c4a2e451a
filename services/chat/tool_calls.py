"""Tool calls in an answer: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, the form that
templates of Hermes, Qwen and their kin ask for.

The engine is bound to this form by a grammar, so a call that is begun is well-formed and its
arguments fit the function's schema.
"""

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.chat.schema import Tool
from shared.thinking.answer_filter import held_back

BEGIN = "<tool_call>"
END = "\n</tool_call>"
"""With the line's end, which no string of JSON holds: an argument may hold all the rest."""
CALL = re.compile(
    r"""\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(.*?)\s*\}\s*""", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Call:
    """`arguments` is JSON text, as OpenAI has it."""

    id: str
    name: str
    arguments: str

    def as_openai(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


def grammar(tools: Sequence[Tool], *, required: bool, parallel: bool) -> dict[str, Any]:
    """vLLM's `response_format` for an answer that may, or must, call these tools."""
    tags = [
        {
            "type": "tag",
            "begin": f'{BEGIN}\n{{"name": "{tool.function.name}", "arguments": ',
            "content": {"type": "json_schema", "json_schema": tool.function.parameters},
            "end": f"}}{END}",
        }
        for tool in tools
    ]
    triggered = {
        "type": "triggered_tags",
        "triggers": [BEGIN],
        "tags": tags,
        "at_least_one": required,
        "stop_after_first": not parallel,
    }
    return {"type": "structural_tag", "format": triggered}


class ToolCallReader:
    """Takes the calls out of an answer's text. Text that may yet begin one is held back."""

    def __init__(self) -> None:
        self._held = ""
        self._calling = False
        self._between = False
        """True if only white space has come since the last call. Such white space is not shown."""

    def feed(self, text: str) -> tuple[str, list[Call]]:
        """Text to show, and calls that are complete."""
        self._held += text
        shown, calls = "", []
        while True:
            before, found, after = self._held.partition(END if self._calling else BEGIN)
            if not found:
                break
            if self._calling:
                calls += [call] if (call := _parsed(before)) else []
                self._between = True
            else:
                shown += self._visible(before)
            self._held, self._calling = after, not self._calling
        if not self._calling:
            keep = held_back(self._held, BEGIN)
            shown += self._visible(self._held[: len(self._held) - keep])
            self._held = self._held[len(self._held) - keep :]
        return shown, calls

    def end(self) -> str:
        """Release held text that began no call. A call that was cut off is dropped."""
        rest, self._held = "" if self._calling else self._held, ""
        return self._visible(rest)

    def _visible(self, text: str) -> str:
        if self._between:
            text = text.lstrip()
            self._between = not text
        return text


def _parsed(text: str) -> Call | None:
    """The arguments stay as they were written: numbers of any size, and escapes of any kind."""
    if (found := CALL.fullmatch(text)) is None:
        return None
    try:
        name, arguments = (json.loads(part) for part in found.groups())
    except (ValueError, RecursionError):
        return None
    written = found[2] if isinstance(arguments, dict) else "{}"
    return Call(f"call_{uuid.uuid4().hex[:24]}", name, written)
