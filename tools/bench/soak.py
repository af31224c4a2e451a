"""`make soak-chat`: ten minutes of steady load on chat. Memory stays flat, no descriptor is left
open, and every request is answered.

The load is as high as it goes without a queue: each client pauses between requests, half of them
stream, and one in ten leaves in the middle.
"""

import argparse
import asyncio
import random
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
from rich.console import Console

from services.cli.machine.stack import Stack
from tests.support import tiny_model
from tools.bench import load
from tools.bench.chat import SCRIPT, chat
from tools.bench.chat_servers import forethought, scripted_engine

CLIENTS = 64
PAUSE_SECONDS = 0.1
TOKEN_SECONDS = 0.0004
MIB = 2**20


@dataclass(frozen=True)
class Sample:
    seconds: float
    mib: float
    descriptors: int


def requests(stack: Stack) -> load.Request:
    whole, streamed = (chat(stack.url, stack.key, stream=stream) for stream in (False, True))

    async def request(http: aiohttp.ClientSession) -> None:
        if random.random() < 0.1:
            leaving = asyncio.ensure_future(streamed(http))
            await asyncio.sleep(random.uniform(0, 0.1))
            leaving.cancel()
            return
        await random.choice((whole, streamed))(http)

    return request


def watch(process: psutil.Process, samples: list[Sample], stop: threading.Event) -> None:
    began = time.monotonic()
    while not stop.wait(5):
        memory = process.memory_full_info().uss / MIB
        samples.append(Sample(time.monotonic() - began, memory, process.num_fds()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    args = parser.parse_args()
    console = Console()
    samples: list[Sample] = []
    stop = threading.Event()
    with tempfile.TemporaryDirectory(prefix="forethought-soak-") as name:
        folder = Path(name)
        tiny = tiny_model.write(folder / "tiny")
        with (
            scripted_engine(tiny, SCRIPT, TOKEN_SECONDS) as engine_url,
            forethought(folder / "data", tiny, engine_url) as stack,
        ):
            process = _coordinator()
            idle = process.num_fds()
            watcher = threading.Thread(target=watch, args=(process, samples, stop))
            watcher.start()
            done = load.run(
                requests(stack), clients=CLIENTS, seconds=args.seconds, pause=PAUSE_SECONDS
            )
            stop.set()
            watcher.join()
            time.sleep(10)  # kept-alive connections to the engine end
            left = process.num_fds()
    grown = _report(console, done, samples, args.seconds, idle, left)
    if done.errors or grown or left > idle:
        raise SystemExit("requests were lost, memory grew by a tenth, or descriptors are open")


def _report(
    console: Console, done: load.Load, samples: list[Sample], seconds: float, idle: int, left: int
) -> bool:
    """Whether memory grew by more than a tenth after the first minute."""
    # The first minute fills pools and caches.
    warm = [sample for sample in samples if sample.seconds >= min(60, seconds / 4)]
    console.print(
        f"{len(done.latencies)} requests in {done.seconds:.0f} s, {done.per_second:.0f}/s, one in "
        f"ten left in the middle, "
        f"{done.errors} lost; p50 {done.percentile(50) * 1000:.0f} ms, "
        f"p99 {done.percentile(99) * 1000:.0f} ms"
    )
    console.print(
        f"coordinator: {warm[0].mib:.1f} MiB after {warm[0].seconds:.0f} s, "
        f"{warm[-1].mib:.1f} at the end, at most {max(s.mib for s in warm):.1f}; "
        f"descriptors {idle} before, at most {max(s.descriptors for s in samples)}, {left} after"
    )
    return warm[-1].mib > 1.1 * warm[0].mib


def _coordinator() -> psutil.Process:
    return next(
        process
        for process in psutil.Process().children(recursive=True)
        if "services.coordinator.app:app" in process.cmdline()
    )


if __name__ == "__main__":
    main()
