"""A stand-in for vLLM's OpenAI server, for adversarial cases and for scale.

What a model would write is a script: a function of the text so far and the seed. All else, tokens,
stop strings, budgets, streams and swaps, is as vLLM does it, with the real tokenizer of a model
folder. In a thread of a test (`running`), or `python -m tests.scripted_engine` as a process.
"""

import argparse
import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer

from services.cli.ports import listen, port_of
from tests.waiting import until

Script = Callable[[str, int], str]
"""(prompt with all its special tokens, seed) -> what the model writes before it ends its turn."""
VERSION = "scripted"


@dataclass
class Step:
    """Token ids that were generated, and the text they make."""

    ids: list[int]
    text: str
    finish_reason: str
    stop_reason: str | None


@dataclass
class ScriptedEngine:
    """The server's state. A test may change its faults while it runs."""

    folder: Path
    script: Script
    max_model_len: int = 4096
    status: int = 200
    """Other than 200: what every generation is answered with."""
    token_seconds: float = 0.0
    broken_swap: bool = False
    """Swaps report success and change nothing."""
    breaks_after: int | None = None
    """A stream ends without a word after so many tokens."""
    probes: dict[tuple[int, ...], list[float]] = field(default_factory=dict)
    """Log-probabilities for these ids, whatever the weights are."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of the generation requests so far."""
    aborted: int = 0
    """Streams whose client left."""
    running: int = 0

    def __post_init__(self) -> None:
        self.weights = self.folder
        self.chat_template = AutoTokenizer.from_pretrained(self.folder)
        self.tokenizer: Tokenizer = self.chat_template.backend_tokenizer
        self.end_id = int(self.chat_template.eos_token_id)
        self.encode = lru_cache(4096)(self._encode)

    def _encode(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids of a text, and where in it each one ends."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return tuple(encoding.ids), tuple(end for _, end in encoding.offsets)

    def generate(self, prompt: str, seed: int, body: dict[str, Any]) -> Step:
        text = self.script(prompt, seed)
        ids, ends = self.encode(text)
        budget = body["max_tokens"]
        stops = [(text.find(s) + len(s), s) for s in body.get("stop") or [] if s in text]
        if stops:
            end, stop = min(stops)
            count = next(i for i, e in enumerate(ends) if e >= end) + 1
            if count <= budget:
                kept = end if body.get("include_stop_str_in_output") else end - len(stop)
                return Step(list(ids[:count]), text[:kept], "stop", stop)
        if len(ids) < budget:
            return Step([*ids, self.end_id], text, "stop", None)
        cut = self.tokenizer.decode(ids[:budget], skip_special_tokens=False)
        # vLLM holds back a character that is not whole.
        return Step(list(ids[:budget]), cut.rstrip("\ufffd"), "length", None)

    def logprobs(self, ids: list[int]) -> list[float]:
        """Of each id but the first: the trainer's for its probe, made up from the weights else."""
        if tuple(ids) in self.probes:
            return self.probes[tuple(ids)]
        probe = self.weights / "probe.json"
        if probe.exists() and (known := json.loads(probe.read_text()))["token_ids"] == ids:
            return [float(value) for value in known["logprobs"]]
        digest = hashlib.sha256((self.weights / "model.safetensors").read_bytes()).digest()
        return [-1.0 - digest[i % 32] / 256 for i in range(len(ids) - 1)]

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/completions", self.completions, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/tokenize", self.tokenize, methods=["POST"]),
                Route("/detokenize", self.detokenize, methods=["POST"]),
                Route("/collective_rpc", self.collective_rpc, methods=["POST"]),
                Route("/metrics", self.metrics),
                Route("/version", lambda _: JSONResponse({"version": VERSION})),
                Route("/health", lambda _: Response()),
                *(Route(path, _nothing, methods=["POST"]) for path in _WITHOUT_EFFECT),
            ]
        )

    async def completions(self, request: Request) -> Response:
        body = orjson.loads(await request.body())
        self.requests.append(body)
        if self.status != 200:
            return PlainTextResponse("it failed over: secret thought", self.status)
        ids = body["prompt"]
        if isinstance(ids, str):
            ids = list(self.encode(ids)[0])
        if len(ids) + body["max_tokens"] > self.max_model_len:
            return JSONResponse({"error": {"message": "context too long"}}, 400)
        prompt = self.tokenizer.decode(ids, skip_special_tokens=False)
        steps = [
            self.generate(prompt, (body.get("seed") or 0) + k, body)
            for k in range(body.get("n", 1))
        ]
        if body.get("stream"):
            return StreamingResponse(self._stream(steps[0]), media_type="text/event-stream")
        await asyncio.sleep(self.token_seconds * max(len(step.ids) for step in steps))
        choices = [_choice(k, step, step.ids, step.text) for k, step in enumerate(steps)]
        if "prompt_logprobs" in body:
            rows = zip(ids[1:], self.logprobs(ids), strict=True)
            choices[0]["prompt_logprobs"] = [None, *({str(i): {"logprob": x}} for i, x in rows)]
        total = sum(len(step.ids) for step in steps)
        usage = {"prompt_tokens": len(ids), "completion_tokens": total}
        return Response(orjson.dumps({"choices": choices, "usage": usage}))

    async def _stream(self, step: Step) -> AsyncIterator[bytes]:
        decode = DecodeStream(skip_special_tokens=True)
        sent, ended = "", False
        self.running += 1
        try:
            for at, token in enumerate(step.ids, 1):
                if self.breaks_after is not None and at > self.breaks_after:
                    ended = True
                    return
                await asyncio.sleep(self.token_seconds)
                piece = decode.step(self.tokenizer, token) or ""
                last = at == len(step.ids)
                piece = step.text[len(sent) :] if last else piece[: len(step.text) - len(sent)]
                sent += piece
                choice = _choice(0, step, [token], piece)
                if not last:
                    choice["finish_reason"] = choice["stop_reason"] = None
                yield b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n"
            ended = True
            yield b"data: [DONE]\n\n"
        finally:
            self.aborted += not ended
            self.running -= 1

    async def models(self, _: Request) -> Response:
        return JSONResponse({"data": [{"id": "m", "max_model_len": self.max_model_len}]})

    async def tokenize(self, request: Request) -> Response:
        body = orjson.loads(await request.body())
        if "messages" not in body:
            return JSONResponse({"tokens": self.encode(body["prompt"])[0]})
        text = self.chat_template.apply_chat_template(
            body["messages"], tokenize=False, add_generation_prompt=True
        )
        return JSONResponse({"tokens": self.encode(text)[0]})

    async def detokenize(self, request: Request) -> Response:
        ids = orjson.loads(await request.body())["tokens"]
        return JSONResponse({"prompt": self.tokenizer.decode(ids, skip_special_tokens=False)})

    async def collective_rpc(self, request: Request) -> Response:
        if not self.broken_swap:
            self.weights = Path(orjson.loads(await request.body())["kwargs"]["weights_path"])
        return JSONResponse({})

    async def metrics(self, _: Request) -> Response:
        return PlainTextResponse(f'vllm:num_requests_running{{engine="0"}} {self.running}\n')


_WITHOUT_EFFECT = (
    "/reset_prefix_cache", "/pause", "/resume", "/update_weight_version", "/sleep", "/wake_up",
)  # fmt: skip


async def _nothing(_: Request) -> Response:
    return JSONResponse({})


def _choice(index: int, step: Step, ids: list[int], text: str) -> dict[str, Any]:
    return {
        "index": index,
        "text": text,
        "token_ids": ids,
        "finish_reason": step.finish_reason,
        "stop_reason": step.stop_reason,
    }


@contextmanager
def running(engine: ScriptedEngine) -> Iterator[str]:
    """The engine's address, as long as the block lasts."""
    with serving(engine.app()) as url:
        yield url


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address of an application that a thread serves as long as the block lasts."""
    sock = listen()
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    until(lambda: server.started, "the server listens")
    yield f"http://127.0.0.1:{port_of(sock)}"
    server.should_exit = True
    thread.join(10)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder with its tokenizer")
    parser.add_argument("--fd", type=int, required=True, help="a socket that listens")
    parser.add_argument("--tokens", type=int, default=1000)
    args = parser.parse_args()
    engine = ScriptedEngine(args.model, long_outputs(args.tokens), max_model_len=1_000_000)
    uvicorn.run(engine.app(), fd=args.fd, log_level="error", lifespan="off")


if __name__ == "__main__":
    main()
