"""One platform for all tests with the real model: an engine takes most of a minute to start."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.asking import promote, register
from tests.support.platform import FLOAT32, Platform, platform

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
        register(started, "thinker", model)
        promote(started, "thinker", 300)
        yield started
