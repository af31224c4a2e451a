"""What the scripted model thinks and answers, and how it comes to be served."""

import threading
import uuid
from typing import Any

import httpx2

from services.chat.serving import CACHE, Served
from shared.db.engine import transaction
from shared.db.tables import Serving
from shared.thinking.formats import GENERIC, ThoughtFormat
from tests.support import factories
from tests.support.access import HEADERS
from tests.support.engine_scripts import Play, Script
from tests.support.waiting import until

SECRET = "SECRET"
THOUGHT = f"{GENERIC.thought_marker} {SECRET} thought.\n{GENERIC.response_marker}\n"
QUESTION: list[Any] = [{"role": "user", "content": "What is 17 + 25?"}]


def script(answer: str | Play, thought: str | Play = THOUGHT) -> Script:
    """Thinks where its turn is empty, and answers behind a response marker."""
    return lambda prompt, _: thought if thinks(prompt) else answer


def thinks(prompt: str) -> bool:
    """Whether the model's turn is empty, but for what a prefill puts there."""
    return prompt.endswith(("assistant\n", "assistant\n<think>"))


def post(url: str, *, timeout: float = 30, **fields: Any) -> httpx2.Response:
    """Ask the question; `fields` are others of the request."""
    body = {"model": "demo", "messages": QUESTION} | fields
    return httpx2.post(f"{url}/v1/chat/completions", json=body, headers=HEADERS, timeout=timeout)


class Asked(threading.Thread):
    """A request under way in a thread."""

    def __init__(self, url: str, **fields: Any) -> None:
        super().__init__()
        self.url = f"{url}/v1/chat/completions"
        self.body = {"model": "demo", "messages": QUESTION, "seed": 1} | fields
        self.start()

    def run(self) -> None:
        self.answer = httpx2.post(self.url, json=self.body, headers=HEADERS, timeout=60)

    def answered(self) -> httpx2.Response:
        self.join()
        return self.answer


def serve(engine_url: str, fmt: ThoughtFormat, name: str = "demo", version: int = 1) -> None:
    """Promote a model of this format and wait until chat serves it."""
    with transaction() as session:
        wanted = {"name": name, "version": version, "thought_format": fmt.model_dump()}
        id_ = factories.served(session, engine_url, **wanted).id
    until(lambda: only_model() == id_, "it is served")


def only_served() -> Served:
    """The one engine that chat knows."""
    (served,) = CACHE._served.values()
    return served


def only_model() -> uuid.UUID | None:
    """Id of the one model that chat serves; None while there is none."""
    ids = {served.model.id for served in CACHE._served.values()}
    return ids.pop() if len(ids) == 1 else None


def replace(engine_url: str, name: str = "other", version: int = 1) -> None:
    """Another model takes the place of the served one."""
    with transaction() as session:
        session.query(Serving).delete()
    serve(engine_url, GENERIC, name, version)
