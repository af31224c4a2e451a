"""What a client sees of one request, in a form that does not depend on how it was sent."""

import json
from dataclasses import dataclass, field
from typing import Any

import aiohttp

Body = dict[str, Any]


@dataclass
class Choice:
    text: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    """Those with a log-probability."""
    finish_reason: str | None = None


@dataclass
class Outcome:
    """Choices and usage, or the error."""

    choices: dict[int, Choice] = field(default_factory=dict)
    usage: Body | None = None
    error: Body | None = None
    seen: str = field(default="", compare=False)
    """Every byte of the body and the headers, JSON's escapes resolved as well."""

    def settled(self) -> "Outcome":
        """What came before an error is no answer, however much of it was streamed."""
        return Outcome(error=self.error) if self.error else self


async def ask(http: aiohttp.ClientSession, url: str, body: Body, *, stream: bool) -> Outcome:
    """Send a chat completion. Raises AssertionError where an answer is not as OpenAI's are."""
    if stream:
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
    async with http.post(f"{url}/v1/chat/completions", json=body) as response:
        raw = await response.read()
    outcome = Outcome(seen=f"{response.headers!r}\n{raw.decode()}")
    if stream and response.status == 200:
        _read_stream(outcome, raw)
    else:
        answer = json.loads(raw)
        outcome.seen += json.dumps(answer, ensure_ascii=False)
        _read_whole(outcome, answer)
    return outcome


async def ask_for_response(
    http: aiohttp.ClientSession, url: str, body: Body, *, stream: bool
) -> Outcome:
    """The same for `/v1/responses`; its status stands for a finish reason."""
    async with http.post(f"{url}/v1/responses", json=body | {"stream": stream}) as response:
        raw = await response.read()
    outcome = Outcome(seen=f"{response.headers!r}\n{raw.decode()}")
    events = raw.decode().split("\n\n")
    if not (stream and response.status == 200):
        answer = json.loads(raw)
        outcome.seen += json.dumps(answer, ensure_ascii=False)
        _read_response(outcome, answer)
        return outcome
    assert events.pop() == "", "a stream ends in an empty line"
    streamed = ""
    for event in (e for e in events if e != ": ping"):
        kind, _, data = event.removeprefix("event: ").partition("\ndata: ")
        said = json.loads(data)
        assert said["type"] == kind
        outcome.seen += json.dumps(said, ensure_ascii=False)
        streamed += said["delta"] if kind == "response.output_text.delta" else ""
    _read_response(outcome, said["response"])
    assert outcome.error or outcome.choices[0].text == streamed, "the deltas make another text"
    return outcome


def _read_response(outcome: Outcome, response: Body) -> None:
    if error := response["error"]:
        outcome.error = {name: error[name] for name in ("code", "message")}
        return
    [item] = response["output"]
    text = "".join(part["text"] for part in item["content"])
    outcome.choices[0] = Choice(text, finish_reason=response["status"])
    outcome.usage = response["usage"]


def _read_whole(outcome: Outcome, answer: Body) -> None:
    if "error" in answer:
        outcome.error = answer["error"]
        return
    outcome.usage = answer["usage"]
    for entry in answer["choices"]:
        choice = outcome.choices[entry["index"]] = Choice(finish_reason=entry["finish_reason"])
        _add(choice, entry["message"], entry["logprobs"])


def _read_stream(outcome: Outcome, raw: bytes) -> None:
    events = raw.decode().split("\n\n")
    assert events.pop() == "", "a stream ends in an empty line"
    data = [event.removeprefix("data: ") for event in events if event != ": ping"]
    ended = data[-1] == "[DONE]"
    for text in data[:-1] if ended else data:
        event = json.loads(text)
        outcome.seen += json.dumps(event, ensure_ascii=False)
        if "error" in event:
            outcome.error = event["error"]
            break
        outcome.usage = event["usage"] or outcome.usage
        for entry in event["choices"]:
            choice = outcome.choices.setdefault(entry["index"], Choice())
            assert choice.finish_reason is None, "nothing comes after a finish reason"
            _add(choice, entry["delta"], entry["logprobs"])
            choice.finish_reason = entry["finish_reason"]
    assert ended == (outcome.error is None), "a stream ends in [DONE] or in an error"


def _add(choice: Choice, message: Body, logprobs: Body | None) -> None:
    choice.text += message.get("content") or ""
    for call in message.get("tool_calls") or []:
        choice.calls.append((call["function"]["name"], call["function"]["arguments"]))
    if logprobs:
        choice.tokens += [token["token"] for token in logprobs["content"]]
