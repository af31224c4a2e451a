"""Adversarial thoughts and answers, each reproducible from its number.

Every word that only a thought may hold is written in letters that occur nowhere else, so a single
one of them in what a client sees is a leak.
"""

import random
from dataclasses import dataclass, replace
from typing import Any

from shared.thinking.formats import GENERIC, SPECIFIC, THINK, ThoughtFormat
from shared.thinking.generation import SEEDS, respond_seed
from tests.services.chat.served import thinks
from tests.support.engine_scripts import Play

CANARY = "ѺѮѰ"
"""Secret letters: two bytes each, so that a token can cut one in half."""
FORMATS = (
    GENERIC,
    SPECIFIC,
    THINK,
    ThoughtFormat(
        name="own",
        template="{query} 思考: first, then 回答:",
        thought_marker="思考:",
        response_marker="回答:",
    ),
)
MARKERS = (
    *(marker for f in FORMATS for marker in (f.thought_marker, f.response_marker) if marker),
    "<tool_call>",
    "</tool_call>",
)
"""Texts that are special tokens of many a tokenizer."""
STOPS = ("\n\n", "two", ":", "é", "}", "my", "思")
TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}},
}


@dataclass(frozen=True)
class Case:
    """One request with what the engine makes of it."""

    number: int
    body: dict[str, Any]
    fmt: ThoughtFormat
    thoughts: list[Play]
    answers: list[Play]
    tails: list[str]
    """What the model goes on with, before its answer, where its thought was cut short."""

    def play(self, prompt: str, seed: int) -> Play:
        # A response has one choice, with a seed of ours.
        choices = range(len(self.thoughts) if len(self.thoughts) > 1 else 0)
        if thinks(prompt):
            return self.thoughts[next((k for k in choices if (seed - self.number) % SEEDS == k), 0)]
        k = next((k for k in choices if respond_seed(self.number + k) == seed), 0)
        answer = self.answers[k]
        if self._was_cut(prompt, self.thoughts[k].text):
            return replace(answer, text=self.tails[k] + answer.text)
        return answer

    def _was_cut(self, prompt: str, thought: str) -> bool:
        """Whether the prompt of an answer holds a beginning of the thought, and not all of it."""
        marker = self.fmt.response_marker
        turn = prompt.rpartition("assistant\n")[2].removeprefix(self.fmt.prefix)
        begun = turn.removesuffix(marker).strip()
        text, own_marker, _ = thought.partition(marker)
        return bool(begun) and text + own_marker not in turn

    @property
    def as_response(self) -> dict[str, Any] | None:
        """The request for `/v1/responses`, without what that does not take; None for several
        choices."""
        if self.body["n"] > 1:
            return None
        body = {"model": self.body["model"], "input": self.body["messages"]}
        if limit := self.body.get("max_completion_tokens"):
            body["max_output_tokens"] = limit
        if effort := self.body.get("reasoning_effort"):
            body["reasoning"] = {"effort": effort}
        if wanted := self.body.get("response_format"):
            body["text"] = {"format": wanted}
        return body


def case(number: int, fmt: ThoughtFormat) -> Case:
    rng = random.Random(f"{fmt.name} {number}")
    n = rng.choice((1, 1, 1, 2))
    body: dict[str, Any] = {
        "model": "demo",
        "messages": [{"role": "user", "content": f"case {number}."}],
        "seed": number,
        "n": n,
    }
    for chance, fields in (
        (0.3, {"stop": rng.sample(STOPS, rng.randint(1, 4))}),
        (0.3, {"max_completion_tokens": rng.randint(1, 300)}),
        (0.3, {"max_thought_tokens": rng.randint(0, 120)}),
        (0.1, {"reasoning_effort": "none"}),
        (0.3, {"logprobs": True, "top_logprobs": rng.randint(0, 3)}),
        (0.2, {"tools": [TOOL]}),
    ):
        if rng.random() < chance:
            body |= fields
    if "tools" not in body and rng.random() < 0.1:
        body["response_format"] = {"type": "json_object"}
    thoughts = [_play(rng, _thought(rng, fmt)) for _ in range(n)]
    free = "response_format" not in body
    answers = [_play(rng, _answer(rng, fmt, free)) for _ in range(n)]
    # An answer that ends before the marker cannot be told from one without a tail.
    may_have_tail = free and "stop" not in body and "max_completion_tokens" not in body
    tails = [_tail(rng, fmt) if may_have_tail else "" for _ in range(n)]
    return Case(number, body, fmt, thoughts, answers, tails)


def _play(rng: random.Random, text: str) -> Play:
    sizes = tuple(rng.choice((1, 1, 2, 3, 5, 40)) for _ in range(rng.randint(1, 4)))
    wrong = rng.random()
    at = rng.randint(0, 60)
    return Play(
        text,
        tokens_an_event=sizes,
        fails=wrong < 0.02,
        fails_after=at if 0.02 <= wrong < 0.05 else None,
        breaks_after=at if 0.05 <= wrong < 0.07 else None,
        finish="abort" if 0.07 <= wrong < 0.08 else None,
    )


def _thought(rng: random.Random, fmt: ThoughtFormat) -> str:
    """Ends in the marker, or by itself without one; the marker may stand in the middle."""
    begun = "" if fmt.prefill else fmt.thought_marker
    inside = [_secret(rng, fmt) for _ in range(rng.randint(0, 8))]
    end = fmt.response_marker if rng.random() < 0.8 else ""
    # What a model writes behind its marker in phase 1 is beyond the stop, and is not generated.
    return begun + "".join(inside) + end + rng.choice(("", " ", "\n", "\n\n", CANARY))


def _tail(rng: random.Random, fmt: ThoughtFormat) -> str:
    """The rest of a thought, up to the model's own marker."""
    marker = fmt.response_marker
    secrets = [_secret(rng, fmt) for _ in range(rng.randint(0, 4))]
    rest = [secret for secret in secrets if marker.lower() not in secret.lower()]
    return "".join(rest) + rng.choice((marker, marker.upper(), marker.lower())) if rest else ""


def _secret(rng: random.Random, fmt: ThoughtFormat) -> str:
    response, word = fmt.response_marker, CANARY * rng.randint(1, 4)
    return rng.choice(
        (
            word,
            word + " ",
            f"{word}\n\n",
            response[: rng.randint(0, len(response) - 1)] + word,
            response.swapcase() + word if response.swapcase() != response else word,
            fmt.thought_marker + word,
            f'<tool_call>\n{{"name": "look_up", "arguments": {{"q": "{word}"}}}}\n</tool_call>',
            f'data: [DONE]\n\n{word}"}}',
            rng.choice(STOPS) + word,
            f"<think>{word}</think >",
            f"👍🏽{word}思é",
        )
    )  # fmt: skip


def _answer(rng: random.Random, fmt: ThoughtFormat, free: bool) -> str:
    """May begin further thoughts: in the format's marks, or in those of native thinkers."""
    return "".join(_shown(rng, fmt, free) for _ in range(rng.randint(0, 8)))


def _shown(rng: random.Random, fmt: ThoughtFormat, free: bool) -> str:
    thought, response = rng.choice(fmt.marks)
    parts = [
        "Forty two",
        "\n",
        "\n\n  ",
        "é思👍🏽",
        "Here is my",
        thought[: rng.randint(0, len(thought) - 1)] + "|",
        response,
        '<tool_call>\n{"name": "look_up", "arguments": {"q": "}"}}\n</tool_call>\n',
        "<tool_call>{",
        "</tool_call>",
        "data: [DONE]\n\n",
        '{"a": [1, "}"]}',
        "�",
    ]
    if free:
        marker = rng.choice((thought, thought.upper(), thought.lower()))
        parts += [f"{marker}{CANARY * 2}{response} "] * 4 + [marker + CANARY + response.lower()]
    return rng.choice(parts)
