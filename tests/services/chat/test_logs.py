"""Nothing of a conversation is logged, however it ends."""

import logging
from typing import Any

import httpx2
import pytest

from tests.services.chat.served import THOUGHT, script
from tests.support.access import HEADERS, SERVICE_KEY
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import until

QUESTION = [{"role": "user", "content": "SECRET question"}]
BODIES: tuple[dict[str, Any], ...] = (
    {},
    {"stream": True},
    {"stop": 5},
    {"max_completion_tokens": 10**6},
    {"tools": [{"type": "function", "function": {"name": "SECRET"}}]},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "SECRET", "schema": 1}}},
)


@pytest.mark.parametrize("answer", ["SECRET answer", "", THOUGHT])
def test_no_record_holds_what_was_said(
    served: str, scripted: ScriptedEngine, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    scripted.script = script(answer)
    for change in BODIES:
        body = {"model": "demo", "messages": QUESTION} | change
        httpx2.post(f"{served}/v1/chat/completions", json=body, headers=HEADERS)

    def requests() -> int:
        return sum(record.getMessage() == "request" for record in caplog.records)

    until(lambda: requests() == len(BODIES), "each has its line")
    # The client's own are not the platform's.
    records = [r for r in caplog.records if not r.name.startswith(("httpx2", "httpcore2"))]
    for record in records:
        assert "SECRET" not in repr(record.__dict__)
        assert SERVICE_KEY not in repr(record.__dict__)
