"""Another model is promoted on the real engine while clients ask for both."""

import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx2
import pytest
from safetensors.torch import load_file, save_file

from tests.real.asking import ASK, promote, register
from tests.support.access import HEADERS
from tests.support.platform import Platform
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(600)]
REFUSALS = ("model_not_found", "model_not_ready", "model_replaced", "unavailable")
STUTTER = re.compile(r"(.{1,12}?)\1{5}$")
"""A token, up to the end again and again."""


@pytest.fixture
def stutterer(real: Platform, tmp_path: Path) -> str:
    """A model that tells itself by any part of its answers: `thinker` whose blocks add nothing, so
    that it repeats the last token that it was given."""
    [(path,)] = real.sql("SELECT path FROM models WHERE name = 'thinker'")
    folder = shutil.copytree(path, tmp_path / "stutterer")
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    register(real, "stutterer", folder)
    return "stutterer"


def test_a_promotion_under_load_mixes_no_two(real: Platform, stutterer: str) -> None:
    url, seen, over = f"{real.stack.url}/v1/chat/completions", list[tuple[int, str]](), Event()

    def ask_on(name: str) -> None:
        body = ASK | {"model": name, "stream": True}
        while not over.is_set():
            answer = httpx2.post(url, json=body, headers=HEADERS, timeout=60)
            seen.append((answer.status_code, answer.text))
            if answer.status_code != 200:
                time.sleep(0.1)

    def has_answered(model: str) -> bool:
        return any(f'"model":"{model}@v1"' in text for _, text in seen)

    promote(real, "thinker")
    with ThreadPoolExecutor() as pool:
        asking = [pool.submit(ask_on, name) for name in ("thinker", stutterer) * 2]
        try:
            until(lambda: has_answered("thinker"), "one answers")
            promote(real, stutterer)
            until(lambda: has_answered(stutterer), "so does the other")
            promote(real, "thinker")
        finally:
            over.set()
    for one in asking:
        one.result()
    for status, text in seen:
        if status == 200 and text.endswith("data: [DONE]\n\n") and '"error"' not in text:
            [model] = set(re.findall(r'"model":"([^"]*)"', text))
            answer = answer_of(text)
            if model == "thinker@v1":
                assert STUTTER.search(answer) is None, answer
            else:
                assert len(set(answer)) == 1, answer
        else:
            [refused] = re.findall(r'"code":"([^"]*)"', text)
            assert refused in REFUSALS, text


def answer_of(stream: str) -> str:
    events = [line.removeprefix("data: ") for line in stream.split("\n\n")]
    chunks = [json.loads(event) for event in events if event.startswith("{")]
    return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
