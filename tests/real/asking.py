"""What the real platform is asked most often."""

from pathlib import Path
from typing import Any

import httpx2

from tests.support.access import HEADERS
from tests.support.platform import Platform
from tests.support.waiting import until

QUESTION: list[Any] = [{"role": "user", "content": "Name a fruit."}]
ASK: dict[str, Any] = {"model": "thinker", "messages": QUESTION, "seed": 1, "max_tokens": 48}


def answers(real: Platform, model: str = "thinker") -> bool:
    """Whether the model is served yet."""
    body = ASK | {"model": model, "max_tokens": 2}
    url = f"{real.stack.url}/v1/chat/completions"
    answer = httpx2.post(url, json=body, headers=HEADERS, timeout=90)
    assert answer.status_code in (200, 503), answer.text
    return answer.status_code == 200


def register(real: Platform, name: str, folder: Path) -> None:
    body = {"name": name, "source": str(folder), "thought_format": "generic"}
    httpx2.post(f"{real.stack.url}/models", json=body, headers=HEADERS).raise_for_status()
    real.client.wait_for_model(name)


def promote(real: Platform, name: str, seconds: float = 60) -> None:
    """Until it answers."""
    body = {"thought_budgets": {"low": 6, "medium": 24}}
    url = f"{real.stack.url}/models/{name}/promote"
    httpx2.post(url, json=body, headers=HEADERS).raise_for_status()
    until(lambda: answers(real, name), f"{name} is served", seconds)
