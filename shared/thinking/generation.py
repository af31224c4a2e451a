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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from shared.thinking.formats import ThoughtFormat
from shared.thinking.sampling import Sampling
from shared.thinking.thoughts import REPLACEMENT, Thought, Vocabulary, close
from shared.vllm.answers import Choice
from shared.vllm.client import gather_or_cancel
from shared.vllm.sampling import SamplingParams

Split = Callable[[Sequence[int], str, int], int]
"""(token ids, their text, an offset in it) -> how many first tokens cover the text up to there."""
SEEDS = 2**31
ENDS = (4, 16, 64)
"""So many last tokens of a prompt, until they show what it ends in. The first few are those with
which a template begins the model's turn, alike in all prompts; the last hold any marker."""


class Engine(Vocabulary, Protocol):
    """The part of `EngineClient` that generation needs."""

    async def complete(self, prompt_ids: Sequence[int], params: SamplingParams) -> list[Choice]: ...

    async def max_model_len(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Output:
    """One sample. Counts are of generated tokens: a marker put in for the model is in none.

    `thought_tokens` counts up to and including the token that completes the response marker (all
    of them where the output does not parse), `response_tokens` the rest with the model's end token.
    """

    text: str
    ids: list[int]
    """All tokens behind the prompt: what the engine was given there, and what it generated."""
    response_start: int | None
    prompt_tokens: int
    thought_tokens: int
    response_tokens: int
    truncated: bool
    forced: bool
    seed: int


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
    engine: Engine, prompt_ids: Sequence[int], fmt: ThoughtFormat, params: SamplingParams
) -> list[Thought]:
    """Phase 1: `params.n` closed thoughts. With a budget of 0 tokens each is just the marker."""
    prefix, prefix_ids = await _prefix(engine, prompt_ids, fmt)
    if params.max_tokens > 0:
        choices = await engine.complete([*prompt_ids, *prefix_ids], _until_marker(params, fmt))
    else:
        choices = [Choice("", [], "length", None)] * params.n
    closed = [await close(engine, choice, fmt.response_marker) for choice in choices]
    return [Thought([*prefix_ids, *t.ids], prefix + t.text, t.tokens, t.forced) for t in closed]


def _until_marker(params: SamplingParams, fmt: ThoughtFormat) -> SamplingParams:
    return replace(
        params,
        stop=[fmt.response_marker],
        include_stop_str_in_output=True,
        skip_special_tokens=False,  # a marker may be a special token, and must be seen to match
    )


def respond_seed(seed: int) -> int:
    """The seed of phase 2: derived from that of the sample, and unlike it."""
    return (seed * 2_654_435_761 + 1_013_904_223) % SEEDS


async def _two_phases(
    engine: Engine, prompt_ids: Sequence[int], fmt: ThoughtFormat, sampling: Sampling, seed: int
) -> list[Output]:
    params = SamplingParams(
        n=sampling.samples,
        max_tokens=sampling.max_thought_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed,
        skip_special_tokens=False,
    )
    thoughts = await think(engine, prompt_ids, fmt, params)
    longest = await engine.max_model_len()

    async def finish(k: int, thought: Thought) -> Output:
        ids = [*prompt_ids, *thought.ids]
        budget = min(sampling.max_response_tokens, longest - len(ids))
        response = Choice("", [], "length", None)
        if budget > 0:
            second = replace(
                params,
                n=1,
                max_tokens=budget,
                seed=respond_seed(seed + k),
                # A small model often ends its turn at a marker that it did not write itself.
                min_tokens=int(thought.forced),
            )
            [response] = await engine.complete(ids, second)
        text = thought.text + response.text
        return Output(
            text=text,
            ids=[*thought.ids, *response.token_ids],
            response_start=fmt.response_start(text),
            prompt_tokens=len(prompt_ids),
            thought_tokens=thought.tokens,
            response_tokens=len(response.token_ids),
            truncated=response.truncated(),
            forced=thought.forced,
            seed=seed + k,
        )

    return await gather_or_cancel(finish(k, t) for k, t in enumerate(thoughts))


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
    params = SamplingParams(
        n=sampling.samples,
        max_tokens=budget,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed,
        # A native format's marker may be a special token, and must be seen to be matched.
        skip_special_tokens=not fmt.thinks,
    )
    choices = await engine.complete([*prompt_ids, *prefix_ids], params)
    outputs = []
    for k, choice in enumerate(choices):
        thought_tokens = _thought_tokens(choice, fmt, split)
        outputs.append(
            Output(
                text=prefix + choice.text,
                ids=[*prefix_ids, *choice.token_ids],
                response_start=fmt.response_start(prefix + choice.text),
                prompt_tokens=len(prompt_ids),
                thought_tokens=thought_tokens,
                response_tokens=len(choice.token_ids) - thought_tokens,
                truncated=choice.truncated(),
                forced=False,
                seed=seed + k,
            )
        )
    return outputs


async def _prefix(
    vocabulary: Vocabulary, prompt_ids: Sequence[int], fmt: ThoughtFormat
) -> tuple[str, list[int]]:
    """Text and tokens to begin the model's turn with; none if its own template has done so."""
    if not fmt.prefix:
        return "", []
    for count in ENDS:
        # Where the first token is but a part of a character, it is none of the text.
        end = (await vocabulary.short_text(prompt_ids[-count:])).strip().lstrip(REPLACEMENT)
        if len(end) > len(fmt.prefix):
            break
    if end.endswith(fmt.prefix):
        return "", []
    return fmt.prefix, await vocabulary.tokenize(fmt.prefix)


def _thought_tokens(choice: Choice, fmt: ThoughtFormat, split: Split) -> int:
    if not fmt.thinks:
        return 0
    at = choice.text.find(fmt.response_marker)
    if at < 0:
        return len(choice.token_ids)
    return split(choice.token_ids, choice.text, at + len(fmt.response_marker))
