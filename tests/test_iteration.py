"""Whole iterations over HTTP: the real platform and trainer, an engine that follows a script."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import psutil
import pytest

from services.cli.client import Client, Object
from tests import scripted_engine
from tests.engine_scripts import Script
from tests.platform import Platform, platform
from tests.scripted_engine import ScriptedEngine
from tests.waiting import until
from tests.workers import tiny_model

pytestmark = pytest.mark.slow


@dataclass
class Scripted:
    """A platform with small settings, and the engine that it samples from."""

    platform: Platform
    engine: ScriptedEngine

    @property
    def client(self) -> Client:
        return self.platform.client

    @property
    def url(self) -> str:
        return self.platform.stack.url

    def start(self, **change: Any) -> str:
        config = {
            "name": "tiny",
            "base_model": "seed",
            "thought_format": "specific",
            "prompts": [prompt(n) for n in range(24)],
            "validation_prompts": [prompt(n) for n in range(100, 106)],
            "prompts_per_iteration": 12,
            "shard_size": 4,
            "sampling": {"samples": 4, "max_thought_tokens": 60, "max_response_tokens": 60},
            "training": {"batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-4},
            "promote": "always",
        }
        return self.platform.start(config | change)

    def run(self, **change: Any) -> list[Object]:
        """The iterations of a run, once all have ended."""
        return self.platform.ended(self.start(**change))


def prompt(n: int) -> Object:
    return {"text": f"Say something, number {n}.", "checks": [{"kind": "words", "at_most": 3}]}


def some_good_some_bad(text: str, seed: int) -> str:
    """Of the words asked for, or more; one in eight without a marker. Behind one, just words."""
    words = "word " * (1 + seed % 5)
    if not text.endswith("assistant\n"):
        return words
    return f"hm, {seed % 7} it is. {'<R>' if seed % 8 else ''} {words}"


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    folder = tmp_path_factory.mktemp("scripted")
    tiny = tiny_model.write(folder / "tiny", max_positions=1024)
    engines = [ScriptedEngine(tiny, some_good_some_bad, max_model_len=1024) for _ in range(2)]
    with (
        scripted_engine.running(engines[0]) as bulk,
        scripted_engine.running(engines[1]) as chat,
        platform(folder / "data", worker_engine_url=bulk, inference_engine_url=chat) as running,
    ):
        running.client.register_model("seed", str(tiny))
        running.client.wait_for_model("seed")
        yield Scripted(running, engines[0])


@pytest.fixture
def script(scripted: Scripted) -> Iterator[Callable[[Script], None]]:
    """Sets what the model writes, for one test."""

    def use(script: Script) -> None:
        scripted.engine.script = script

    yield use
    scripted.engine.script = some_good_some_bad


def test_two_iterations_each_on_the_others_model_and_on_fresh_prompts(scripted: Scripted) -> None:
    first, second = scripted.run(count=2)

    for iteration in (first, second):
        assert iteration["status"] == "succeeded", iteration["error"]
        report = iteration["report"]
        assert (report["prompts"], report["completions"]) == (12, 48)
        assert 0.5 < report["parse_rate"] < 1
        pairs = report["pairs"]
        assert pairs["kept"] + sum(pairs["dropped"].values()) == 12
        assert pairs["parse_failure"] <= 0.1 * pairs["kept"] + 1
        assert report["training"]["steps"] >= 1
        assert report["validation"]["vs_seed"]["n"] == 6
        assert report["promoted"]
        assert list(iteration["timings"]) == ["generate", "pair", "train", "validate"]

    model = scripted.client.model(second["result_model"])
    assert model is not None
    assert model["parent_id"] == first["result_model"]
    assert set(model["lineage"]["versions"]) >= {"vllm", "trl", "torch"}
    used = scripted.platform.sql(
        "SELECT count(*), count(DISTINCT prompt_id) FROM completions c"
        " JOIN prompts p ON p.id = c.prompt_id WHERE p.split = 'train'"
    )
    assert used == [(2 * 48, 24)]


def test_pairs_show_thoughts_to_nobody_without_the_key(scripted: Scripted) -> None:
    [iteration] = scripted.run()
    page = httpx2.get(f"{scripted.url}/iterations/{iteration['id']}/pairs").json()
    assert len(page["data"]) == iteration["report"]["pairs"]["kept"]
    for pair in page["data"]:
        assert pair["chosen"].startswith("word")
        assert pair["chosen_output"] is None
        assert "it is." not in str(pair)


def test_the_promoted_model_answers_in_chat(scripted: Scripted) -> None:
    [iteration] = scripted.run()
    model = scripted.client.model(iteration["result_model"])
    assert model is not None

    def answer() -> httpx2.Response:
        body = {"model": model["ref"], "messages": [{"role": "user", "content": "Well?"}]}
        return httpx2.post(f"{scripted.url}/v1/chat/completions", json=body)

    until(lambda: answer().status_code == 200, "the model is served")
    message = answer().json()["choices"][0]["message"]["content"]
    assert message
    assert "it is." not in message


def test_no_pair_left_fails_with_the_counts(
    scripted: Scripted, script: Callable[[Script], None]
) -> None:
    script(lambda *_: "hm <R> always the same")
    [iteration] = scripted.run(count=1)
    assert iteration["status"] == "failed"
    error = iteration["error"]
    assert error["stage"] == "pair"
    assert "none of the 12 prompts gave a pair (tie 12)" in error["message"]


def test_a_run_ends_with_the_iteration_that_fails(
    scripted: Scripted, script: Callable[[Script], None]
) -> None:
    script(lambda *_: "never a marker")
    first, second = scripted.run(count=2)
    assert (first["status"], second["status"]) == ("failed", "failed")
    assert "(no_parsed_response 12)" in first["error"]["message"]
    assert "iteration 1 of this run failed" in second["error"]["message"]


def test_a_prompt_longer_than_the_context_is_named(scripted: Scripted) -> None:
    long = {"text": "x" * 2000, "checks": [{"kind": "words", "at_most": 3}]}
    [iteration] = scripted.run(prompts=[*(prompt(n) for n in range(11)), long])
    assert iteration["status"] == "failed"
    assert iteration["error"]["stage"] == "generate"
    assert re.search(r"prompt \d+ has 2\d{3} tokens", iteration["error"]["message"])
    unfinished = "SELECT count(*) FROM jobs WHERE status IN ('queued', 'running')"
    assert scripted.platform.sql(unfinished) == [(0,)], "its other jobs go on for nobody"


def test_what_trl_refuses_is_said_in_its_words(scripted: Scripted) -> None:
    training = {"batch_size": 4, "micro_batch_size": 2, "extra": {"no_such_option": 1}}
    [iteration] = scripted.run(training=training)
    assert iteration["status"] == "failed"
    assert iteration["error"]["stage"] == "train"
    assert "no_such_option" in iteration["error"]["message"]


def test_an_engine_that_fails_for_a_while_costs_nothing_but_time(scripted: Scripted) -> None:
    scripted.engine.status = 503
    run_id = scripted.start()
    seen = len(scripted.engine.requests)
    until(lambda: len(scripted.engine.requests) > seen + 4, "requests fail")
    scripted.engine.status = 200
    [iteration] = scripted.platform.ended(run_id)
    assert iteration["status"] == "succeeded", iteration["error"]


def test_a_killed_worker_loses_and_doubles_nothing(scripted: Scripted) -> None:
    scripted.engine.token_seconds = 0.01
    run_id = scripted.start(shard_size=2)
    until(lambda: scripted.client.iterations(run_id)[0]["progress"]["done"] >= 2, "two shards done")
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        ours = any(p.pid == os.getpid() for p in process.parents())
        if ours and "workers.tasks" in command:
            process.send_signal(signal.SIGKILL)
    scripted.engine.token_seconds = 0.0
    [iteration] = scripted.platform.ended(run_id)
    assert iteration["status"] == "succeeded", iteration["error"]
    rows = scripted.platform.sql(
        "SELECT count(*), count(DISTINCT (prompt_index, sample_index)) FROM completions c"
        " JOIN jobs j ON j.id = c.job_id WHERE j.kind = 'generate'"
        " GROUP BY j.id ORDER BY j.created_at DESC, 1 DESC"
    )
    assert all(count == distinct for count, distinct in rows)
