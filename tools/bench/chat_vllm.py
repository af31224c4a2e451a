"""Chat on real vLLM, beside the same requests made by hand: a part of `make bench-chat`."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import uvloop
from rich.console import Console
from rich.table import Table

from services.cli.machine.stack import Stack
from shared.thinking.formats import GENERIC
from shared.thinking.generation import respond_seed
from tools.bench.chat_servers import prefix_cache, real_vllm
from tools.bench.load import post

QUESTION = "What is 17 + 25?"
MESSAGES = [{"role": "user", "content": GENERIC.prompt(QUESTION)}]
NO_END = {"2": -100}
"""SmolLM2's end of turn, kept out of answers."""
Ask = Callable[[aiohttp.ClientSession, int], Awaitable[int]]
REQUESTS = 16
AT_ONCE = 8
PHASE_TOKENS = 48


def measure(folder: Path, console: Console, rounds: int, _: float) -> None:
    """Tokens per second of real vLLM: the gateway, the same two phases by hand, and one pass in
    which the thought is only filtered from the answer."""
    with real_vllm(folder / "data", "thinker") as (stack, engine_url):
        before, marker = prefix_cache(engine_url), _marker(engine_url)
        sides: dict[str, Callable[[aiohttp.ClientSession, int], Awaitable[int]]] = {
            "one pass": partial(one_pass, engine_url),
            "two phases": partial(two_phases, engine_url, marker),
            "gateway": partial(through, stack),
        }
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for round_ in range(rounds + 1):  # the first one warms up
            for side, ask in sides.items():
                rate = uvloop.run(_tokens_per_second(ask, round_))
                rates[side] += [rate] if round_ else []
        hits, queries = (b - a for a, b in zip(before, prefix_cache(engine_url), strict=True))
    table = Table(title="tokens/s on real vLLM, 8 at once", title_justify="left")
    for column in ("", "tokens/s", "of two phases by hand", "of one pass"):
        table.add_column(column, justify="right")
    median = {side: statistics.median(values) for side, values in rates.items()}
    for side, rate in median.items():
        by_hand, single = rate / median["two phases"], rate / median["one pass"]
        table.add_row(side, f"{rate:.1f}", f"{by_hand:.3f}", f"{single:.3f}")
    console.print(table)
    console.print(f"prefix cache: {hits / queries:.1%} of {queries:.0f} prompt tokens were in it")


def _marker(engine_url: str) -> list[int]:
    """What closes a thought that is over its budget; the gateway looks it up once as well."""
    body = {"prompt": "\n" + GENERIC.response_marker, "add_special_tokens": False}
    ids: list[int] = httpx2.post(f"{engine_url}/tokenize", json=body).json()["tokens"]
    return ids


async def _tokens_per_second(ask: Ask, round_: int) -> float:
    """Of so many requests with different seeds; `ask` returns the tokens that were generated."""
    seeds = iter(range(round_ * REQUESTS, (round_ + 1) * REQUESTS))

    async def client(http: aiohttp.ClientSession) -> int:
        return sum([await ask(http, seed) for seed in seeds])

    async with aiohttp.ClientSession() as http:
        began = time.perf_counter()
        tokens = await asyncio.gather(*(client(http) for _ in range(AT_ONCE)))
        return sum(tokens) / (time.perf_counter() - began)


async def through(stack: Stack, http: aiohttp.ClientSession, seed: int) -> int:
    # Neither side may end early, or the tokens of a round would differ.
    body = {
        "model": "thinker",
        "messages": [{"role": "user", "content": QUESTION}],
        "seed": seed,
        "max_thought_tokens": PHASE_TOKENS,
        "max_completion_tokens": 2 * PHASE_TOKENS,
        "logit_bias": NO_END,
    }
    answer = await post(http, f"{stack.url}/v1/chat/completions", body, stack.key)
    return int(answer["usage"]["completion_tokens"])


async def two_phases(
    engine_url: str, marker: list[int], http: aiohttp.ClientSession, seed: int
) -> int:
    """What the gateway asks of the engine, by hand."""
    stop = {"stop": [GENERIC.response_marker], "include_stop_str_in_output": True}
    phase = {"messages": MESSAGES, "skip_special_tokens": False, **stop}
    thought = await _sample(http, f"{engine_url}/v1/chat/completions", phase, seed)
    written = thought["choices"][0]["token_ids"]
    phase = {"prompt": [*thought["prompt_token_ids"], *written, *marker], "logit_bias": NO_END}
    phase["max_tokens"] = 2 * PHASE_TOKENS - len(written)
    answer = await _sample(http, f"{engine_url}/v1/completions", phase, respond_seed(seed))
    return len(written) + len(answer["choices"][0]["token_ids"])


async def one_pass(engine_url: str, http: aiohttp.ClientSession, seed: int) -> int:
    """Thought and answer in one request, as a proxy that filters would ask for them."""
    wanted = {"messages": MESSAGES, "max_tokens": 2 * PHASE_TOKENS, "logit_bias": NO_END}
    answer = await _sample(http, f"{engine_url}/v1/chat/completions", wanted, seed)
    return len(answer["choices"][0]["token_ids"])


async def _sample(
    http: aiohttp.ClientSession, url: str, fields: dict[str, Any], seed: int
) -> dict[str, Any]:
    body = {"max_tokens": PHASE_TOKENS, "temperature": 1.0, "seed": seed, "return_token_ids": True}
    answer: dict[str, Any] = await post(http, url, body | fields)
    return answer
