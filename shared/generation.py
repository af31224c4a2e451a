"""Think, then respond: the one procedure by which outputs are made, in bulk and in chat.

Phase 1 writes the thought and stops at the response marker. Phase 2 continues from exactly those
tokens, marker included, so with the engine's prefix cache it costs almost nothing. Where phase 1
ends without a marker, at its budget or by the model's own end, the marker is put in for the model
(budget forcing). In chat a client is only ever connected to phase 2.

With a natural boundary one pass does, and the output is split afterwards: what never writes the
marker does not parse.

Seeds: the engine gives sample k of a request the seed `seed + k`; phase 2 of that sample runs with
another seed derived from it. Equal seeds give equal outputs only as far as the engine's numerics
do not depend on what else is in a batch; vLLM's do, slightly.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shared.engine_answers import Choice
from shared.formats import ThoughtFormat
from shared.schemas import Sampling

Split = Callable[[Sequence[int], str, int], int]
"""(token ids, their text, an offset in it) -> how many first tokens cover the text up to there."""
SEEDS = 2**31
PREFIX_TOKENS = 64
"""More than a thought marker has."""
REPLACEMENT = "\ufffd"


class Vocabulary(Protocol):
    """What is asked about the engine's tokenizer."""

    async def tokenize(self, text: str) -> list[int]: ...
    async def detokenize(self, ids: Sequence[int]) -> str: ...
    async def token_text(self, token: int) -> str: ...


class Engine(Vocabulary, Protocol):
    """The part of `EngineClient` that generation needs."""

    async def complete(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int | None,
        n: int = 1,
        stop: Sequence[str] = (),
        **more: Any,
    ) -> list[Choice]: ...

    async def max_model_len(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Output:
    """One sample. Counts are of generated tokens: a marker put in for the model is in none.

    `thought_tokens` counts up to and including the token that completes the response marker (all
    of them where the output does not parse), `response_tokens` the rest with the model's end token.
    """

    text: str
    response_start: int | None
    prompt_tokens: int
    thought_tokens: int
    response_tokens: int
    truncated: bool
    forced: bool
    seed: int


@dataclass(frozen=True, slots=True)
class Thought:
    """A thought that is closed by the response marker.

    `ids` are the tokens that phase 2 continues, from the beginning of the model's turn; `text` is
    theirs. `tokens` of them were generated.
    """

    ids: list[int]
    text: str
    tokens: int
    forced: bool


async def think_then_respond(
    engine: Engine,
    prompt_ids: Sequence[int],
    fmt: ThoughtFormat,
    sampling: Sampling,
    *,
    seed: int,
    split: Split,
) -> list[Output]:
    """`sampling.samples` outputs for one prompt, in order of their seeds `seed + k`."""
    if fmt.thinks and sampling.boundary == "forced":
        return await _two_phases(engine, prompt_ids, fmt, sampling, seed)
    return await _one_pass(engine, prompt_ids, fmt, sampling, seed, split)


async def think(
    engine: Engine,
    prompt_ids: Sequence[int],
    fmt: ThoughtFormat,
    *,
    n: int,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> list[Thought]:
    """Phase 1: `n` closed thoughts. With a budget of 0 each is just the marker."""
    prefix, prefix_ids = await _prefix(engine, prompt_ids, fmt)
    start = [*prompt_ids, *prefix_ids]
    if max_tokens > 0:
        choices = await engine.complete(
            start,
            n=n,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop=[fmt.response_marker],
            skip_special_tokens=False,
        )
    else:
        choices = [Choice("", [], "length", None)] * n
    closed = [await close(engine, choice, fmt.response_marker) for choice in choices]
    return [Thought([*prefix_ids, *t.ids], prefix + t.text, t.tokens, t.forced) for t in closed]


def respond_seed(seed: int) -> int:
    """The seed of phase 2: derived from that of the sample, and unlike it."""
    return (seed * 2_654_435_761 + 1_013_904_223) % SEEDS


async def _two_phases(
    engine: Engine, prompt_ids: Sequence[int], fmt: ThoughtFormat, sampling: Sampling, seed: int
) -> list[Output]:
    thoughts = await think(
        engine,
        prompt_ids,
        fmt,
        n=sampling.samples,
        max_tokens=sampling.max_thought_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed,
    )
    longest = await engine.max_model_len()

    async def finish(k: int, thought: Thought) -> Output:
        ids = [*prompt_ids, *thought.ids]
        budget = min(sampling.max_response_tokens, longest - len(ids))
        response = Choice("", [], "length", None)
        if budget > 0:
            [response] = await engine.complete(
                ids,
                max_tokens=budget,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=respond_seed(seed + k),
                # A small model often ends its turn at a marker that it did not write itself.
                min_tokens=int(thought.forced),
            )
        text = thought.text + response.text
        return Output(
            text=text,
            response_start=fmt.response_start(text),
            prompt_tokens=len(prompt_ids),
            thought_tokens=thought.tokens,
            response_tokens=len(response.token_ids),
            truncated=response.finish_reason == "length",
            forced=thought.forced,
            seed=seed + k,
        )

    return list(await asyncio.gather(*(finish(k, t) for k, t in enumerate(thoughts))))


async def _one_pass(
    engine: Engine,
    prompt_ids: Sequence[int],
    fmt: ThoughtFormat,
    sampling: Sampling,
    seed: int,
    split: Split,
) -> list[Output]:
    prefix, prefix_ids = await _prefix(engine, prompt_ids, fmt)
    budget = sampling.max_response_tokens + (sampling.max_thought_tokens if fmt.thinks else 0)
    choices = await engine.complete(
        [*prompt_ids, *prefix_ids],
        n=sampling.samples,
        max_tokens=budget,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed,
        # A native format's marker may be a special token, and must be seen to be matched.
        skip_special_tokens=not fmt.thinks,
    )
    outputs = []
    for k, choice in enumerate(choices):
        thought_tokens = _thought_tokens(choice, fmt, split)
        outputs.append(
            Output(
                text=prefix + choice.text,
                response_start=fmt.response_start(prefix + choice.text),
                prompt_tokens=len(prompt_ids),
                thought_tokens=thought_tokens,
                response_tokens=len(choice.token_ids) - thought_tokens,
                truncated=choice.finish_reason == "length",
                forced=False,
                seed=seed + k,
            )
        )
    return outputs


async def _prefix(
    vocabulary: Vocabulary, prompt_ids: Sequence[int], fmt: ThoughtFormat
) -> tuple[str, list[int]]:
    """What the model's turn is begun with: nothing where its own template has done so."""
    if not fmt.prefix:
        return "", []
    end = await vocabulary.detokenize(prompt_ids[-PREFIX_TOKENS:])
    if end.rstrip().endswith(fmt.prefix):
        return "", []
    return fmt.prefix, await vocabulary.tokenize(fmt.prefix)


def _thought_tokens(choice: Choice, fmt: ThoughtFormat, split: Split) -> int:
    if not fmt.thinks:
        return 0
    at = choice.text.find(fmt.response_marker)
    if at < 0:
        return len(choice.token_ids)
    return split(choice.token_ids, choice.text, at + len(fmt.response_marker))


async def close(vocabulary: Vocabulary, choice: Choice, marker: str) -> Thought:
    """The thought of a finished phase 1, ending in the marker, with the tokens to go on from.

    Generated tokens are kept as they are wherever they agree with the text. The token that
    completes a marker may run past it: white space there is kept, since it belongs neither to the
    thought nor to the response; anything else is cut off.
    """
    generated = len(choice.token_ids)
    at = choice.text.find(marker)
    if at >= 0:
        text = choice.text[: at + len(marker)]
        last = await vocabulary.token_text(choice.token_ids[-1])
        beyond = overhang(text, last)
        if beyond is not None:
            return Thought(choice.token_ids, text + beyond, generated, forced=False)
        ids = await align(vocabulary, choice.token_ids, text)
        return Thought(ids, text, generated, forced=False)

    ids, text = choice.token_ids, choice.text
    if choice.finish_reason == "stop" and ids:
        # The model's own end; a marker behind it would be in another turn.
        text = text.removesuffix(await vocabulary.token_text(ids[-1]))
        ids = ids[:-1]
    if ids and REPLACEMENT in await vocabulary.token_text(ids[-1]):
        ids = await align(vocabulary, ids, text)  # the budget may have cut a character in two
    put_in = marker if not text or text.endswith("\n") else "\n" + marker
    ids = [*ids, *await vocabulary.tokenize(put_in)]
    return Thought(ids, text + put_in, generated, forced=True)


def overhang(text: str, last: str) -> str | None:
    """What of the token text `last` lies beyond the end of `text`, if that is only white space.

    `text` ends where a marker does that `last` completes. None where that is not so, or cannot be
    told from these two strings.
    """
    core = last.rstrip()
    if not core or REPLACEMENT in core or not text.endswith(core):
        return None
    # With a border ("aa") an earlier end would look the same as the real one.
    if any(core.startswith(core[i:]) for i in range(1, len(core))):
        return None
    return last[len(core) :]


async def align(vocabulary: Vocabulary, ids: Sequence[int], text: str) -> list[int]:
    """Tokens of exactly `text`: the longest beginning of `ids` that agrees, then the rest anew.

    Looks back over a few tokens only. Where even these do not agree, as with tokenizers that do
    not give back what they took, all of the text is tokenized anew.
    """
    for n in range(len(ids), max(len(ids) - 6, -1), -1):
        covered = await vocabulary.detokenize(ids[:n]) if n else ""
        if text.startswith(covered):
            rest = text[len(covered) :]
            return [*ids[:n], *(await vocabulary.tokenize(rest) if rest else [])]
    return list(await vocabulary.tokenize(text)) if text else []
