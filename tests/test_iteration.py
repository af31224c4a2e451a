"""Whole iterations over HTTP: the real platform and trainer, an engine that follows a script."""

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import psutil
import psycopg
import pytest

from services.cli.client import Client, Object
from services.cli.datadir import DataDir
from services.cli.stack import Options, Stack, running
from tests import scripted_engine
from tests.scripted_engine import ScriptedEngine
from tests.waiting import until
from tests.workers import tiny_model

pytestmark = pytest.mark.slow
ITERATION_SECONDS = 180.0


@dataclass
class Platform:
    stack: Stack
    engine: ScriptedEngine
    client: Client

    def start(self, **change: Any) -> str:
        """Id of a new run with small settings."""
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
        key = os.urandom(8).hex()
        return str(self.client.start_run(config | change, key=key)["run_id"])

    def run(self, **change: Any) -> list[Object]:
        """The iterations of a run, once all have ended."""
        run_id = self.start(**change)
        return self.ended(run_id)

    def ended(self, run_id: str) -> list[Object]:
        def all_ended() -> bool:
            final = {"succeeded", "failed", "cancelled"}
            return all(i["status"] in final for i in self.client.iterations(run_id))

        until(all_ended, f"run {run_id} ends", ITERATION_SECONDS)
        return self.client.iterations(run_id)

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        url = self.stack.env["FORETHOUGHT_DATABASE_URL"].replace("+psycopg", "")
        with psycopg.connect(url) as connection:
            return connection.execute(query).fetchall()


def prompt(n: int) -> Object:
    return {"text": f"Say something, number {n}.", "checks": [{"kind": "words", "at_most": 3}]}


def some_good_some_bad(text: str, seed: int) -> str:
    """Of the words asked for, or more; one in eight without a marker. Behind one, just words."""
    words = "word " * (1 + seed % 5)
    if not text.endswith("assistant\n"):
        return words
    return f"hm, {seed % 7} it is. {'<R>' if seed % 8 else ''} {words}"


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("platform")
    tiny = tiny_model.write(folder / "tiny", max_positions=1024)
    engine = ScriptedEngine(tiny, some_good_some_bad, max_model_len=1024)
    chat_engine = ScriptedEngine(tiny, some_good_some_bad, max_model_len=1024)
    with (
        pytest.MonkeyPatch.context() as patch,
        scripted_engine.running(engine) as url,
        scripted_engine.running(chat_engine) as chat_url,
    ):
        for variable in ("DATABASE_URL", "REDIS_URL", "MODEL_STORE"):
            patch.delenv(f"FORETHOUGHT_{variable}")
        patch.setenv("FORETHOUGHT_WORKER_ENGINE_URL", url)
        patch.setenv("FORETHOUGHT_INFERENCE_ENGINE_URL", chat_url)
        options = Options(DataDir(folder / "data"))
        with running(options, lambda _: None, lambda _: None) as stack:
            threading.Thread(target=stack.supervisor.supervise, daemon=True).start()
            client = Client(stack.url)
            client.register_model("seed", str(tiny))
            client.wait_for_model("seed")
            yield Platform(stack, engine, client)
            client.close()


@pytest.fixture
def script(platform: Platform) -> Iterator[Callable[[scripted_engine.Script], None]]:
    """Sets what the model writes, for one test."""

    def use(script: scripted_engine.Script) -> None:
        platform.engine.script = script

    yield use
    platform.engine.script = some_good_some_bad


def test_two_iterations_each_on_the_others_model_and_on_fresh_prompts(platform: Platform) -> None:
    first, second = platform.run(count=2)

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

    model = platform.client.model(second["result_model"])
    assert model is not None
    assert model["parent_id"] == first["result_model"]
    assert set(model["lineage"]["versions"]) >= {"vllm", "trl", "torch"}
    used = platform.sql(
        "SELECT count(*), count(DISTINCT prompt_id) FROM completions c"
        " JOIN prompts p ON p.id = c.prompt_id WHERE p.split = 'train'"
    )
    assert used == [(2 * 48, 24)]


def test_pairs_show_thoughts_to_nobody_without_the_key(platform: Platform) -> None:
    [iteration] = platform.run()
    page = httpx2.get(f"{platform.stack.url}/iterations/{iteration['id']}/pairs").json()
    assert len(page["data"]) == iteration["report"]["pairs"]["kept"]
    for pair in page["data"]:
        assert pair["chosen"].startswith("word")
        assert pair["chosen_output"] is None
        assert "it is." not in str(pair)


def test_the_promoted_model_answers_in_chat(platform: Platform) -> None:
    [iteration] = platform.run()
    model = platform.client.model(iteration["result_model"])
    assert model is not None

    def answer() -> httpx2.Response:
        body = {"model": model["ref"], "messages": [{"role": "user", "content": "Well?"}]}
        return httpx2.post(f"{platform.stack.url}/v1/chat/completions", json=body)

    until(lambda: answer().status_code == 200, "the model is served")
    message = answer().json()["choices"][0]["message"]["content"]
    assert message
    assert "it is." not in message


def test_no_pair_left_fails_with_the_counts(
    platform: Platform, script: Callable[[scripted_engine.Script], None]
) -> None:
    script(lambda *_: "hm <R> always the same")
    [iteration] = platform.run(count=1)
    assert iteration["status"] == "failed"
    error = iteration["error"]
    assert error["stage"] == "pair"
    assert "none of the 12 prompts gave a pair (tie 12)" in error["message"]


def test_a_run_ends_with_the_iteration_that_fails(
    platform: Platform, script: Callable[[scripted_engine.Script], None]
) -> None:
    script(lambda *_: "never a marker")
    first, second = platform.run(count=2)
    assert (first["status"], second["status"]) == ("failed", "failed")
    assert "(no_parsed_response 12)" in first["error"]["message"]
    assert "iteration 1 of this run failed" in second["error"]["message"]


def test_a_prompt_longer_than_the_context_is_named(platform: Platform) -> None:
    long = {"text": "x" * 2000, "checks": [{"kind": "words", "at_most": 3}]}
    [iteration] = platform.run(prompts=[*(prompt(n) for n in range(11)), long])
    assert iteration["status"] == "failed"
    assert iteration["error"]["stage"] == "generate"
    assert re.search(r"prompt \d+ has 2\d{3} tokens", iteration["error"]["message"])


def test_what_trl_refuses_is_said_in_its_words(platform: Platform) -> None:
    training = {"batch_size": 4, "micro_batch_size": 2, "extra": {"no_such_option": 1}}
    [iteration] = platform.run(training=training)
    assert iteration["status"] == "failed"
    assert iteration["error"]["stage"] == "train"
    assert "no_such_option" in iteration["error"]["message"]


def test_an_engine_that_fails_for_a_while_costs_nothing_but_time(platform: Platform) -> None:
    platform.engine.status = 503
    run_id = platform.start()
    seen = len(platform.engine.requests)
    until(lambda: len(platform.engine.requests) > seen + 4, "requests fail")
    platform.engine.status = 200
    [iteration] = platform.ended(run_id)
    assert iteration["status"] == "succeeded", iteration["error"]


def test_a_killed_worker_loses_and_doubles_nothing(platform: Platform) -> None:
    platform.engine.token_seconds = 0.01
    run_id = platform.start(shard_size=2)
    until(lambda: platform.client.iterations(run_id)[0]["progress"]["done"] >= 2, "two shards done")
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        ours = any(p.pid == os.getpid() for p in process.parents())
        if ours and "workers.tasks" in command:
            process.send_signal(signal.SIGKILL)
    platform.engine.token_seconds = 0.0
    [iteration] = platform.ended(run_id)
    assert iteration["status"] == "succeeded", iteration["error"]
    rows = platform.sql(
        "SELECT count(*), count(DISTINCT (prompt_index, sample_index)) FROM completions c"
        " JOIN jobs j ON j.id = c.job_id WHERE j.kind = 'generate'"
        " GROUP BY j.id ORDER BY j.created_at DESC, 1 DESC"
    )
    assert all(count == distinct for count, distinct in rows)
