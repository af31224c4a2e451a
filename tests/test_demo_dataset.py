"""Prompts of the demo and of the experiment: valid, distinct, and what their scripts write."""

import json
from collections import Counter
from typing import Any

import pytest

from configs.demo import make_prompts as demo
from experiments.learning import make_prompts as learning
from shared.schemas.requests import InlinePrompt


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in demo.PATH.read_text().splitlines()]


def test_scripts_write_the_same_bytes() -> None:
    written = {
        demo.PATH: demo.prompts(demo.CATEGORIES),
        learning.PATH: demo.prompts(learning.CATEGORIES),
        learning.TEST_PATH: learning.test_prompts(),
    }
    for path, rows in written.items():
        assert demo.jsonl(rows).encode() == path.read_bytes(), path


def test_no_run_of_the_experiment_sees_its_test() -> None:
    seen, test = (
        {json.loads(line)["text"] for line in path.read_text().splitlines()}
        for path in (learning.PATH, learning.TEST_PATH)
    )
    assert len(test) == 240
    assert not seen & test


def test_every_prompt_is_valid_and_carries_checks(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert row.keys() == {"text", "split", "category", "checks"}
        prompt = InlinePrompt(text=row["text"], checks=row["checks"])
        assert 1 <= len(prompt.checks) <= 3


def test_no_prompt_occurs_twice(rows: list[dict[str, Any]]) -> None:
    assert len({row["text"] for row in rows}) == len(rows)


def test_splits_hold_every_category_alike(rows: list[dict[str, Any]]) -> None:
    counts = Counter((row["split"], row["category"]) for row in rows)
    assert len(rows) == 496
    assert {split for split, _ in counts} == {"train", "validation"}
    assert {n for (split, _), n in counts.items() if split == "train"} == {50}
    assert {n for (split, _), n in counts.items() if split == "validation"} == {12}


def test_the_first_prompts_are_already_mixed(rows: list[dict[str, Any]]) -> None:
    """An iteration takes prompts in order: a few dozen must hold every category."""
    categories = {row["category"] for row in rows}
    assert {row["category"] for row in rows[:48]} == categories
    assert {row["category"] for row in rows[400:432]} == categories
