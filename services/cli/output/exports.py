"""Answers and pairs in the formats of other tools, one row at a time."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from services.cli.api.client import Object
from services.cli.errors import CliError
from shared.thinking.formats import ThoughtFormat


def alpaca_eval(answers: Iterable[Object], generator: str, dataset: str) -> Iterator[str]:
    """Yield AlpacaEval's `model_outputs`, a JSON list. An output that did not parse is empty."""
    before = "[\n"
    for answer in answers:
        row = {
            "dataset": dataset,
            "instruction": answer["prompt"],
            "output": answer["response"] or "",
            "generator": generator,
        }
        yield before + json.dumps(row, ensure_ascii=False)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def one_each(answers: Iterable[Object]) -> Iterator[Object]:
    """Keep the first sample of each prompt: these tools take one answer for an instruction."""
    return (answer for answer in answers if answer["sample_index"] == 0)


def uid(prompt: str) -> str:
    """Return the id of a prompt, the same for every model."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:32]


def arena_hard_question(answer: Object) -> Object:
    """Make a line of Arena-Hard-Auto's `question.jsonl`.

    The category decides which baseline and system prompt the tool uses."""
    return {
        "uid": uid(answer["prompt"]),
        "category": "hard_prompt",
        "subcategory": answer["category"] or "",
        "prompt": answer["prompt"],
    }


def arena_hard_answer(answer: Object, model: str, uid: str, tstamp: float) -> Object:
    """Make a line of Arena-Hard-Auto's `model_answer/<model>.jsonl` (version 2.0)."""
    return {
        "uid": uid,
        "ans_id": f"{uid}-{answer['id']}",
        "model": model,
        "messages": [
            {"role": "user", "content": answer["prompt"]},
            {"role": "assistant", "content": {"answer": answer["response"] or ""}},
        ],
        "tstamp": tstamp,
        # Counted by the model's tokenizer. The tool's `add_markdown_info` counts with another one.
        "metadata": {"token_len": answer["response_tokens"]},
    }


def uids_of(questions: Iterable[str]) -> dict[str, str]:
    """Map each prompt of a `question.jsonl` to its uid."""
    uids = {}
    for number, line in enumerate(questions, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            uids[str(row["prompt"])] = str(row["uid"])
        except (ValueError, TypeError, KeyError) as error:
            raise CliError(f"questions: line {number} needs `uid` and `prompt` ({error})") from None
    return uids


def preference(pair: Object, thinking: ThoughtFormat | None) -> Object | None:
    """Make a row of a conversational preference dataset, as TRL's DPOTrainer takes it.

    With a format, the row holds what the iteration trained on: whole outputs under the thought
    prompt. Without a format, it holds the answers only. Returns None when the answers make no pair:
    the rejected output has no response, or both answers are equal without their thoughts.
    """
    if thinking is None:
        prompt, chosen, rejected = pair["prompt"], pair["chosen"], pair["rejected"]
    else:
        prompt = thinking.prompt(pair["prompt"])
        chosen, rejected = pair["chosen_output"], pair["rejected_output"]
        if chosen is None:
            raise CliError(
                "with_thoughts: this key may not read thoughts. Set FORETHOUGHT_API_KEY to a key "
                "with the scope `thoughts`"
            )
    if not chosen or not rejected or chosen == rejected:
        return None
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "chosen_score": pair["chosen_score"],
        "rejected_score": pair["rejected_score"],
    }


def card(iteration: Object, rows: int, left_out: int, with_thoughts: bool) -> str:
    """Write the README.md of the dataset."""
    config = iteration["config"]
    front: dict[str, Any] = {
        "pretty_name": f"{config['name']}, iteration {iteration['number']}: preference pairs",
        "task_categories": ["text-generation"],
        "tags": ["preference", "dpo", "thought-preference-optimization", "forethought"],
        "configs": [{"config_name": "default", "data_files": "preferences.jsonl"}],
    }
    contents = (
        "Whole outputs, thoughts included, under the thought prompt: what was trained on."
        if with_thoughts
        else "Answers only, under the user's own instruction, without the thoughts before them."
    )
    reports = iteration["report"] or {}
    facts = [
        ("rows", rows),
        ("pairs left out: no two different answers", left_out),
        ("prompts", config["dataset"]),
        ("model sampled", iteration["parent_model"]),
        ("thought format", config["thought_format"]["name"]),
        ("judge", (reports.get("judges") or {}).get("training", config["judge"]["kind"])),
        ("rho of length control", config["length_control"]["rho"]),
        ("iteration", iteration["id"]),
    ]
    cells = ((name, str(value).replace("|", r"\|").split()) for name, value in facts)
    table = "".join(f"| {name} | {' '.join(words)} |\n" for name, words in cells)
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n"
        f"# {front['pretty_name']}\n\n{contents} Made by Thought Preference Optimization "
        "(Wu et al., arXiv 2410.10630): of each prompt's sampled outputs the one that a judge, "
        "under length control, scored best, and the one it scored worst.\n\n"
        f"| | |\n|---|---|\n{table}\n"
        "Each line of `preferences.jsonl` has `prompt`, `chosen` and `rejected` as lists of chat "
        "messages, and the judge's raw scores (`rejected_score` is null where the rejected output "
        "has no response).\n"
    )
