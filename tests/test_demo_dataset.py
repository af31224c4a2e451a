"""The prompts of the demo: valid, distinct, and what their script writes."""

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from shared.checks import checks_adapter
from shared.schemas import InlinePrompt

FOLDER = Path(__file__).parents[1] / "configs" / "demo"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / "prompts.jsonl").read_text().splitlines()]


def test_the_script_writes_the_same_bytes() -> None:
    spec = importlib.util.spec_from_file_location("make_prompts", FOLDER / "make_prompts.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.jsonl().encode() == (FOLDER / "prompts.jsonl").read_bytes()


def test_every_prompt_is_valid_and_carries_checks(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert row.keys() == {"text", "split", "category", "checks"}
        InlinePrompt(text=row["text"], checks=row["checks"])
        assert 1 <= len(checks_adapter.validate_python(row["checks"])) <= 3


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
