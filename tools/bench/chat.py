"""`make bench-chat`: what the chat gateway costs, side by side with others in one run.

    added      latency over the same engine requests made directly, at several concurrencies
    litellm    requests per second beside LiteLLM's proxy in front of the same scripted engine
    vllm       tokens per second of real vLLM through the gateway and without it

Medians of several rounds, taken in turns. The scripted engine thinks and answers from a script; of
LiteLLM, which hides nothing, it is asked for the answer only.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from shared.thinking.formats import GENERIC
from tests.support import tiny_model
from tests.support.access import bearer
from tools.bench import chat_vllm, load
from tools.bench.chat_servers import ROOT, forethought, litellm, scripted_engine
from tools.bench.load import post

QUESTION = {"role": "user", "content": "What is 17 + 25?"}
THOUGHT = f"{GENERIC.thought_marker} {'so it is ' * 10}\n{GENERIC.response_marker}"
ANSWER = "word " * 32
SCRIPT = {"thought": THOUGHT, "answer": ANSWER, "tokens_an_event": 5}
PAUSE_SECONDS = 0.6
TOKEN_SECONDS = 0.004
"""Five tokens an event: an event every 20 ms, as of a model that writes 50 tokens a second."""


def chat(url: str, key: str, *, stream: bool) -> load.Request:
    body = {"model": "bench", "messages": [QUESTION], "stream": stream}
    return lambda http: _answer(http, f"{url}/v1/chat/completions", body, key)


def direct(engine_url: str) -> load.Request:
    """The gateway's two requests, made by hand: render and think, answer."""
    prompt = [{"role": "user", "content": GENERIC.prompt(QUESTION["content"])}]
    sampling = {"max_tokens": 1024, "temperature": 1.0, "top_p": 1.0, "seed": 1}
    sampling["return_token_ids"] = True
    stop = {"stop": [GENERIC.response_marker], "include_stop_str_in_output": True}
    thinking = {"messages": prompt, **sampling, **stop, "skip_special_tokens": False}

    async def request(http: aiohttp.ClientSession) -> None:
        thought = await post(http, f"{engine_url}/v1/chat/completions", thinking)
        ids = [*thought["prompt_token_ids"], *thought["choices"][0]["token_ids"]]
        answering = {"prompt": ids, **sampling, "stream": True, "skip_special_tokens": False}
        await _answer(http, f"{engine_url}/v1/completions", answering)

    return request


async def _answer(
    http: aiohttp.ClientSession, url: str, body: dict[str, Any], key: str = ""
) -> None:
    async with http.post(url, json=body, headers=bearer(key)) as response:
        answer = await response.read()
        assert response.status == 200, answer
        assert answer.count(b"word") == 32, answer
        assert not body["stream"] or answer.rstrip().endswith(b"[DONE]"), answer


def added(folder: Path, console: Console, rounds: int, seconds: float) -> None:
    """Latency of a streamed request, from its start to its last byte: of an engine that answers
    at once, with one client, and of one that takes its time, with more."""
    table = Table(title="added by the gateway, ms", title_justify="left")
    columns = ("engine", "clients", "engine p50", "p99", "gateway p50", "p99", "added p50", "p99")
    for column in columns:
        table.add_column(column, justify="right")
    tiny = tiny_model.write(folder / "tiny")
    for token_seconds, concurrencies in ((0.0, (1,)), (TOKEN_SECONDS, (1, 16, 64))):
        with (
            scripted_engine(tiny, SCRIPT, token_seconds) as engine_url,
            forethought(folder / f"data-{token_seconds}", tiny, engine_url) as stack,
        ):
            sides = {
                "engine": direct(engine_url),
                "gateway": chat(stack.url, stack.key, stream=True),
            }
            for clients in concurrencies:
                pause = PAUSE_SECONDS if token_seconds else 0.0
                results = in_turns(sides, clients, rounds, seconds, pause)
                name = "50 events/s" if token_seconds else "at once"
                table.add_row(name, str(clients), *_latencies(results))
    console.print(table)


def _latencies(results: dict[str, list[load.Load]]) -> list[str]:
    """Medians of the rounds' p50 and p99 for each side, then their differences."""
    sides = [
        [statistics.median(r.percentile(p) for r in rounds) * 1000 for p in (50, 99)]
        for rounds in results.values()
    ]
    differences = [ours - bare for bare, ours in zip(*sides, strict=True)]
    return [f"{figure:.2f}" for side in (*sides, differences) for figure in side]


def beside_litellm(folder: Path, console: Console, rounds: int, seconds: float) -> None:
    """Requests per second of an engine that answers at once."""
    table = Table(title="requests/s, one worker each", title_justify="left")
    for column in ("", "LiteLLM", "Forethought", "ratio"):
        table.add_column(column, justify="right")
    tiny = tiny_model.write(folder / "tiny")
    venv = ROOT / ".forethought" / "bench" / "litellm"
    with (
        scripted_engine(tiny, SCRIPT, 0) as engine_url,
        litellm(venv, folder, engine_url) as rival,
        forethought(folder / "data", tiny, engine_url) as stack,
    ):
        for stream in (False, True):
            sides = {
                "litellm": chat(rival, "", stream=stream),
                "ours": chat(stack.url, stack.key, stream=stream),
            }
            results = in_turns(sides, 32, rounds, seconds)
            rate = {s: statistics.median(r.per_second for r in results[s]) for s in sides}
            name = "streamed" if stream else "whole"
            ratio = rate["ours"] / rate["litellm"]
            table.add_row(name, f"{rate['litellm']:.0f}", f"{rate['ours']:.0f}", f"{ratio:.1f}")
    console.print(table)


def in_turns(
    sides: dict[str, load.Request],
    clients: int,
    rounds: int,
    seconds: float,
    pause: float = 0.0,
) -> dict[str, list[load.Load]]:
    """Loads of each side, one after another."""
    results: dict[str, list[load.Load]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, request in sides.items():
            measured = load.run(request, clients=clients, seconds=seconds, pause=pause)
            if measured.errors:
                raise SystemExit(f"{side}: {measured.errors} requests failed")
            results[side].append(measured)
    return results


PARTS: dict[str, Callable[[Path, Console, int, float], None]] = {
    "added": added,
    "litellm": beside_litellm,
    "vllm": chat_vllm.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="part")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    for part in args.parts:
        with tempfile.TemporaryDirectory(prefix="forethought-chat-") as name:
            PARTS[part](Path(name), Console(), args.rounds, args.seconds)


if __name__ == "__main__":
    main()
