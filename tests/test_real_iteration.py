"""One iteration on the real parts: vLLM samples, TRL trains, the result answers in chat."""

import json
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.platform import platform
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(600)]
PROMPTS = Path(__file__).parents[1] / "configs" / "demo" / "prompts.jsonl"
CONFIG = {
    "name": "thinker",
    "base_model": "smollm2",
    "dataset": "some",
    "prompts_per_iteration": 10,
    "thought_format": "generic",
    "sampling": {
        "samples": 4,
        "boundary": "forced",
        "max_thought_tokens": 24,
        "max_response_tokens": 24,
    },
    "training": {"batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-5},
    "validation": {"prompts": 4},
    "promote": "always",
}


def some_prompts(folder: Path) -> Path:
    """Sixteen of the demo's prompts, four of them to validate with."""
    rows = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    few = [r for r in rows if r["split"] == "train"][:12]
    few += [r for r in rows if r["split"] == "validation"][:4]
    file = folder / "some.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in few))
    return file


def test_from_prompts_to_a_model_that_answers_with_its_thoughts_hidden(tmp_path: Path) -> None:
    with platform(tmp_path / "data", max_model_len="1024") as real:
        real.client.register_model("smollm2", "bundled")
        real.client.upload_dataset("some", some_prompts(tmp_path))
        real.client.wait_for_model("smollm2")

        [iteration] = real.ended(real.start(CONFIG))

        assert iteration["status"] == "succeeded", iteration["error"]
        report = iteration["report"]
        assert (report["prompts"], report["completions"]) == (10, 40)
        assert report["parse_rate"] > 0.5
        assert report["pairs"]["kept"] >= 1
        assert report["training"]["steps"] >= 1
        assert 0 < report["training"]["first_loss"] < 0.7
        assert report["validation"]["vs_seed"]["n"] == 4

        model = real.client.model(iteration["result_model"])
        seed = real.client.model("smollm2")
        assert model is not None
        assert seed is not None
        assert model["parent_id"] == seed["id"]
        assert model["weights_sha256"] != seed["weights_sha256"]

        def ready() -> bool:
            body = {"model": model["ref"], "messages": [{"role": "user", "content": "Hi"}]}
            body |= {"max_tokens": 2}
            answer = httpx2.post(f"{real.stack.url}/v1/chat/completions", json=body, timeout=60)
            assert answer.status_code in (200, 503), answer.text
            return answer.status_code == 200

        until(ready, "the model is served", 180)
        with openai.OpenAI(base_url=f"{real.stack.url}/v1", api_key="none") as client:
            question: Any = {"role": "user", "content": "Name a fruit."}
            answer = client.chat.completions.create(
                model="thinker", messages=[question], max_completion_tokens=48, seed=1
            )
            stream: Any = client.chat.completions.create(
                model="thinker", messages=[question], max_completion_tokens=48, seed=1, stream=True
            )
            streamed = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
        assert answer.choices[0].message.content == streamed
        assert answer.usage is not None
        assert answer.usage.completion_tokens_details is not None
        assert answer.usage.completion_tokens_details.reasoning_tokens
        assert "thought process" not in streamed
