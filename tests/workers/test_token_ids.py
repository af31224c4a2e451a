"""What a trainer gets is what the engine was given and gave, token for token."""

import asyncio
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, select, update

from services.coordinator.iterations.state import job_id
from shared.db.engine import transaction
from shared.db.tables import Completion, Iteration, JobKind, Pair, SampledPrompt, Split
from shared.jobs.job import NewShard, submit_job
from shared.jobs.shards import Claim
from shared.thinking.formats import GENERIC, NONE, SPECIFIC, THINK, ThoughtFormat
from shared.thinking.generation import respond_seed
from tests.support import evaluated_runs, factories, tiny_model
from tests.support.data_servers import empty_tables
from tests.support.scripted_engine import ScriptedEngine, running
from workers import job_spec
from workers.generate import stage
from workers.leases import Leases
from workers.train import job as train_job
from workers.train.pairs import LINE, TokenPair
from workers.train.train import TrainConfig, main

CLOCKED = tiny_model.TEMPLATE.replace(
    "{% if add_generation_prompt %}",
    "{% if add_generation_prompt %}<|im_start|>system\n{{ strftime_now('%S.%f') }}<|im_end|>\n",
)
"""A template that prints the time: rendered twice, it gives two prompts."""
TEXTS = st.text("<R>ab \n\té思\x00\u2126", max_size=12)
SPECIAL = tiny_model.SPECIAL[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("tiny"), max_positions=4096)


@pytest.fixture(scope="module")
def scripted(folder: Path) -> ScriptedEngine:
    return ScriptedEngine(folder, lambda prompt, seed: "")


@pytest.fixture(scope="module")
def url(scripted: ScriptedEngine) -> Iterator[str]:
    with running(scripted) as url:
        yield url


Sample = Callable[..., Iteration]


@pytest.fixture
def sample(clean_database: Engine, scripted: ScriptedEngine, url: str, folder: Path) -> Sample:
    """Sample two outputs for one prompt of an iteration, and make them its pair."""

    def sample(fmt: ThoughtFormat, script: Any, **sampling: Any) -> Iteration:
        empty_tables(clean_database)
        scripted.script = script
        scripted.requests.clear()
        with transaction() as session:
            model = factories.model(session, path=str(folder))
            dataset = factories.dataset(session, train=1, validation=0)
            config = {"thought_format": fmt.model_dump()}
            iteration = evaluated_runs.running(session, dataset, model, config=config)
            prompt = evaluated_runs.prompts(session, dataset.id, Split.train)[0]
            params = {
                "model": str(model.id),
                "thought_format": fmt.model_dump(),
                "sampling": {"samples": 2, "seed": 7} | sampling,
            }
            new = job_id(iteration.id, "generate")
            shards = [NewShard({"start": 0, "prompt_ids": [prompt.id]})]
            submit_job(
                session, JobKind.generate, params, shards, job_id=new, iteration_id=iteration.id
            )
        with transaction() as session:
            spec = job_spec.load(session, new)
        assert spec is not None
        asyncio.run(stage.main(spec, "worker", url))
        with transaction() as session:
            good, bad = session.scalars(select(Completion).order_by(Completion.sample_index)).all()
            session.add(
                Pair(
                    iteration_id=iteration.id,
                    prompt_id=prompt.id,
                    chosen_id=good.id,
                    rejected_id=bad.id,
                    chosen_score=1.0,
                )
            )
        return iteration

    return sample


def trained_on(iteration: Iteration, path: Path, model: str | None = None) -> list[dict[str, Any]]:
    """The lines of the pairs file that a training of this model is given."""
    params = {
        "iteration_id": str(iteration.id),
        "model": model or str(iteration.parent_model_id),
    }
    train_job._write_pairs(Claim(1, uuid.uuid4(), 0, {}, 1, uuid.uuid4()), params, path)
    return [json.loads(line) for line in path.read_text().splitlines()]


def generated(scripted: ScriptedEngine, body: dict[str, Any], k: int) -> list[int]:
    """Token ids that the engine gave for sample k of a request."""
    prompt = scripted.tokenizer.decode(body["prompt"], skip_special_tokens=False)
    return scripted.generate(prompt, body["seed"] + k, body).ids


@pytest.mark.parametrize(
    ("fmt", "boundary"),
    [
        (NONE, "natural"),
        (THINK, "natural"),
        (SPECIFIC, "natural"),
        (SPECIFIC, "forced"),
        (THINK, "forced"),
    ],
)
@settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    thought=TEXTS,
    ends=st.sampled_from(["<R>", "<R>\n\n", "<R>  tail", "</think>\n\n", ""]),
    response=st.one_of(TEXTS, st.just(f"yes{SPECIAL}no")).map(lambda text: "x" + text),
    thought_budget=st.integers(1, 20),
    response_budget=st.integers(1, 20),
)
def test_a_pair_is_the_tokens_that_were_sampled(
    sample: Sample,
    scripted: ScriptedEngine,
    tmp_path: Path,
    fmt: ThoughtFormat,
    boundary: str,
    thought: str,
    ends: str,
    response: str,
    thought_budget: int,
    response_budget: int,
) -> None:
    def script(prompt: str, seed: int) -> str:
        begins = prompt.endswith(("assistant\n", "assistant\n<think>"))
        text = thought + ends if begins else response
        return f"{seed}{text}" + (response if begins and boundary == "natural" else "")

    iteration = sample(
        fmt,
        script,
        boundary=boundary,
        max_thought_tokens=thought_budget,
        max_response_tokens=response_budget,
    )
    [pair] = trained_on(iteration, tmp_path / "pairs.jsonl")
    assert isinstance(LINE.validate_python(pair), TokenPair)
    sides = [pair["chosen_ids"], pair["rejected_ids"]]
    if boundary == "natural":
        [body] = scripted.requests
        for k, ids in enumerate(sides):
            assert pair["prompt_ids"] + ids == body["prompt"] + generated(scripted, body, k)
        return
    first, *seconds = scripted.requests
    assert len(seconds) == 2
    for body, ids in zip(sorted(seconds, key=lambda b: order(first, b)), sides, strict=True):
        assert pair["prompt_ids"] + ids == body["prompt"] + generated(scripted, body, 0)


def order(first: dict[str, Any], second: dict[str, Any]) -> int:
    """The sample whose second phase a request is."""
    return [respond_seed(first["seed"] + k) for k in range(2)].index(second["seed"])


def test_a_template_that_prints_the_time_trains_behind_the_prompt_that_was_sampled(
    sample: Sample, scripted: ScriptedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripted.chat_template, "chat_template", CLOCKED)
    scripted.render.cache_clear()
    iteration = sample(GENERIC, lambda *_: "hm")
    scripted.render.cache_clear()
    [pair] = trained_on(iteration, tmp_path / "pairs.jsonl")
    assert pair["prompt_ids"] == scripted.requests[0]["prompt"]
    text = scripted.tokenizer.decode(pair["prompt_ids"], skip_special_tokens=False)
    assert "<|im_start|>system\n" in text


def test_rows_without_ids_and_other_models_train_on_the_text(
    sample: Sample, scripted: ScriptedEngine, tmp_path: Path
) -> None:
    iteration = sample(SPECIFIC, lambda _, seed: f"hm <R> {seed}", max_response_tokens=500)
    as_text = {
        "prompt": SPECIFIC.prompt("Prompt 0?"),
        "chosen": scripted.script("", scripted.requests[0]["seed"]),
        "rejected": scripted.script("", scripted.requests[0]["seed"] + 1),
        "chosen_truncated": False,
        "rejected_truncated": False,
    }
    other = str(uuid.uuid4())
    assert trained_on(iteration, tmp_path / "other.jsonl", other) == [as_text]
    with transaction() as session:
        session.execute(update(Completion).values(output_ids=None))
        session.execute(delete(SampledPrompt))
    assert trained_on(iteration, tmp_path / "old.jsonl") == [as_text]


def test_it_trains_on_ids(
    sample: Sample, scripted: ScriptedEngine, folder: Path, tmp_path: Path
) -> None:
    iteration = sample(NONE, lambda _, seed: f"{'yes' if seed % 2 else 'no'}{SPECIAL}\x00")
    pairs = tmp_path / "pairs.jsonl"
    trained_on(iteration, pairs)
    config = {
        "model_path": folder,
        "pairs_path": pairs,
        "out_dir": tmp_path / "out",
        "settings": {"epochs": 1, "batch_size": 1, "micro_batch_size": 1},
    }
    result = main(TrainConfig.model_validate(config))
    assert (result["pairs"], result["pairs_dropped"], result["steps"]) == (1, {}, 1)


def test_a_shard_that_is_lost_while_its_prompts_are_read_is_not_sampled(
    sample: Sample, scripted: ScriptedEngine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = threading.Event()
    claimed: list[Callable[[], None]] = []
    claim, read = Leases.claim, stage._prompts

    def claim_and_keep(self: Leases, on_lost: Callable[[], None]) -> Claim | None:
        claimed.append(on_lost)
        return claim(self, on_lost)

    def read_when_lost(taken: Claim) -> Any:
        claimed[0]()  # as the heartbeat's thread does
        lost.set()
        return read(taken)

    monkeypatch.setattr(Leases, "claim", claim_and_keep)
    monkeypatch.setattr(stage, "_prompts", read_when_lost)
    with pytest.raises(ValueError, match="not enough values"):  # no completion is there
        sample(NONE, lambda *_: "hm")
    assert lost.is_set()
    assert scripted.requests == []
