"""Prompts from Hugging Face datasets, read by the real library from rows of our own."""

from typing import Any

import datasets
import pytest

from services.coordinator.hub import HubDataset, read_hub
from shared.errors import InvalidRequest

ROWS = [{"prompt": f"Question {n}?", "topic": "sums"} for n in range(10)]
CHAT = [
    {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]}
] * 4


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """Rows by the name of their split, as the hub would stream them."""
    rows: dict[str, list[dict[str, Any]]] = {"train": ROWS}

    def load_dataset(_: str, __: str | None, *, split: str, **options: Any) -> Any:
        assert options["streaming"]
        if split not in rows:
            raise ValueError(f"Bad split: {split}")
        return datasets.Dataset.from_list(rows[split]).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return rows


def test_the_last_rows_are_held_out(hub: dict[str, Any]) -> None:
    lines = list(read_hub(HubDataset(id="a/b", validation_rows=3, category_column="topic")))
    assert [line["split"] for line in lines] == ["train"] * 7 + ["validation"] * 3
    assert lines[0] == {"text": "Question 0?", "split": "train", "category": "sums"}


def test_a_split_of_its_own_is_taken_whole(hub: dict[str, Any]) -> None:
    hub["test"] = ROWS[:2]
    lines = list(read_hub(HubDataset(id="a/b", validation_split="test")))
    assert [line["split"] for line in lines] == ["train"] * 10 + ["validation"] * 2


def test_half_at_most_is_held_out(hub: dict[str, Any]) -> None:
    lines = list(read_hub(HubDataset(id="a/b", validation_rows=500)))
    assert sum(line["split"] == "validation" for line in lines) == 5


def test_of_chat_messages_the_first_of_the_users_is_the_prompt(hub: dict[str, Any]) -> None:
    hub["train"] = CHAT
    assert next(read_hub(HubDataset(id="a/b", limit=2)))["text"] == "Why?"


def test_a_missing_column_is_named_with_those_there_are(hub: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"no column 'question'.*'prompt'") as raised:
        list(read_hub(HubDataset(id="a/b", text_column="question")))
    assert raised.value.param == "hf.text_column"


def test_what_the_library_says_is_in_the_error(hub: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="Bad split: none") as raised:
        list(read_hub(HubDataset(id="a/b", train_split="none")))
    assert raised.value.param == "hf"
