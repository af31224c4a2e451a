"""Whole iterations over HTTP: the real platform and trainer, an engine that follows a script."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx2
import psutil
import pytest

from services.cli.api.client import Client, Object
from tests.support import scripted_engine, tiny_model
from tests.support.access import HEADERS
from tests.support.engine_scripts import Play, Script, prefers_short, some_good_some_bad
from tests.support.platform import Platform, platform
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import until

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

    def sampled(self, run_id: str) -> int:
        """How many outputs the run's one iteration has sampled. It is cancelled once they are
        judged, for what follows is shown by other tests."""

        def iteration() -> Object:
            return self.client.iterations(run_id)[0]

        sampled = ("pair", "train", "validate")
        until(lambda: iteration()["stage"] in sampled or iteration()["error"], "it is sampled", 120)
        found = self.client.cancel(iteration()["id"])
        assert found["status"] == "cancelled", found["error"]
        job = f"SELECT id FROM jobs WHERE step = 'generate' AND iteration_id = '{found['id']}'"
        rows = (
            f"SELECT count(*), count(DISTINCT (prompt_index, sample_index)) FROM completions"
            f" WHERE job_id = ({job})"
        )
        [(count, distinct)] = self.platform.sql(rows)
        assert count == distinct, "an output is there twice"
        return int(count)


def prompt(n: int) -> Object:
    return {"text": f"Say something, number {n}.", "checks": [{"kind": "words", "at_most": 3}]}


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    folder = tmp_path_factory.mktemp("scripted")
    tiny = tiny_model.write(folder / "tiny", max_positions=3000)
    engines = [ScriptedEngine(tiny, some_good_some_bad, max_model_len=3000) for _ in range(2)]
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


@pytest.fixture(scope="module")
def two(scripted: Scripted) -> list[Object]:
    """The first run: two iterations, of which the second's model is served."""
    return scripted.run(count=2)


def test_two_iterations_each_on_the_others_model_and_on_fresh_prompts(
    scripted: Scripted, two: list[Object]
) -> None:
    first, second = two
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
    assert model["lineage"]["training"]["dtype"] != "auto"
    assert model["lineage"]["dataset"]["source"] == "inline"
    used = scripted.platform.sql(
        "SELECT count(*), count(DISTINCT prompt_id) FROM completions c"
        " JOIN prompts p ON p.id = c.prompt_id WHERE p.split = 'train'"
    )
    assert used == [(2 * 48, 24)]
    assert not _comparisons(scripted, second["run_id"]), "the verifier compares nobody"


def test_pairs_show_thoughts_to_nobody_without_the_key(
    scripted: Scripted, two: list[Object]
) -> None:
    iteration = two[0]
    page = httpx2.get(f"{scripted.url}/iterations/{iteration['id']}/pairs", headers=HEADERS).json()
    assert len(page["data"]) == iteration["report"]["pairs"]["kept"]
    for pair in page["data"]:
        assert pair["chosen"].startswith("word")
        assert pair["chosen_output"] is None
        assert "it is." not in str(pair)


def test_the_promoted_model_answers_in_chat(scripted: Scripted, two: list[Object]) -> None:
    model = scripted.client.model(two[1]["result_model"])
    assert model is not None

    def answer() -> httpx2.Response:
        body = {"model": model["ref"], "messages": [{"role": "user", "content": "Well?"}]}
        return httpx2.post(f"{scripted.url}/v1/chat/completions", json=body, headers=HEADERS)

    until(lambda: answer().status_code == 200, "the model is served")
    message = answer().json()["choices"][0]["message"]["content"]
    assert message
    assert "it is." not in message


def test_a_direct_baseline_runs_beside_and_is_compared(scripted: Scripted) -> None:
    [thinking] = scripted.run(baseline=True)
    [direct] = scripted.platform.ended(thinking["baseline_run_id"])
    for iteration in (thinking, direct):
        assert iteration["status"] == "succeeded", iteration["error"]
        report = iteration["report"]
        assert report["validation"]["win_rate"]["seed"]["raw"]["n"] == 6
        assert len(report["length_control"]["sweep"]) == 6
    assert not direct["report"]["promoted"]
    assert direct["report"]["outputs"]["training"]["thought_tokens"]["mean"] == 0
    run = httpx2.get(f"{scripted.url}/runs/{thinking['run_id']}/report", headers=HEADERS).json()
    assert run["baseline"]["run_id"] == direct["run_id"]
    [versus] = run["thinking_vs_direct"]
    assert (versus["number"], versus["difference"]["n"]) == (1, 6)
    page = httpx2.get(f"{scripted.url}/runs/{direct['run_id']}/report.html", headers=HEADERS)
    assert page.status_code == 200


def test_no_pair_left_fails_with_the_counts(
    scripted: Scripted, script: Callable[[Script], None]
) -> None:
    script(lambda *_: "hm <R> always the same")
    [iteration] = scripted.run(count=1)
    assert iteration["status"] == "failed"
    error = iteration["error"]
    assert error["stage"] == "pair"
    assert "none of the 12 prompts gave a pair (same_output 12)" in error["message"]


def test_a_run_ends_with_the_iteration_that_fails(
    scripted: Scripted, script: Callable[[Script], None]
) -> None:
    script(lambda *_: "never a marker")
    first, second = scripted.run(count=2)
    assert (first["status"], second["status"]) == ("failed", "failed")
    assert "(no_parsed_response 12)" in first["error"]["message"]
    assert "iteration 1 of this run failed" in second["error"]["message"]


@pytest.mark.parametrize("field", ["prompts", "validation_prompts"])
def test_a_prompt_longer_than_the_context_is_named(scripted: Scripted, field: str) -> None:
    long = {"text": "x" * 4000, "checks": [{"kind": "words", "at_most": 3}]}
    # The fourth is drawn at another place: prompts are shuffled.
    prompts = [*map(prompt, range(200, 203)), long, *map(prompt, range(203, 211))]
    scripted.engine.requests.clear()
    [iteration] = scripted.run(**{field: prompts})
    error = iteration["error"]
    assert (iteration["status"], error["code"], error["param"]) == (
        "failed",
        "context_length_exceeded",
        f"{field}.3",
    )
    assert re.match(rf"prompt 4 of {field} has 4\d{{3}} tokens", error["message"])
    sampled = [body for body in scripted.engine.requests if body["max_tokens"] > 1]
    assert not sampled, "it is named before hours have gone into the others"
    unfinished = "SELECT count(*) FROM jobs WHERE status IN ('queued', 'running')"
    assert scripted.platform.sql(unfinished) == [(0,)], "its other jobs go on for nobody"


def test_budgets_beyond_the_context_are_named(scripted: Scripted) -> None:
    budgets = {"samples": 4, "max_thought_tokens": 3000, "max_response_tokens": 60}
    [iteration] = scripted.run(sampling=budgets)
    error = iteration["error"]
    assert (iteration["status"], error["param"]) == ("failed", "sampling.max_thought_tokens")
    assert "3000 tokens of thought and 60 of response" in error["message"]


def test_a_chat_model_compares_responses_and_models(
    scripted: Scripted, script: Callable[[Script], None]
) -> None:
    """The seed, the parent and the model write known numbers of words, and the shorter wins."""
    weights: list[str] = []

    def learns(text: str, seed: int) -> str | Play:
        held_out = re.search(r"number 10(\d)\.", text)
        if held_out is None or "impartial judge" in text:
            return prefers_short(text, seed)
        if scripted.engine.label not in weights:
            weights.append(scripted.engine.label)
        words = HELD_OUT_WORDS[weights.index(scripted.engine.label)][int(held_out[1])]
        return f"hm. {'<R>' if words else ''}{' word' * words}"

    script(learns)
    judge = {"kind": "pairwise", "model": "seed", "max_tokens": 256}
    first, second = scripted.run(count=2, judge=judge | {"share": 0.5}, validation={"judge": judge})
    for iteration in (first, second):
        assert iteration["status"] == "succeeded", iteration["error"]
    validation = first["report"]["validation"]
    # Against itself a response has a half, and none where it does not parse.
    assert 0 < validation["seed_score"] <= 0.5
    assert 0 <= validation["score"] <= 1
    rates = [iteration["report"]["validation"]["win_rate"] for iteration in (first, second)]
    assert rates[0]["parent"] == rates[0]["seed"]
    assert rates[0]["seed"]["raw"]["mean"] == pytest.approx((1 + 1 + 1 + 1 + 0 + 1) / 6)
    assert rates[1]["seed"]["raw"]["mean"] == pytest.approx((1 + 0.5 + 0 + 0 + 0.5 + 1) / 6)
    raw = rates[1]["parent"]["raw"]
    assert (raw["mean"], raw["n"]) == (pytest.approx((1 + 0 + 0 + 0 + 1 + 0.5) / 6), 6)
    assert raw["low"] < raw["mean"] < raw["high"]
    assert _comparisons(scripted, second["run_id"]) == [(2, "succeeded")]
    pairs = scripted.platform.sql(
        "SELECT c.response_tokens, r.response_tokens FROM pairs p"
        " JOIN completions c ON c.id = p.chosen_id JOIN completions r ON r.id = p.rejected_id"
        f" WHERE p.iteration_id = '{first['id']}' AND r.response_start IS NOT NULL"
    )
    assert pairs
    assert all(chosen < rejected for chosen, rejected in pairs)
    [[result]] = scripted.platform.sql(
        "SELECT result FROM jobs WHERE kind = 'judge' AND step = 'judge'"
        f" AND iteration_id = '{first['id']}'"
    )
    assert result["calls"] == sum(n for kind, n in result.items() if kind.startswith("verdict_"))
    assert result["versions"]["judge"] == "pairwise/1"


HELD_OUT_WORDS = [[3, 3, 3, 3, 3, 3], [2, 2, 2, 2, 0, 2], [1, 3, 4, 0, 3, 2]]
"""Of the seed, its child and that one's child, by validation prompt; 0 for no response."""


def _comparisons(scripted: Scripted, run_id: str) -> list[tuple[Any, ...]]:
    """Of models with their parents in a run: by which iteration, and how they ended."""
    return scripted.platform.sql(
        "SELECT i.number, j.status FROM jobs j JOIN iterations i ON i.id = j.iteration_id"
        f" WHERE j.step = 'evaluate-against-parent' AND i.run_id = '{run_id}'"
    )


@pytest.fixture(scope="module")
def mended(scripted: Scripted) -> Object:
    """An iteration whose training TRL refused, and that was resumed with other settings."""
    training = {"batch_size": 4, "micro_batch_size": 2, "extra": {"no_such_option": 1}}
    [iteration] = scripted.run(training=training)
    assert iteration["status"] == "failed"
    assert iteration["error"]["stage"] == "train"
    for words in ("no_such_option", "/resume"):
        assert words in iteration["error"]["message"]
    url = f"{scripted.url}/iterations/{iteration['id']}"
    count = "SELECT count(*) FROM completions"
    [[before]] = scripted.platform.sql(count)
    change = {"training": training | {"epochs": 2, "extra": {"weight_decay": 0.25}}}
    assert httpx2.post(f"{url}/resume", json=change, headers=HEADERS).status_code == 202
    [iteration] = scripted.platform.ended(iteration["run_id"])
    assert iteration["status"] == "succeeded", iteration["error"]
    [[after]] = scripted.platform.sql(count)
    assert after - before == 2 * 6, "more than the two checkpoints was sampled"
    late = httpx2.post(f"{url}/resume", json=change, headers=HEADERS)
    assert late.status_code == 409
    return iteration


def test_what_trl_refuses_is_said_and_mended_without_sampling_again(
    scripted: Scripted, mended: Object
) -> None:
    iteration = mended
    model = scripted.client.model(iteration["result_model"])
    assert model is not None
    for trained in (model["lineage"]["training"], model["lineage"]["config"]["training"]):
        assert trained["extra"] == {"weight_decay": 0.25}


def test_an_engine_that_fails_for_a_while_costs_nothing_but_time(scripted: Scripted) -> None:
    scripted.engine.status = 503
    run_id = scripted.start()
    seen = len(scripted.engine.requests)
    until(lambda: len(scripted.engine.requests) > seen + 1, "requests fail")
    scripted.engine.status = 200
    assert scripted.sampled(run_id) == 48


def test_a_killed_worker_loses_and_doubles_nothing(scripted: Scripted) -> None:
    scripted.engine.token_seconds = 0.01
    run_id = scripted.start(shard_size=2)
    until(lambda: scripted.client.iterations(run_id)[0]["progress"]["done"] >= 2, "two shards done")
    for process in workers():
        process.kill()
    scripted.engine.token_seconds = 0.0
    assert scripted.sampled(run_id) == 48


def workers() -> Iterator[psutil.Process]:
    """Those of this test's own platform; a process may end while it is looked at."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "workers.tasks" in process.cmdline():
                yield process


def test_pruning_leaves_what_the_model_was_made_from(scripted: Scripted, mended: Object) -> None:
    iteration = mended
    url = f"{scripted.url}/iterations/{iteration['id']}"
    pairs = httpx2.get(f"{url}/pairs", headers=HEADERS).json()
    job = f"SELECT status, result FROM jobs WHERE kind = 'prune' AND iteration_id = '{url[-36:]}'"

    found = scripted.client.prune(0, dry_run=True)
    assert scripted.client.prune(0, dry_run=False) == found | {"dry_run": False}
    until(lambda: scripted.platform.sql(job), "the loop sends it")
    until(lambda: scripted.platform.sql(job)[0][0] == "succeeded", "it is pruned")

    [(_, deleted)] = scripted.platform.sql(job)
    assert deleted["checkpoints"] == 1
    assert deleted["completions"] == 48 - 2 * iteration["report"]["pairs"]["kept"] + 3 * 6
    assert deleted["bytes"] >= found["bytes"] / found["checkpoints"] > 0
    assert httpx2.get(f"{url}/pairs", headers=HEADERS).json() == pairs
    model = scripted.client.model(iteration["result_model"])
    assert model is not None
    assert model["status"] == "ready"
    again = scripted.start(base_model=model["ref"], prompts=[prompt(n) for n in range(200, 224)])
    assert scripted.sampled(again) == 48
