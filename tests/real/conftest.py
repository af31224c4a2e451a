"""One platform for all tests with the real model: an engine takes most of a minute to start."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.access import HEADERS
from tests.platform import FLOAT32, Platform, platform
from tests.real.asking import answers
from tests.waiting import until

TOOLS = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}\nCall one as <tool_call>\n"
    '{"name": ..., "arguments": ...}\n</tool_call><|im_end|>\n{% endif %}'
)


@pytest.fixture(scope="package")
def real(tmp_path_factory: pytest.TempPathFactory, bundled: Path) -> Iterator[Platform]:
    """Serves `thinker`: the bundled model, asked to think, with tools in its template."""
    folder = tmp_path_factory.mktemp("chat")
    model = folder / "thinker"
    shutil.copytree(bundled, model)
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    jinja = model / "chat_template.jinja"
    template = jinja.read_text() if jinja.exists() else tokenizer["chat_template"]
    jinja.write_text(TOOLS + template)
    (model / "tokenizer_config.json").write_text(
        json.dumps(tokenizer | {"chat_template": TOOLS + template})
    )
    with platform(folder / "data", max_model_len="1024", engine_args=FLOAT32) as started:
        body = {"name": "thinker", "source": str(model), "thought_format": "generic"}
        models = f"{started.stack.url}/models"
        httpx2.post(models, json=body, headers=HEADERS).raise_for_status()
        started.client.wait_for_model("thinker")
        budgets = {"thought_budgets": {"low": 6, "medium": 24}}
        promote = f"{models}/thinker/promote"
        httpx2.post(promote, json=budgets, headers=HEADERS).raise_for_status()
        until(lambda: answers(started), "the model is served", 180)
        yield started
