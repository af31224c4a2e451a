"""Trainings on several processes take the steps of one: over gloo, for want of GPUs."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from services.cli.machine.ports import listen, port_of
from shared.schemas.requests import Training
from shared.settings import get_settings
from tests.support import tiny_model
from tests.support.waiting import until
from workers.train import launch
from workers.train.checkpoints import read_metrics
from workers.train.dpo import micro_batch_size
from workers.train.pairs import TrainError
from workers.train.train import TrainConfig, main

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
SETTINGS = Training(learning_rate=3e-3, epochs=2, batch_size=8, micro_batch_size=2)
FSDP = launch.CONFIGS / "fsdp2.yaml"
DDP = (launch.CONFIGS / "ddp.yaml").read_text()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    pairs = tiny_model.write_pairs(folder / "pairs.jsonl", tiny_model.some_pairs(16))
    return tiny_model.write(folder / "tiny"), pairs


@pytest.fixture(scope="module")
def alone(inputs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the same training has ended in one process."""
    out = tmp_path_factory.mktemp("alone")
    main(config_of(inputs, out, SETTINGS))
    return out


def config_of(inputs: tuple[Path, Path], out: Path, settings: Training) -> TrainConfig:
    model, pairs = inputs
    return TrainConfig(model_path=model, pairs_path=pairs, out_dir=out, settings=settings)


def written(inputs: tuple[Path, Path], out: Path, settings: Training = SETTINGS) -> Path:
    out.mkdir()
    file = out / "config.json"
    file.write_text(config_of(inputs, out, settings).model_dump_json())
    return file


def run(*command: str | Path, **env: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, command)],
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def by_fsdp(config: Path) -> list[str | Path]:
    options = ("--config_file", FSDP, "--num_processes", "2", "--main_process_port", "0")
    rank = ("-m", "tests.workers.train.fsdp_on_cpu", "--config", config)
    return ["accelerate.commands.launch", *options, *rank]


def ended(process: "subprocess.Popen[str]") -> int:
    output, _ = process.communicate(timeout=120)
    print(output)
    return process.returncode


def agree(out: Path, alone: Path) -> None:
    ours, theirs = (read_metrics(folder / "metrics.jsonl") for folder in (out, alone))
    for name in ("step", "loss", "grad_norm", "rewards/margins", "logps/chosen", "logps/rejected"):
        expected = pytest.approx([line[name] for line in theirs], rel=1e-4, abs=1e-5)
        assert [line[name] for line in ours] == expected, name
    for epoch in ("epoch-1", "epoch-2"):
        weights, others = (load_file(f / epoch / "model.safetensors") for f in (out, alone))
        assert weights.keys() == others.keys()
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, others[name], rtol=1e-3, atol=1e-4)
    assert not (out / "trainer").exists()


def test_two_processes_take_the_steps_of_one(
    inputs: tuple[Path, Path], alone: Path, tmp_path: Path
) -> None:
    config = written(inputs, tmp_path / "out")
    assert ended(run("workers.train.launch", "--config", config, "--processes", "2")) == 0
    agree(config.parent, alone)
    result = json.loads((config.parent / "result.json").read_text())
    assert result["settings"]["processes"] == 2
    assert (result["pairs"], result["steps"]) == (16, 4)


def test_shards_of_fsdp_resume_to_the_weights_of_one_process(
    inputs: tuple[Path, Path], alone: Path, tmp_path: Path
) -> None:
    config = written(inputs, tmp_path / "out")
    command = by_fsdp(config)
    assert ended(run(*command, DIES_IN="epoch-2")) != 0
    assert len(list(config.parent.glob("trainer/checkpoint-2/pytorch_model_fsdp_0/*.distcp"))) == 2
    assert ended(run(*command)) == 0
    agree(config.parent, alone)


def test_shards_in_bfloat16_round_no_log_probability(
    inputs: tuple[Path, Path], alone: Path, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 1, "dtype": "bfloat16"})
    config = written(inputs, tmp_path / "out", settings)
    assert ended(run(*by_fsdp(config), HEAD="theirs")) == 0
    first, exact = (read_metrics(f / "metrics.jsonl")[0] for f in (config.parent, alone))
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6), "the reference is another"
    assert first["logps/chosen"] == pytest.approx(exact["logps/chosen"], abs=0.02)
    assert first["logps/chosen"] % 0.25 != 0, "a sum of -111 in bfloat16 is a multiple of 0.5"


def test_two_machines_take_the_steps_of_one(
    inputs: tuple[Path, Path], alone: Path, tmp_path: Path
) -> None:
    """As `docs/operate.md` has it."""
    config = written(inputs, tmp_path / "out")
    machines = tmp_path / "machines.yaml"
    machines.write_text(
        DDP.replace("num_machines: 1", "num_machines: 2\nnum_processes: 2")
        + f"main_process_ip: 127.0.0.1\nmain_process_port: {a_free_port()}\n"
    )
    settings = {"FORETHOUGHT_ACCELERATE_CONFIG": str(machines),
                "FORETHOUGHT_MODEL_STORE": str(tmp_path)}  # fmt: skip
    waiting = (
        "--config_file",
        machines,
        "--machine_rank",
        "1",
        "-m",
        "workers.train.train",
        "--config",
    )
    second = run("accelerate.commands.launch", *waiting, tmp_path / launch.ON_MACHINES)
    first = run("workers.train.launch", "--config", config, **settings)
    assert (ended(first), ended(second)) == (0, 0)
    agree(config.parent, alone)


def test_a_refusal_comes_through_the_launcher(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    uneven = SETTINGS.model_copy(update={"batch_size": 7})
    config = written(inputs, tmp_path / "out", uneven)
    assert ended(run("workers.train.launch", "--config", config, "--processes", "2")) == 2
    error = json.loads((config.parent / "error.json").read_text())
    assert error["param"] == "training.batch_size"
    assert "7 pairs a step cannot be shared evenly by 2 GPUs" in error["message"]


def test_ranks_die_with_their_launcher(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    """They are in sessions of their own, which a kill of the stage's group does not reach. Killed
    alone, the launcher takes `accelerate launch` with it, and that its ranks."""
    long = SETTINGS.model_copy(update={"epochs": 100})
    config = written(inputs, tmp_path / "out", long)
    launcher = run("workers.train.launch", "--config", config, "--processes", "2")
    until((config.parent / "metrics.jsonl").exists, "the ranks train", 60)
    assert len(ranks_of(config)) == 2
    launcher.kill()
    launcher.wait()
    until(lambda: not ranks_of(config), "they are gone", 10)
    assert launcher.stdout is not None
    launcher.stdout.close()


def ranks_of(config: Path) -> list[psutil.Process]:
    """Those that live; the launchers name the module, too."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        is_rank = "workers.train.train" in words and "accelerate.commands.launch" not in words
        lives = process.info["status"] != psutil.STATUS_ZOMBIE
        if is_rank and lives and str(config) in words:
            found.append(process)
    return found


def a_free_port() -> int:
    with listen() as sock:
        return port_of(sock)


@pytest.mark.parametrize(
    ("ranks", "batch", "micro", "used"), [(2, 8, 4, 4), (4, 8, 4, 2), (8, 32, 3, 2), (3, 6, 4, 2)]
)
def test_micro_batches_of_all_ranks_make_up_a_step(
    monkeypatch: pytest.MonkeyPatch, ranks: int, batch: int, micro: int, used: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    settings = Training(batch_size=batch, micro_batch_size=micro)
    assert micro_batch_size(settings) == used
    with pytest.raises(TrainError):
        micro_batch_size(settings.model_copy(update={"batch_size": batch * ranks + 1}))


@pytest.mark.parametrize(
    ("gpus", "lora", "file"), [(True, None, "fsdp2"), (True, {}, "ddp"), (False, None, "ddp")]
)
def test_an_adapter_is_copied_and_a_model_sharded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: bool, lora: Any, file: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    (tmp_path / "config.json").write_text(json.dumps({"settings": {"lora": lora}}))
    arguments = launch._launch(tmp_path / "config.json", 8)
    assert arguments is not None
    assert arguments[1].endswith(f"/{file}.yaml")
    assert launch._launch(tmp_path / "config.json", 1) is None
    assert get_settings().accelerate_config is None
