"""A stand-in for vLLM's OpenAI server, for adversarial cases and for scale.

What a model would write is a script: a function of the text so far and the seed. All else, tokens,
stop strings, budgets, streams and swaps, is as vLLM does it, with the real tokenizer of a model
folder. In a thread of a test (`running`), or `python -m tests.support.scripted_engine` as a
process.
"""

import argparse
import asyncio
import hashlib
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from jinja2 import TemplateError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer

from services.cli.machine.ports import listen, port_of
from shared.thinking.sampling import GREEDY_BELOW
from shared.web.http_protocol import BoundedProtocol
from tests.support.engine_scripts import Play, Script, chat, long_outputs
from tests.support.waiting import until

VERSION = "scripted"


@dataclass
class Step:
    """Token ids that were generated, and the text they make."""

    ids: list[int]
    text: str
    finish_reason: str
    stop_reason: str | None
    play: Play
    skips: bool
    """Whether the text is without the special tokens."""


@dataclass
class ScriptedEngine:
    """The server's state. A test may change its faults while it runs."""

    folder: Path
    script: Script
    max_model_len: int = 4096
    status: int = 200
    """Other than 200: what every generation is answered with."""
    refuses: str = ""
    """A field of a generation request that is answered with status 400. As vLLM does it, all but
    a grammar is named."""
    render_answer: Response | None = None
    """What each rendering of messages is answered with."""
    token_seconds: float = 0.0
    broken_swap: bool = False
    """Swaps report success and change nothing."""
    probes: dict[tuple[int, ...], list[float]] = field(default_factory=dict)
    """Log-probabilities for these ids, whatever the weights are."""
    remembers: bool = True
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of the generation requests so far."""
    paths: list[str] = field(default_factory=list)
    """Of all requests so far."""
    aborted: int = 0
    """Requests whose client left."""
    running: int = 0
    tokens: int = 0
    """Generated so far."""
    label: str = "default"
    """Of its weights, as it was told."""
    hangs: bool = False
    """Generation requests are taken and never answered, while all else works."""

    def __post_init__(self) -> None:
        self.load(self.folder)
        self.chat_template = AutoTokenizer.from_pretrained(self.folder)
        self.tokenizer: Tokenizer = self.chat_template.backend_tokenizer
        self.end_id = int(self.chat_template.eos_token_id)
        added = self.tokenizer.get_added_tokens_decoder()
        self.special = {token for token, entry in added.items() if entry.special}
        self.encode = lru_cache(4096)(self._encode)
        self.written = lru_cache(4096)(self._written)
        self.render = lru_cache(4096)(self._render)
        self._made: dict[Any, list[tuple[int, bytes | None]]] = {}

    def _encode(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids of a text, and where in it each one ends."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return tuple(encoding.ids), tuple(end for _, end in encoding.offsets)

    def _written(self, text: str, skips: bool) -> tuple[tuple[int, ...], tuple[int, ...], str]:
        """Ids of what a model writes, where in its visible text each one ends, and that text: as
        in vLLM, special tokens are not in it unless a request asks for them."""
        ids, ends = self.encode(text)
        if not skips or self.special.isdisjoint(ids):
            return ids, ends, text
        visible, visible_ends, at = "", [], 0
        for token, end in zip(ids, ends, strict=True):
            visible += "" if token in self.special else text[at:end]
            visible_ends.append(len(visible))
            at = end
        return ids, tuple(visible_ends), visible

    def generate(self, prompt: str, seed: int, body: dict[str, Any]) -> Step:
        play = self.script(prompt, seed)
        play = Play(play) if isinstance(play, str) else play
        skips, includes_stop = (
            body.get("skip_special_tokens", True),
            body.get("include_stop_str_in_output", False),
        )
        ids, ends, text = self.written(play.text, skips)
        budget = body["max_tokens"]
        # As in vLLM, the first tokens are not searched.
        least = ends[: body.get("min_tokens", 0)][-1:]
        found = [(text.find(s, *least), s) for s in body.get("stop") or []]
        stops = [(at + len(s), s) for at, s in found if at >= 0]
        if stops:
            end, stop = min(stops)
            count = next(i for i, e in enumerate(ends) if e >= end) + 1
            if count <= budget:
                kept = end if includes_stop else end - len(stop)
                return Step(list(ids[:count]), text[:kept], "stop", stop, play, skips)
        if len(ids) < budget:
            # An end token is a stop as well.
            if includes_stop and not skips:
                text += self.tokenizer.decode([self.end_id], skip_special_tokens=False)
            return Step([*ids, self.end_id], text, "stop", None, play, skips)
        cut = self.tokenizer.decode(ids[:budget], skip_special_tokens=skips)
        # vLLM holds back a character that is not whole.
        return Step(list(ids[:budget]), cut.rstrip("\ufffd"), "length", None, play, skips)

    def load(self, weights: Path) -> None:
        """Nothing is read of the folder later: it may be gone by then."""
        self.weights = weights
        probe = weights / "probe.json"
        self.trained: dict[str, Any] = json.loads(probe.read_text()) if probe.exists() else {}
        self.digest = hashlib.sha256((weights / "model.safetensors").read_bytes()).digest()

    def logprobs(self, ids: list[int]) -> list[float]:
        """Of each id but the first: the trainer's for its probe, made up from the weights else."""
        if tuple(ids) in self.probes:
            return self.probes[tuple(ids)]
        if ids == self.trained.get("token_ids"):
            return [float(value) for value in self.trained["logprobs"]]
        return [-1.0 - self.digest[i % 32] / 256 for i in range(len(ids) - 1)]

    def app(self) -> ASGIApp:
        app = Starlette(
            routes=[
                Route("/v1/completions", self.completions, methods=["POST"]),
                Route("/v1/chat/completions", self.completions, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/tokenize", self.tokenize, methods=["POST"]),
                Route("/detokenize", self.detokenize, methods=["POST"]),
                Route("/collective_rpc", self.collective_rpc, methods=["POST"]),
                Route("/update_weight_version", self.update_label, methods=["POST"]),
                Route("/weight_info", self.weight_info),
                Route("/metrics", self.metrics),
                Route("/version", lambda _: JSONResponse({"version": VERSION})),
                Route("/health", lambda _: Response()),
                Route("/misbehave", self.misbehave, methods=["POST"]),
                *(Route(path, _nothing, methods=["POST"]) for path in _WITHOUT_EFFECT),
            ],
            exception_handlers={TemplateError: _refused},
        )

        async def remembering(scope: Scope, receive: Receive, send: Send) -> None:
            if self.remembers and scope["type"] == "http":
                self.paths.append(scope["path"])
            await app(scope, receive, send)

        return remembering

    async def completions(self, request: Request) -> Response:
        body = orjson.loads(await request.body())
        if self.remembers:
            self.requests.append(body)
        while self.hangs:
            await asyncio.sleep(0.1)
        if self.status != 200:
            error = {"message": "it failed over: secret thought", "param": None}
            return JSONResponse({"error": error}, self.status)
        if self.refuses in body:
            param = None if self.refuses == "response_format" else self.refuses
            return JSONResponse({"error": {"message": "it is bad: secret", "param": param}}, 400)
        if body.get("n", 1) > 1 and body.get("temperature", 1) < GREEDY_BELOW:
            return JSONResponse({"error": {"message": "n must be 1 when greedy"}}, 400)
        ids = self.prompt(body) if "messages" in body else body["prompt"]
        if isinstance(ids, str):
            ids = list(self.encode(ids)[0])
        body.setdefault("max_tokens", self.max_model_len - len(ids))
        if len(ids) + body["max_tokens"] > self.max_model_len:
            return JSONResponse({"error": {"message": "context too long"}}, 400)
        prompt = self.tokenizer.decode(ids, skip_special_tokens=False)
        steps = [
            self.generate(prompt, (body.get("seed") or 0) + k, body)
            for k in range(body.get("n", 1))
        ]
        for step in steps:
            step.finish_reason = step.play.finish or step.finish_reason
        if any(step.play.fails for step in steps):
            return JSONResponse({"error": {"message": steps[0].play.text}}, 500)
        self.tokens += sum(len(step.ids) for step in steps)
        if body.get("stream"):
            return StreamingResponse(self._stream(steps[0], body), media_type="text/event-stream")
        for step in steps:
            if step.play.breaks_after is None and step.play.fails_after is None:
                continue
            for piece in self._pieces(step, logprobs=False):
                if piece is None or "error" in piece:
                    return JSONResponse(piece, 503 if piece is None else 500)
        if self.token_seconds:
            await asyncio.sleep(self.token_seconds * max(len(step.ids) for step in steps))
            self.aborted += await request.is_disconnected()
        choices = [_choice(k, step, step.ids, step.text) for k, step in enumerate(steps)]
        answer = {"id": "x", "object": "x", "created": 0, "model": "m", "choices": choices}
        if "logprobs" in body:
            for choice, step in zip(choices, steps, strict=True):
                choice["logprobs"] = self._columns(step.ids)
        if "prompt_logprobs" in body:
            rows = zip(ids[1:], self.logprobs(ids), strict=True)
            choices[0]["prompt_logprobs"] = [None, *({str(i): {"logprob": x}} for i, x in rows)]
        if "messages" in body:
            answer = _as_chat(answer)
        total = sum(len(step.ids) for step in steps)
        usage = {
            "prompt_tokens": len(ids),
            "completion_tokens": total,
            "total_tokens": len(ids) + total,
        }
        return Response(orjson.dumps(answer | {"usage": usage}), media_type="application/json")

    async def _stream(self, step: Step, body: dict[str, Any]) -> AsyncIterator[bytes]:
        self.running += 1
        ended = False
        # By the clock, so that late timers do not add up.
        clock = asyncio.get_running_loop().time
        due = clock()
        try:
            for tokens, event in self._events(step, "logprobs" in body, "messages" in body):
                if event is None:
                    ended = True
                    return
                due += self.token_seconds * tokens
                await asyncio.sleep(due - clock())
                yield event
            ended = True
            yield b"data: [DONE]\n\n"
        finally:
            self.aborted += not ended
            self.running -= 1

    def _events(self, step: Step, logprobs: bool, chat: bool) -> list[tuple[int, bytes | None]]:
        """Each event with the number of its tokens."""
        key = (step.text, len(step.ids), step.finish_reason, step.play, step.skips, logprobs, chat)
        if key not in self._made:
            if len(self._made) > 1000:
                self._made.clear()
            self._made[key] = [
                (len(piece.get("token_ids", ())), _event(piece, chat)) if piece else (0, None)
                for piece in self._pieces(step, logprobs)
            ]
        return self._made[key]

    def _pieces(self, step: Step, logprobs: bool) -> Iterator[dict[str, Any] | None]:
        """Choices of the events; None where the stream breaks off."""
        decode = DecodeStream(skip_special_tokens=step.skips)
        play, sizes = step.play, cycle(step.play.tokens_an_event)
        sent, at = "", 0
        while at < len(step.ids):
            if play.breaks_after is not None and at >= play.breaks_after:
                yield None
                return
            if play.fails_after is not None and at >= play.fails_after:
                yield {"error": {"message": play.text, "code": 500}}
                return
            ids = step.ids[at : at + next(sizes)]
            at += len(ids)
            piece = "".join(decode.step(self.tokenizer, token) or "" for token in ids)
            last = at == len(step.ids)
            piece = step.text[len(sent) :] if last else piece[: len(step.text) - len(sent)]
            sent += piece
            choice = _choice(0, step, ids, piece)
            if logprobs:
                choice["logprobs"] = self._columns(ids)
            if not last:
                choice["finish_reason"] = choice["stop_reason"] = None
            yield choice

    def _columns(self, ids: list[int]) -> dict[str, list[Any]]:
        """Made-up log-probabilities of these tokens; each one's rival is `?`. As in vLLM, a part
        of a character is told as nothing."""
        tokens = [self.tokenizer.decode([i], skip_special_tokens=False) for i in ids]
        tokens = ["" if "\ufffd" in token else token for token in tokens]
        values = [-0.5] * len(ids)
        tops = [{token: -0.5, "?": -1.5} for token in tokens]
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops}

    async def models(self, _: Request) -> Response:
        return JSONResponse({"data": [{"id": "m", "max_model_len": self.max_model_len}]})

    async def tokenize(self, request: Request) -> Response:
        body = orjson.loads(await request.body())
        if self.render_answer and "messages" in body:
            return self.render_answer
        if "messages" not in body:
            return JSONResponse({"tokens": self.encode(body["prompt"])[0]})
        return JSONResponse({"tokens": self.encode(self.prompt(body))[0]})

    def prompt(self, body: dict[str, Any]) -> str:
        """The chat messages of a request in the template."""
        return self.render(orjson.dumps([body["messages"], body.get("tools")]))

    def _render(self, messages_tools: bytes) -> str:
        messages, tools = orjson.loads(messages_tools)
        text: str = self.chat_template.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=True
        )
        return text

    async def detokenize(self, request: Request) -> Response:
        ids = orjson.loads(await request.body())["tokens"]
        return JSONResponse({"prompt": self.tokenizer.decode(ids, skip_special_tokens=False)})

    async def collective_rpc(self, request: Request) -> Response:
        if not self.broken_swap:
            self.load(Path(orjson.loads(await request.body())["kwargs"]["weights_path"]))
        return JSONResponse({})

    async def update_label(self, request: Request) -> Response:
        self.label = orjson.loads(await request.body())["new_version"]
        return JSONResponse({})

    async def weight_info(self, _: Request) -> Response:
        return JSONResponse({"weight_version": self.label})

    async def metrics(self, _: Request) -> Response:
        lines = (
            f'vllm:num_requests_running{{engine="0"}} {self.running}\n'
            f'vllm:generation_tokens_total{{engine="0"}} {self.tokens}\n'
        )
        return PlainTextResponse(lines)

    async def misbehave(self, request: Request) -> Response:
        how = (await request.body()).decode()
        if how == "exit":
            os._exit(0)
        self.hangs, self.status = how == "hang", 500 if how == "die" else 200
        return Response()


_WITHOUT_EFFECT = ("/reset_prefix_cache", "/pause", "/resume", "/sleep", "/wake_up")


async def _refused(_: Request, __: Exception) -> Response:
    return JSONResponse({"error": {"message": "the template refuses: secret"}}, 400)


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


def _as_chat(answer: dict[str, Any]) -> dict[str, Any]:
    """Put a whole answer into the form of the chat route, which gives no token ids."""
    for choice in answer["choices"]:
        choice["message"] = {"role": "assistant", "content": choice.pop("text")}
        choice["token_ids"] = None
    return answer


def _event(piece: dict[str, Any], chat: bool) -> bytes:
    if "error" not in piece:
        if chat:
            delta = {"role": "assistant", "content": piece["text"]}
            piece = {"index": 0, "delta": delta, "finish_reason": piece["finish_reason"]}
        piece = {"id": "x", "object": "x", "created": 0, "model": "m", "choices": [piece]}
    return b"data: " + orjson.dumps(piece) + b"\n\n"


@contextmanager
def running(engine: ScriptedEngine) -> Iterator[str]:
    """The engine's address, as long as the block lasts."""
    with serving(engine.app()) as url:
        yield url


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address of an application that a thread serves as long as the block lasts."""
    sock = listen()
    config = uvicorn.Config(
        app, http=BoundedProtocol, log_level="error", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    until(lambda: server.started, "the server listens")
    yield f"http://127.0.0.1:{port_of(sock)}"
    server.should_exit = True
    thread.join(10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder with its tokenizer")
    parser.add_argument("--fd", type=int, help="a socket that listens")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="in place of --fd")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--chat", type=json.loads, help="arguments of `chat`, not `long_outputs`")
    parser.add_argument("--token-seconds", type=float, default=0.0)
    args = parser.parse_args()
    script = chat(**args.chat) if args.chat else long_outputs(args.tokens)
    engine = ScriptedEngine(
        args.model,
        script,
        max_model_len=1_000_000,
        token_seconds=args.token_seconds,
        remembers=False,
    )
    where = {"fd": args.fd, "host": args.host, "port": args.port}
    uvicorn.run(engine.app(), log_level="error", lifespan="off", **where)


if __name__ == "__main__":
    main()
