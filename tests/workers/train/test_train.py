"""Real trainings by TRL on a tiny model."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig

from shared.schemas.requests import LoraSettings, Training
from tests.support import tiny_model
from workers.models.weights import weights_sha256
from workers.train import checkpoints, dpo, resume
from workers.train.dpo import PairTrainer, StepSampler, _check_extra, dpo_config
from workers.train.files import USED_SETTINGS
from workers.train.lm_head import add_completion_head
from workers.train.pairs import ChatTokens, TrainError, tokenize_pairs
from workers.train.train import TrainConfig, main

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
FAST = Training(learning_rate=3e-3, epochs=4, batch_size=4, micro_batch_size=2, warmup_fraction=0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def config(base: Path, tmp_path: Path) -> TrainConfig:
    return config_in(tmp_path, base)


def config_in(folder: Path, base: Path) -> TrainConfig:
    pairs = tiny_model.write_pairs(folder / "pairs.jsonl", tiny_model.some_pairs(8))
    return TrainConfig(model_path=base, pairs_path=pairs, out_dir=folder / "out", settings=FAST)


@pytest.fixture(scope="module")
def trained_once(
    base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainConfig, dict[str, Any]]:
    config = config_in(tmp_path_factory.mktemp("trained"), base)
    return config, main(config)


@pytest.fixture
def trained(
    config: TrainConfig, trained_once: tuple[TrainConfig, dict[str, Any]]
) -> tuple[TrainConfig, dict[str, Any]]:
    """A copy of the one training with the settings of `FAST`, and its result."""
    original, result = trained_once
    shutil.copytree(original.out_dir, config.out_dir)
    return config, result


def using(config: TrainConfig, **changes: Any) -> TrainConfig:
    settings = Training.model_validate(config.settings.model_dump() | changes)
    return config.model_copy(update={"settings": settings})


def metrics(config: TrainConfig) -> list[dict[str, Any]]:
    return checkpoints.read_metrics(config.out_dir / "metrics.jsonl")


def test_loss_begins_at_ln_2_and_falls(trained: tuple[TrainConfig, dict[str, Any]]) -> None:
    config, result = trained
    assert result["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert result["last_loss"] < 0.5
    assert result["reward_margin"] > 0.5
    assert result["steps"] == 8
    assert result["tokens"] > 0
    lines = metrics(config)
    assert [line["step"] for line in lines] == list(range(1, 9))
    for line in lines:
        assert line["total_steps"] == 8
        assert line["tokens_per_second"] > 0
        assert {"loss", "grad_norm", "rewards/margins", "logps/chosen"} <= line.keys()


def test_the_result_has_the_settings_as_they_were_used(config: TrainConfig) -> None:
    used = main(using(config, epochs=1, batch_size=6, micro_batch_size=4))["settings"]
    assert used["dtype"] == ("bfloat16" if torch.cuda.is_available() else "float32")
    assert (used["micro_batch_size"], used["max_length"]) == (3, 256)
    assert json.loads((config.out_dir / USED_SETTINGS).read_text()) == used


def test_a_pair_that_is_left_out_is_counted(config: TrainConfig) -> None:
    long: dict[str, object] = {"prompt": "?", "chosen": "x" * 400, "rejected": "y"}
    tiny_model.write_pairs(config.pairs_path, [*tiny_model.some_pairs(8), long])
    result = main(using(config, epochs=1))
    assert (result["pairs"], result["pairs_dropped"]) == (8, {"too_long": 1})
    assert result["steps"] == 2


def test_it_shows_that_it_moves_before_and_within_steps(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large batch one is long, and so is what comes before the first."""
    moves: list[str] = []
    monkeypatch.setattr(dpo, "moved", lambda _: moves.append("reference"))
    monkeypatch.setattr(checkpoints, "moved", lambda _: moves.append("within a step"))
    main(using(config, epochs=1))
    assert moves == ["reference"] * 4 + ["within a step"] * 2


def test_a_checkpoint_is_a_whole_model_folder(
    trained: tuple[TrainConfig, dict[str, Any]], base: Path
) -> None:
    config, result = trained
    assert [c["epoch"] for c in result["checkpoints"]] == [1, 2, 3, 4]
    assert len({c["weights_sha256"] for c in result["checkpoints"]}) == 4
    last = config.out_dir / result["checkpoints"][-1]["path"]
    assert result["checkpoints"][-1]["weights_sha256"] == weights_sha256(last)
    assert result["checkpoints"][-1]["changed_fraction"] > 0.5
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (last / name).read_bytes() == (base / name).read_bytes()
    probe = json.loads((last / "probe.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(last)
    with torch.no_grad():
        logps = model(torch.tensor([probe["token_ids"]])).logits[0].log_softmax(-1)
    for at, logp in enumerate(probe["logprobs"]):
        assert logps[at, probe["token_ids"][at + 1]].item() == pytest.approx(logp, abs=1e-5)
    assert not (config.out_dir / "trainer").exists()


def test_checkpoints_keep_the_stored_type(tmp_path: Path, config: TrainConfig) -> None:
    base = tiny_model.write(tmp_path / "bf16", torch.bfloat16)
    result = main(using(config.model_copy(update={"model_path": base}), epochs=1))
    assert checkpoints.stored_dtype(config.out_dir / "epoch-1") == torch.bfloat16
    assert result["first_loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_lora_is_merged(config: TrainConfig, base: Path) -> None:
    settings = {"lora": LoraSettings(rank=4, alpha=8).model_dump(), "learning_rate": 2e-2}
    result = main(using(config, **settings))
    assert result["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert result["last_loss"] < 0.6
    last = config.out_dir / result["checkpoints"][-1]["path"]
    plain = AutoModelForCausalLM.from_pretrained(last).state_dict()
    start = AutoModelForCausalLM.from_pretrained(base).state_dict()
    assert plain.keys() == start.keys()
    # What was trained is what was saved: the margin is there in the merged weights.
    assert reward_margin(config, base, last) > 0.2
    assert torch.equal(plain["model.embed_tokens.weight"], start["model.embed_tokens.weight"])


def reward_margin(config: TrainConfig, start: Path, end: Path) -> float:
    chosen, rejected = zip(*(sides(config, folder) for folder in (end, start)), strict=True)
    beta = config.settings.beta
    return float((beta * ((chosen[0] - chosen[1]) - (rejected[0] - rejected[1]))).mean())


def sides(config: TrainConfig, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log-probabilities of chosen and rejected, a pair at a time, by the plain formula."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found: dict[str, list[torch.Tensor]] = {"chosen_ids": [], "rejected_ids": []}
    for row in stored_pairs(config, folder):
        for side, logps in found.items():
            ids = torch.tensor([row["prompt_ids"] + row[side]])
            with torch.no_grad():
                all_logps = model(ids).logits[0, :-1].double().log_softmax(-1)
            taken = all_logps.gather(-1, ids[0, 1:, None]).squeeze(-1)
            logps.append(taken[len(row["prompt_ids"]) - 1 :].sum())
    return torch.stack(found["chosen_ids"]), torch.stack(found["rejected_ids"])


def stored_pairs(config: TrainConfig, folder: Path) -> Any:
    tokens = ChatTokens(AutoTokenizer.from_pretrained(folder), [2])
    return tokenize_pairs(config.pairs_path, tokens, 256, config.out_dir.parent / "again.arrow")


@pytest.mark.parametrize("loss", ["dpo", "irpo"])
def test_loss_is_the_formula(config: TrainConfig, base: Path, loss: str, tmp_path: Path) -> None:
    """Of a policy that differs from its reference, against the losses written out by hand."""
    settings = using(config, loss=loss, batch_size=8, micro_batch_size=8, irpo_alpha=0.7).settings
    dataset = stored_pairs(config, base)
    trainer = PairTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        args=dpo_config(settings, tmp_path / "trainer"),
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    moved = tmp_path / "moved"
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)
    checkpoints.save_model(trainer.model, base, moved)
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(8)])
    got = trainer.compute_loss(trainer.model.eval(), batch).item()

    chosen, rejected = sides(config, moved)
    ref_chosen, ref_rejected = sides(config, base)
    margin = settings.beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    want = -torch.nn.functional.logsigmoid(margin).mean()
    if loss == "irpo":
        tokens = sum(len(row["chosen_ids"]) for row in dataset)
        want = want + settings.irpo_alpha * -chosen.sum() / tokens
    assert abs(margin).max() > 0.01
    assert got == pytest.approx(want.item(), abs=1e-5)


def test_the_head_without_a_gpu_is_the_plain_one(base: Path) -> None:
    """Log-probabilities and all gradients, against logits of the model itself."""
    torch.manual_seed(0)
    ids = torch.randint(3, 200, (3, 40))
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.5, -100)
    weights = torch.rand(3, 39)

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    logps = plain(ids).logits[:, :-1].log_softmax(-1)
    want = logps.gather(-1, ids[:, 1:, None]).squeeze(-1).masked_fill(labels[:, 1:] == -100, 0)
    (want * weights).sum().backward()

    ours = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    add_completion_head(ours)
    got = ours(ids, labels=labels, fused_lm_head=True).log_probs
    (got * weights).sum().backward()

    torch.testing.assert_close(got, want)
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def killed_in_the_last_epoch(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """The same training in another folder, ended where it is about to write its last epoch."""
    again = config.model_copy(update={"out_dir": config.out_dir.with_name("again")})
    real, last = checkpoints.save_model, f"epoch-{config.settings.epochs}"

    def killed(model: Any, base: Path, folder: Path) -> None:
        if folder.name == last:
            raise KeyboardInterrupt
        real(model, base, folder)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_model", killed)
        with pytest.raises(KeyboardInterrupt):
            main(again)
    assert not (again.out_dir / "result.json").exists()
    return again


@pytest.mark.parametrize("lora", [None, {"rank": 2, "dropout": 0.1}])
def test_a_killed_training_resumes_to_the_same_weights(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, lora: dict[str, Any] | None
) -> None:
    config = using(config, lora=lora, epochs=3)
    whole = main(config)
    again = killed_in_the_last_epoch(config, monkeypatch)
    resumed = main(again)
    assert [line["step"] for line in metrics(again)] == [line["step"] for line in metrics(config)]
    assert hashes(resumed) == hashes(whole)


def test_smaller_micro_batches_go_on_from_what_was_saved(
    trained: tuple[TrainConfig, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a run that was out of memory."""
    config, whole = trained
    again = killed_in_the_last_epoch(config, monkeypatch)
    assert config.settings.micro_batch_size > 1
    smaller = using(again, micro_batch_size=1)
    resumed = main(smaller)
    assert resumed["settings"]["micro_batch_size"] == 1
    assert hashes(resumed)[:-1] == hashes(whole)[:-1], "epochs that were trained are trained again"
    assert resumed["steps"] == whole["steps"]
    weights = [load_file(c.out_dir / "epoch-4" / "model.safetensors") for c in (config, again)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4)


def cut_short(path: Path) -> None:
    """As a disk that is full leaves a file."""
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    """Change some bytes in the middle, so that the size stays."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"broken")


@pytest.mark.parametrize(
    ("name", "damage"), [("optimizer.pt", cut_short), ("model.safetensors", overwrite)]
)
def test_a_corrupt_checkpoint_is_not_resumed_from(
    config: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[Path], None],
) -> None:
    config = using(config, epochs=3)
    whole = hashes(main(config))
    again = killed_in_the_last_epoch(config, monkeypatch)
    newest = again.out_dir / "trainer" / "checkpoint-4"
    damage(newest / name)
    with caplog.at_level("WARNING", logger="workers.train.train"):
        assert hashes(main(again)) == whole
    assert f"{newest} is corrupt" in caplog.text
    assert [line["step"] for line in metrics(again)] == [1, 2, 3, 4, 5, 6]


def test_optimizer_states_are_not_hashed(tmp_path: Path) -> None:
    for name in ("optimizer.pt", "optimizer_0/a.distcp", "model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"weights")
    fingerprints = resume._fingerprints(tmp_path)
    sizes = {name for name, value in fingerprints.items() if value == "7 bytes"}
    assert sizes == {"optimizer.pt", "optimizer_0/a.distcp"}


def hashes(result: dict[str, Any]) -> list[str]:
    return [checkpoint["weights_sha256"] for checkpoint in result["checkpoints"]]


def test_the_same_seed_gives_the_same_weights(
    trained: tuple[TrainConfig, dict[str, Any]],
) -> None:
    config, first = trained
    assert main(config) == first  # It is done, and says so.
    shutil.rmtree(config.out_dir)
    assert hashes(main(config)) == hashes(first)
    other = main(using(config, seed=1))  # Other settings do not find the old result.
    assert hashes(other) != hashes(first)


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"no_such": 1}, "training.extra.no_such"),
        ({"learning_rate": 1.0}, "training.extra.learning_rate"),
        ({"output_dir": "/"}, "training.extra.output_dir"),
        ({"weight_decay": "much"}, "training.extra.weight_decay"),
        ({"fsdp_config": "/etc/passwd"}, "training.extra.fsdp_config"),
        ({"hub_model_id": "a/b"}, "training.extra.hub_model_id"),
        ({"trackio_space_id": "a/b"}, "training.extra.trackio_space_id"),
        ({"project": "another's"}, "training.extra.project"),
        ({"optim": "no_such_optimizer"}, "training.extra.optim"),
        ({"use_liger_kernel": True, "liger_kernel_config": {"fused_linear_cross_entropy": True}},
         "training.extra"),
    ],
)  # fmt: skip
def test_settings_that_trl_refuses(config: TrainConfig, extra: Any, param: str) -> None:
    with pytest.raises(TrainError) as e:
        main(using(config, extra=extra))
    assert e.value.param is not None
    assert e.value.param.startswith(param)
    assert not list(config.out_dir.glob("epoch-*"))


def test_no_text_of_an_extra_setting_is_a_file_or_an_address() -> None:
    """Of a newer TRL, look at each one that is new here: where does what it names come from or go
    to?"""

    def taken(key: str) -> bool:
        with suppress(TrainError):
            _check_extra({key: "text"})
            return True
        return False

    assert {field.name for field in dataclasses.fields(DPOConfig) if taken(field.name)} == {
        # Names of things that torch, transformers and TRL have.
        "optim", "torch_compile_backend", "torch_compile_mode", "optim_target_modules",
        "dataloader_multiprocessing_context", "f_divergence_type", "train_sampling_strategy",
        "log_level", "log_level_replica", "metric_for_best_model", "length_column_name",
        "pad_token",
        # Written as text.
        "optim_args", "lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "debug",
        "include_num_input_tokens_seen", "pad_to_multiple_of",
    }  # fmt: skip


def test_a_good_extra_setting_reaches_trl(config: TrainConfig) -> None:
    arguments = dpo_config(using(config, extra={"weight_decay": 0.25}).settings, config.out_dir)
    assert arguments.weight_decay == 0.25


def test_who_is_to_be_told_but_is_not_installed(config: TrainConfig) -> None:
    with pytest.raises(TrainError, match="mlflow is not installed") as e:
        main(using(config, report_to=["mlflow"]))
    assert e.value.param == "training.report_to"


def test_report_to_reaches_trl(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dpo_config(config.settings, config.out_dir).report_to == []
    monkeypatch.setitem(sys.modules, "mlflow", _installed("mlflow"))
    arguments = dpo_config(using(config, report_to=["mlflow"]).settings, config.out_dir)
    assert arguments.report_to == ["mlflow"]


def _installed(name: str) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    return module


def test_a_micro_batch_divides_the_step(config: TrainConfig) -> None:
    settings = using(config, batch_size=6, micro_batch_size=4).settings
    arguments = dpo_config(settings, config.out_dir)
    assert arguments.per_device_train_batch_size == 3
    assert arguments.gradient_accumulation_steps == 2


def test_a_diverging_training_is_an_error(config: TrainConfig, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(config.model_path)
    broken = shutil.copytree(config.model_path, tmp_path / "broken")
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    model.save_pretrained(broken)
    with pytest.raises(TrainError, match="the loss is nan") as e:
        main(config.model_copy(update={"model_path": broken}))
    assert e.value.param == "training.learning_rate"


def test_a_step_is_random_and_sorted_inside() -> None:
    lengths = [5, 9, 1, 7, 3, 8, 2, 6]
    sampler = StepSampler(lengths, step_pairs=4, seed=0)
    first = list(sampler)
    assert sorted(first) == list(range(8))
    for step in (first[:4], first[4:]):
        assert [lengths[n] for n in step] == sorted((lengths[n] for n in step), reverse=True)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert set(list(sampler)[:4]) != set(first[:4])


def test_the_command_line_reports_a_refusal(config: TrainConfig, tmp_path: Path) -> None:
    config.pairs_path.write_text("")
    config.out_dir.mkdir()
    file = tmp_path / "config.json"
    file.write_text(config.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-m", "workers.train.train", "--config", str(file)], capture_output=True
    )
    assert done.returncode == 2
    error = json.loads((config.out_dir / "error.json").read_text())
    assert error == {"message": "there is no pair to train on", "param": "pairs"}
