"""A training as a child process: `python -m tools.bench.train_side trl|ours`, its `TrainConfig` on
standard input. Its last line is `{"seconds", "cpu_seconds", "peak_mib", "losses"}`."""

import json
import resource
import sys
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOTrainer

from workers.train import train
from workers.train.checkpoints import read_metrics
from workers.train.dpo import StepSampler, dpo_config
from workers.train.pairs import ChatTokens, tokenize_pairs
from workers.train.train import TrainConfig


def ours(config: TrainConfig) -> dict[str, Any]:
    cpu_before = time.process_time()
    result = train.main(config)
    return {
        "seconds": result["train_seconds"],
        "cpu_seconds": time.process_time() - cpu_before,
        "losses": [row["loss"] for row in read_metrics(config.out_dir / "metrics.jsonl")],
    }


def trl(config: TrainConfig) -> dict[str, Any]:
    """As TRL's own users write it; only the order of the pairs is ours."""
    cpu_before = time.process_time()
    tokenizer = AutoTokenizer.from_pretrained(config.model_path)
    model = AutoModelForCausalLM.from_pretrained(config.model_path, dtype=torch.float32)
    pairs = _in_our_order(config, tokenizer)
    arguments = dpo_config(config.settings, config.out_dir)
    arguments.train_sampling_strategy = "sequential"
    arguments.save_strategy = "no"
    started = time.monotonic()
    trainer = DPOTrainer(
        model=model, args=arguments, train_dataset=pairs, processing_class=tokenizer
    )
    trainer.train()
    return {
        "seconds": time.monotonic() - started,
        "cpu_seconds": time.process_time() - cpu_before,
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
    }


def _in_our_order(config: TrainConfig, tokenizer: Any) -> Dataset:
    """Texts that TRL makes the same tokens of; it adds the end of turn."""
    tokens = ChatTokens(tokenizer, [tokenizer.eos_token_id])
    out = config.out_dir.with_suffix(".arrow")
    rows = tokenize_pairs(config.pairs_path, tokens, config.settings.max_length, out)
    # Of one length each, the sampler sorts nothing and leaves the drawn order.
    order = StepSampler([1] * len(rows), config.settings.batch_size, config.settings.seed)
    return Dataset.from_list([_texts(tokenizer, rows[at]) for at in order])


def _texts(tokenizer: Any, row: dict[str, list[int]]) -> dict[str, str]:
    return {
        "prompt": tokenizer.decode(row["prompt_ids"]),
        "chosen": tokenizer.decode(row["chosen_ids"][:-1]),
        "rejected": tokenizer.decode(row["rejected_ids"][:-1]),
    }


def main(side: str) -> None:
    config = TrainConfig.model_validate_json(sys.stdin.read())
    result = {"trl": trl, "ours": ours}[side](config)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result | {"peak_mib": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
