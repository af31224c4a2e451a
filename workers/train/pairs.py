"""Preference pairs as tokens: read from a file, checked, and stored as an Arrow file.

The outputs of a generate job come as the token ids that were sampled, behind the prompt's ids that
they were sampled with, and are trained on as they are (`docs/decisions/0019-token-ids.md`).

Pairs that come as text are tokenized here, once, and not by TRL, which renders prompt and answer
through the chat template together: that adds an end of turn to an output cut by a token limit, and
whatever else a template puts behind an answer. A text whose tokens do not give it back is dropped
and counted, with its reason. Nothing of a pair is ever cut.
"""

import enum
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict, Discriminator, Tag, TypeAdapter, ValidationError

log = logging.getLogger("workers.train.train")

FEATURES = Features(
    {
        "prompt_ids": List(Value("int32")),
        "chosen_ids": List(Value("int32")),
        "rejected_ids": List(Value("int32")),
        "length": Value("int32"),
    }
)
"""`length`: tokens of the prompt with the longer of the two outputs."""


class TrainError(Exception):
    """A training that cannot be: `param` names the field of the request at fault."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class Drop(enum.StrEnum):
    """Why a pair is not trained on."""

    too_long = "too_long"
    """Prompt and output are longer than `max_length`."""
    not_as_sampled = "not_as_sampled"
    """Its text is not what its tokens decode to, as where a tokenizer normalizes Unicode."""
    nothing_to_learn = "nothing_to_learn"
    """Chosen and rejected are the same tokens, or one has none."""


class TokenPair(BaseModel):
    """A pair as it was sampled: outputs as token ids, and those of the prompt before them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


class TextPair(BaseModel):
    """A pair that is to be tokenized. Outputs are whole: thought, marker and response."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str
    """The user message as the model saw it, the thought prompt filled in."""
    chosen: str
    rejected: str
    chosen_truncated: bool = False
    """Cut by a token limit, so the model wrote no end of turn."""
    rejected_truncated: bool = False


LINE: TypeAdapter[TokenPair | TextPair] = TypeAdapter(
    Annotated[
        Annotated[TokenPair, Tag("tokens")] | Annotated[TextPair, Tag("text")],
        Discriminator(lambda row: "tokens" if "prompt_ids" in row else "text"),
    ]
)
"""A line of the pairs file."""


class ChatTokens:
    """Tokens of one user message and its answer, as the engine builds and samples them."""

    def __init__(self, tokenizer: Any, eos_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._eos_ids = set(eos_ids)

    @cached_property
    def end_of_turn(self) -> int:
        """The token with which the model ends its turn."""
        return _end_of_turn(self._tokenizer, self._eos_ids)

    def prompt(self, message: str) -> tuple[str, list[int]]:
        """The rendered prompt, up to where the model's turn begins, and its tokens."""
        rendered = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], add_generation_prompt=True, tokenize=False
        )
        return rendered, self._encode(rendered)

    def output(self, rendered: str, prompt_ids: list[int], output: str) -> list[int] | None:
        """Tokens of `output` behind the prompt; None where they do not give the text back."""
        together = self._encode(rendered + output)
        if together[: len(prompt_ids)] == prompt_ids:
            ids = together[len(prompt_ids) :]
        else:
            # The output's first characters would merge with the prompt's last token. In
            # generation the prompt's tokens are fixed, so the output is tokenized apart.
            ids = self._encode(output)
        return ids if self._decode(prompt_ids + ids) == rendered + output else None

    def returns(self, rendered: str, prompt_ids: list[int]) -> bool:
        """Tell if the prompt's tokens decode to the rendered prompt."""
        return self._decode(prompt_ids) == rendered

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text


def _end_of_turn(tokenizer: Any, eos_ids: set[int]) -> int:
    """The chat template's own end of a turn, if generation stops at it; else the tokenizer's."""
    marker = "ANSWER"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": marker}]
    try:
        _, _, rest = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(marker)
    except (TemplateError, ValueError):
        rest = ""
    for token in tokenizer(rest, add_special_tokens=False)["input_ids"]:
        if token in eos_ids or token == tokenizer.eos_token_id:
            return int(token)
    if tokenizer.eos_token_id is None:
        raise TrainError("the model's tokenizer has no end-of-turn token", "model")
    return int(tokenizer.eos_token_id)


def read_pairs(path: Path) -> Iterator[TokenPair | TextPair]:
    """The pairs of a JSONL file; a bad line raises `TrainError` with its number."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield LINE.validate_json(line)
            except ValidationError as error:
                what = error.errors(include_input=False, include_url=False)[0]
                place = ".".join(str(part) for part in what["loc"][1:])  # behind its tag
                raise TrainError(f"line {number}: {place} {what['msg']}", "pairs") from error


def checked_pair(
    tokens: ChatTokens, pair: TokenPair | TextPair, max_length: int
) -> dict[str, list[int] | int] | Drop:
    """Token ids of a pair, or why it would train on other text than was given, on nothing, or
    on more than `max_length` tokens."""
    sampled = tokenize_pair(tokens, pair) if isinstance(pair, TextPair) else pair
    if isinstance(sampled, Drop):
        return sampled
    sides = (sampled.chosen_ids, sampled.rejected_ids)
    if not all(sides) or sides[0] == sides[1]:
        return Drop.nothing_to_learn
    length = len(sampled.prompt_ids) + max(map(len, sides))
    if length > max_length:
        return Drop.too_long
    return sampled.model_dump() | {"length": length}


def tokenize_pair(tokens: ChatTokens, pair: TextPair) -> TokenPair | Drop:
    """The tokens of a pair of texts, each output with an end of turn unless it was truncated."""
    rendered, prompt_ids = tokens.prompt(pair.prompt)
    if not tokens.returns(rendered, prompt_ids):
        return Drop.not_as_sampled
    chosen = tokens.output(rendered, prompt_ids, pair.chosen)
    rejected = tokens.output(rendered, prompt_ids, pair.rejected)
    if chosen is None or rejected is None:
        return Drop.not_as_sampled
    return TokenPair(
        prompt_ids=prompt_ids,
        chosen_ids=chosen if pair.chosen_truncated else [*chosen, tokens.end_of_turn],
        rejected_ids=rejected if pair.rejected_truncated else [*rejected, tokens.end_of_turn],
    )


def tokenize_pairs(pairs: Path, tokens: ChatTokens, max_length: int, out: Path) -> Dataset:
    """The pairs of a file that can be trained on, stored at `out`, the longest first.

    Raises `TrainError` where none is left. How many there are, and how many were dropped for which
    reason, is in `counts_of(out)`.

    Neither text nor tokens are held in memory at once. A training that does not fit the device's
    memory fails on the longest pairs, at its start. An `out` that is there is read, not written
    anew: it is what log-probabilities of the reference were computed on.
    """
    if not out.exists():
        aside = out.with_suffix(".unsorted")
        dropped: Counter[Drop] = Counter()
        with ArrowWriter(path=str(aside), features=FEATURES) as writer:
            for index, pair in enumerate(read_pairs(pairs)):
                row = checked_pair(tokens, pair, max_length)
                if isinstance(row, Drop):
                    log.warning("pair %d is left out: %s", index, row)
                    dropped[row] += 1
                else:
                    writer.write(row)
            count, _ = writer.finalize()
        if count == 0:
            raise _none_left(dropped, max_length)
        unsorted = Dataset.from_file(str(aside))
        lengths = unsorted["length"][:]
        by_length = unsorted.select(sorted(range(count), key=lambda pair: -lengths[pair]))
        by_length.flatten_indices(cache_file_name=str(out.with_suffix(".part")))
        counts = {"pairs": count, "pairs_dropped": dropped}
        _counts_file(out).write_text(json.dumps(counts))
        out.with_suffix(".part").replace(out)
        aside.unlink()
    return Dataset.from_file(str(out))


def counts_of(out: Path) -> dict[str, Any]:
    """Counts of the pairs stored at `out`: `pairs`, and by reason `pairs_dropped`."""
    counts: dict[str, Any] = json.loads(_counts_file(out).read_text())
    return counts


def _counts_file(out: Path) -> Path:
    return out.with_suffix(".json")


def _none_left(dropped: Mapping[Drop, int], max_length: int) -> TrainError:
    if not dropped:
        return TrainError("there is no pair to train on", "pairs")
    reasons = ", ".join(f"{reason} {n}" for reason, n in dropped.items())
    only_length = set(dropped) == {Drop.too_long}
    return TrainError(
        f"none of the {sum(dropped.values())} pairs can be trained on ({reasons}); too long is "
        f"what has more than {max_length} tokens, for nothing is cut",
        "training.max_length" if only_length else "pairs",
    )
