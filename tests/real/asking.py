"""What the real model is asked most often."""

from typing import Any

import httpx2

from tests.access import HEADERS
from tests.platform import Platform

QUESTION: list[Any] = [{"role": "user", "content": "Name a fruit."}]
ASK: dict[str, Any] = {"model": "thinker", "messages": QUESTION, "seed": 1, "max_tokens": 48}


def answers(real: Platform, model: str = "thinker") -> bool:
    """Whether the model is served yet."""
    body = ASK | {"model": model, "max_tokens": 2}
    url = f"{real.stack.url}/v1/chat/completions"
    answer = httpx2.post(url, json=body, headers=HEADERS, timeout=90)
    assert answer.status_code in (200, 503), answer.text
    return answer.status_code == 200
