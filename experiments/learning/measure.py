"""Every model on the same held-out prompts with the same sampling: what arms are compared by."""

import json
import time
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from experiments.learning.make_prompts import TEST_PATH
from services.cli.output.watch import TERMINAL
from services.coordinator.evaluation.stats import mean_interval
from shared.web.client import ServiceClient

Json = dict[str, Any]
PAGE_ROWS = 1000


@dataclass(frozen=True)
class Services:
    generate: ServiceClient
    judge: ServiceClient


@dataclass(frozen=True)
class Measured:
    """One answer a prompt, greedily: its score and tokens; whether it parsed, or was cut short.
    What does not parse scores 0."""

    scores: list[float]
    response_tokens: list[int]
    thought_tokens: list[int]
    parsed: int
    truncated: int

    def summary(self, seed: "Measured") -> Json:
        """Means, and the mean gain over the seed with its 95% interval."""
        gains = [ours - theirs for ours, theirs in zip(self.scores, seed.scores, strict=True)]
        return asdict(self) | {
            "score": fmean(self.scores),
            "gain": mean_interval(gains).as_json(),
            "mean_response_tokens": fmean(self.response_tokens),
            "mean_thought_tokens": fmean(self.thought_tokens),
        }


def held_out() -> list[Json]:
    prompts = [json.loads(line) for line in TEST_PATH.read_text().splitlines()]
    return [{"text": p["text"], "checks": p["checks"]} for p in prompts]


def measure(services: Services, model: str, thought_format: str, sampling: Json) -> Measured:
    """Answer the held-out prompts with `model` and have the verifier score them."""
    body = {
        "model": model,
        "prompts": held_out(),
        "thought_format": thought_format,
        "sampling": sampling | {"samples": 1, "temperature": 0},
    }
    answered = _done(services.generate, services.generate.post("/generate", body))
    judged = _done(services.judge, services.judge.post("/judge", {"generate_job_id": answered}))
    completions = _rows(services.generate, answered, "completions")
    completions.sort(key=lambda row: int(row["prompt_index"]))  # shards end in any order
    score = {
        row["completion_id"]: row["score"] for row in _rows(services.judge, judged, "judgments")
    }
    return Measured(
        scores=[score.get(row["id"]) or 0.0 for row in completions],
        response_tokens=[row["response_tokens"] for row in completions],
        thought_tokens=[row["thought_tokens"] for row in completions],
        parsed=sum(row["response"] is not None for row in completions),
        truncated=sum(row["truncated"] for row in completions),
    )


def _done(service: ServiceClient, job: Json) -> str:
    while job["status"] not in TERMINAL:
        time.sleep(1)
        job = service.get(f"/jobs/{job['id']}")
    if job["status"] != "succeeded":
        raise SystemExit(f"job {job['id']} {job['status']}: {job['error']}")
    return str(job["id"])


def _rows(service: ServiceClient, job: str, what: str) -> list[Json]:
    rows: list[Json] = service.get(f"/jobs/{job}/{what}", limit=PAGE_ROWS)["data"]
    return rows
