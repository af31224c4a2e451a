"""Many adversarial cases against the coordinator, each streamed and not. `make fuzz-chat`."""

import asyncio
import logging
import re
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp

from shared.thinking.formats import ThoughtFormat
from tests.services.chat.cases import CANARY, Case, case
from tests.services.chat.outcome import Outcome, ask, ask_for_response
from tests.support import tiny_model
from tests.support.access import HEADERS
from tests.support.engine_scripts import Play
from tests.support.scripted_engine import ScriptedEngine

AT_ONCE = 8
EVERY = 4
"""Of the cases one in so many is sent to `/v1/responses` as well."""


@dataclass
class Findings:
    cases: int = 0
    answers: int = 0
    """Of the cases, those that did not end in an error."""
    wrong: list[str] = field(default_factory=list)


class Logged(logging.Handler):
    """Counts log records that hold a secret letter anywhere."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.leaks: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = repr(record.__dict__) + record.getMessage()
        if record.exc_info and record.exc_info[1]:
            text += "".join(traceback.format_exception(record.exc_info[1]))
        if leaks(text):
            self.leaks.append(f"a log line: {text[:2000]}")


def leaks(text: str) -> bool:
    return any(letter in text for letter in CANARY)


def run(engine: ScriptedEngine, url: str, fmt: ThoughtFormat, numbers: Sequence[int]) -> Findings:
    """All of these cases of a format, which the model that chat serves must have."""
    under_way: dict[int, Case] = {}

    def play(prompt: str, seed: int) -> Play:
        # The canary of the engine's supervisor, or a probe, has no case.
        found = re.search(r"case (\d+)\.", prompt)
        return under_way[int(found[1])].play(prompt, seed) if found else Play("")

    engine.script = play
    logged = Logged()
    logging.getLogger().addHandler(logged)
    try:
        findings = asyncio.run(_run(url, fmt, numbers, under_way))
    finally:
        logging.getLogger().removeHandler(logged)
    findings.wrong += logged.leaks
    return findings


async def _run(
    url: str, fmt: ThoughtFormat, numbers: Sequence[int], under_way: dict[int, Case]
) -> Findings:
    findings, left = Findings(), iter(numbers)

    async def work() -> None:
        for number in left:
            under_way[number] = made = case(number, fmt)
            findings.cases += 1
            if problem := await _problem(http, url, made, findings):
                findings.wrong.append(f"{fmt.name} {number}: {problem}\n{made}")
            del under_way[number]

    async with aiohttp.ClientSession(headers=HEADERS) as http:
        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
        async with http.get(f"{url}/metrics") as metrics:
            if leaks(await metrics.text()):
                findings.wrong.append("a metric's label leaks")
    return findings


async def _problem(
    http: aiohttp.ClientSession, url: str, made: Case, findings: Findings
) -> str | None:
    try:
        whole = await ask(http, url, made.body, stream=False)
        streamed = await ask(http, url, made.body, stream=True)
        findings.answers += whole.error is None
        if problem := _difference(whole, streamed, made.body["n"]):
            return problem
        if made.number % EVERY == 0 and (body := made.as_response):
            whole = await ask_for_response(http, url, body, stream=False)
            streamed = await ask_for_response(http, url, body, stream=True)
            return _difference(whole, streamed, 1)
    except AssertionError as error:
        return f"malformed: {error}"
    return None


def _difference(whole: Outcome, streamed: Outcome, choices: int) -> str | None:
    for outcome in (whole, streamed):
        if leaks(outcome.seen):
            return f"leak: {outcome.seen}"
        if tiny_model.END in outcome.seen:
            return f"the model's end shows: {outcome.seen}"
        if outcome.error and outcome.error["code"] not in EXPECTED_ERRORS:
            return f"unexpected error: {outcome.error}"
    if choices > 1 and whole.error and streamed.error:
        return None  # which choice fails first is chance
    if whole.settled() != streamed.settled():
        return f"not streamed {whole}\nstreamed {streamed}"
    return None


EXPECTED_ERRORS = {"engine_failed", "empty_answer", "unavailable"}
