"""Metrics of chat for Prometheus: times and counts, no text and no model's name."""

import time
from enum import StrEnum

from prometheus_client import Counter, Gauge, Histogram

from services.chat.answer import Piece


class Outcome(StrEnum):
    answered = "answered"
    refused = "refused"
    """The request's fault, or one too many."""
    failed = "failed"
    """Ours: also a stream that ends in an error, whose HTTP status is 200."""
    left = "left"
    """The client went away before the end."""


REQUESTS = Counter(
    "forethought_chat_requests_total", "Requests to chat, by how they ended", ["outcome"]
)
for _outcome in Outcome:
    REQUESTS.labels(_outcome)  # shown from 0 on
IN_FLIGHT = Gauge("forethought_chat_in_flight", "Requests that are being answered")
FIRST_ANSWER_TOKEN = Histogram(
    "forethought_chat_first_answer_token_seconds",
    "From a streamed request, once it is read and checked, to the first of its answer",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120),
)
THOUGHT_TOKENS = Histogram(
    "forethought_chat_thought_tokens",
    "Tokens of a thought",
    buckets=(0, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
)
THOUGHTS_CUT = Counter(
    "forethought_chat_thoughts_cut_total", "Thoughts that had no end of their own: one was put in"
)
ANSWER_TOKENS = Counter("forethought_chat_answer_tokens_total", "Tokens of answers")
LEAKS_BLOCKED = Counter(
    "forethought_chat_leaks_blocked_total", "Thoughts begun inside an answer, and kept out of it"
)


class FirstAnswer:
    """Waits for the first piece of a stream that shows anything, of whichever choice."""

    def __init__(self) -> None:
        self._asked_at = time.monotonic()
        self._waiting = True

    def see(self, piece: Piece) -> None:
        if self._waiting and (piece.text or piece.calls):
            self._waiting = False
            FIRST_ANSWER_TOKEN.observe(time.monotonic() - self._asked_at)
