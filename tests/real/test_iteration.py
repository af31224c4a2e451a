"""One iteration on the real parts: vLLM samples, TRL trains, the result answers in chat."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.real.asking import answers
from tests.support.platform import Platform
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(600)]
PROMPTS = Path(__file__).parents[2] / "configs" / "demo" / "prompts.jsonl"
CONFIG = {
    "name": "trained",
    "base_model": "thinker",
    "dataset": "some",
    "prompts_per_iteration": 4,
    "thought_format": "generic",
    "sampling": {
        "samples": 4,
        "boundary": "forced",
        "max_thought_tokens": 24,
        "max_response_tokens": 24,
    },
    "training": {"batch_size": 2, "micro_batch_size": 2, "learning_rate": 1e-5},
    "validation": {"prompts": 4},
    "promote": "always",
}


def some_prompts(folder: Path) -> Path:
    """Eight of the demo's prompts, four of them to validate with."""
    rows = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    few = [r for r in rows if r["split"] == "train"][:4]
    few += [r for r in rows if r["split"] == "validation"][:4]
    file = folder / "some.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in few))
    return file


def test_from_prompts_to_a_model_that_answers_with_its_thoughts_hidden(
    real: Platform, tmp_path: Path
) -> None:
    real.client.upload_dataset("some", some_prompts(tmp_path))

    [iteration] = real.ended(real.start(CONFIG))

    assert iteration["status"] == "succeeded", iteration["error"]
    report = iteration["report"]
    assert (report["prompts"], report["completions"]) == (4, 16)
    assert report["parse_rate"] > 0.5
    assert report["pairs"]["kept"] >= 1
    assert report["training"]["steps"] >= 1
    assert 0 < report["training"]["first_loss"] < 0.7
    assert report["validation"]["vs_seed"]["n"] == 4

    model = real.client.model(iteration["result_model"])
    seed = real.client.model("thinker")
    assert model is not None
    assert seed is not None
    assert model["parent_id"] == seed["id"]
    assert model["weights_sha256"] != seed["weights_sha256"]

    until(lambda: answers(real, "trained"), "the model is served", 180)
    with openai.OpenAI(base_url=f"{real.stack.url}/v1", api_key=real.stack.key) as client:
        question: Any = {"role": "user", "content": "Name a fruit."}
        # The first fills the prefix cache: what is computed anew may round otherwise.
        _, answer = [
            client.chat.completions.create(
                model="trained", messages=[question], max_completion_tokens=48, seed=1
            )
            for _ in range(2)
        ]
        stream: Any = client.chat.completions.create(
            model="trained", messages=[question], max_completion_tokens=48, seed=1, stream=True
        )
        streamed = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
    assert answer.choices[0].message.content == streamed
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens
    assert "thought process" not in streamed
