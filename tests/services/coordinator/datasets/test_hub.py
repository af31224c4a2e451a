"""Prompts from Hugging Face datasets, read by the real library from rows of our own."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pytest
from fastapi.testclient import TestClient
from huggingface_hub import DatasetInfo
from sqlalchemy import Engine, text

from services.coordinator.app import app
from services.coordinator.datasets import routes
from services.coordinator.datasets.hub import HubDataset, commit_of, read_hub
from shared.db.engine import get_engine
from shared.errors import InvalidRequest, TooLarge
from shared.settings import Settings
from tests.support import access

ROWS = [{"prompt": f"Question {n}?", "topic": "sums"} for n in range(10)]
COMMIT = "c0ffee" * 6 + "c0de"
CHAT = [
    {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]}
] * 4


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """Rows by the name of their split, as the hub would stream them."""
    rows: dict[str, list[dict[str, Any]]] = {"train": ROWS}

    def stream(split: str) -> Any:
        if split not in rows:
            raise ValueError(f"Bad split: {split}")
        return datasets.Dataset.from_list(rows[split]).to_iterable_dataset()

    def load_dataset_builder(id_: str, _: str | None, *, revision: str) -> Any:
        files = {"train": [f"hf://datasets/{id_}@{revision}/train.jsonl"]}
        config = SimpleNamespace(data_files=files)
        return SimpleNamespace(config=config, as_streaming_dataset=stream)

    def dataset_info(_: Any, __: str, *, revision: str) -> Any:
        assert revision == "main"
        return DatasetInfo(**({"id": "a/b", "sha": COMMIT, "siblings": []} | described))  # type: ignore[no-untyped-call]

    described: dict[str, Any] = {}
    rows["described"] = described  # type: ignore[assignment]
    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    return rows


def lines_of(wanted: HubDataset) -> list[dict[str, Any]]:
    return list(read_hub(wanted, commit_of(wanted)))


def test_the_last_rows_are_held_out(hub: dict[str, Any]) -> None:
    lines = lines_of(HubDataset(id="a/b", validation_rows=3, category_column="topic"))
    assert [line["split"] for line in lines] == ["train"] * 7 + ["validation"] * 3
    assert lines[0] == {"text": "Question 0?", "split": "train", "category": "sums"}
    assert [line["text"] for line in lines] == [row["prompt"] for row in ROWS]


def test_a_split_of_its_own_is_taken_whole(hub: dict[str, Any]) -> None:
    hub["test"] = ROWS[:2]
    lines = lines_of(HubDataset(id="a/b", validation_split="test"))
    assert [line["split"] for line in lines] == ["train"] * 10 + ["validation"] * 2


def test_half_at_most_is_held_out(hub: dict[str, Any]) -> None:
    lines = lines_of(HubDataset(id="a/b", validation_rows=500))
    assert sum(line["split"] == "validation" for line in lines) == 5


def test_of_chat_messages_the_first_of_the_users_is_the_prompt(hub: dict[str, Any]) -> None:
    hub["train"] = CHAT
    assert lines_of(HubDataset(id="a/b", limit=2))[0]["text"] == "Why?"


@pytest.mark.parametrize("field", ["text_column", "category_column", "checks_column"])
def test_a_missing_column_is_named_with_those_there_are(hub: dict[str, Any], field: str) -> None:
    wanted = HubDataset.model_validate({"id": "a/b", field: "misspelt"})
    with pytest.raises(InvalidRequest, match=r"no column 'misspelt'.*'prompt'") as raised:
        lines_of(wanted)
    assert raised.value.param == f"hf.{field}"


@pytest.mark.parametrize("cell", [lambda checks: checks, json.dumps], ids=["lists", "JSON text"])
def test_checks_of_several_kinds_come_through(
    hub: dict[str, Any], cell: Callable[[Any], Any]
) -> None:
    checks = [
        {"kind": "words", "at_most": 5},
        {"kind": "keyword", "word": "Elbe"},
        {"kind": "forbidden", "words": ["Rhine"]},
    ]
    hub["train"] = [{"prompt": "A river?", "checks": cell(checks)}, {"prompt": "Any?"}]
    lines = lines_of(HubDataset(id="a/b", checks_column="checks", limit=2))
    assert [line["checks"] for line in lines] == [checks, []]


@pytest.mark.parametrize(
    "files",
    ["/etc/hosts.json", "http://10.0.0.1/x.json", "../x.json", ["x.json", "file:///x.json"],
     [{"split": "train", "path": "zip://x::http://10.0.0.1/x.zip"}]],
)  # fmt: skip
def test_a_card_cannot_have_other_files_read(hub: dict[str, Any], files: Any) -> None:
    hub["described"]["cardData"] = {"configs": [{"config_name": "c", "data_files": files}]}
    with pytest.raises(InvalidRequest, match="outside of its repository"):
        lines_of(HubDataset(id="a/b"))


def test_nor_can_a_file_that_overrides_the_card(hub: dict[str, Any]) -> None:
    hub["described"]["siblings"] = [{"rfilename": ".huggingface.yaml"}]
    with pytest.raises(InvalidRequest, match="outside of its repository"):
        lines_of(HubDataset(id="a/b"))


def test_what_is_found_all_the_same_is_not_read(
    hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SimpleNamespace(data_files={"train": ["/etc/hosts.json"]})
    made = SimpleNamespace(config=config)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: made)
    with pytest.raises(InvalidRequest, match="outside of its repository"):
        lines_of(HubDataset(id="a/b"))


def test_a_card_of_ones_own_files_is_read(hub: dict[str, Any]) -> None:
    files = [{"split": "train", "path": "data/train-*.parquet"}]
    hub["described"]["cardData"] = {"configs": [{"config_name": "c", "data_files": files}]}
    assert len(lines_of(HubDataset(id="a/b"))) == 10


def test_what_the_library_says_is_in_the_error(hub: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="Bad split: none") as raised:
        lines_of(HubDataset(id="a/b", train_split="none"))
    assert raised.value.param == "hf"


@pytest.mark.parametrize(("validation", "size"), [(None, 10 * 23), ("test", 10 * 41 + 10 * 46)])
def test_no_more_is_taken_than_an_upload_may_have(
    hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch, validation: str | None, size: int
) -> None:
    hub["test"] = ROWS
    wanted = HubDataset(id="a/b", validation_split=validation)

    def allow(size: int) -> None:
        settings = Settings(max_upload_bytes=size)
        monkeypatch.setattr("services.coordinator.datasets.hub.get_settings", lambda: settings)

    allow(size)
    assert len(lines_of(wanted)) == (20 if validation else 10)
    allow(size - 1)
    with pytest.raises(TooLarge, match=f"hf: larger than {size - 1} bytes") as refused:
        lines_of(wanted)
    assert refused.value.param == "hf"


BODY = {"name": "hub", "hf": {"id": "a/b", "validation_rows": 2}}


@pytest.fixture
def client(clean_database: Engine, redis_url: str) -> TestClient:
    return access.client(app)


def test_a_dataset_keeps_where_it_came_from(client: TestClient, hub: dict[str, Any]) -> None:
    made = client.post("/datasets", json=BODY).json()
    assert (made["train_prompts"], made["validation_prompts"]) == (8, 2)
    where, _, rest = made["source"].partition("?")
    assert where == f"hf:a/b@{COMMIT}"
    assert rest == "train_split=train&validation_rows=2&text_column=prompt&limit=10000"
    again = client.post("/datasets", json=BODY)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "dataset_exists")


def test_no_transaction_is_open_while_it_is_read(
    client: TestClient, hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def watched(wanted: HubDataset, commit: str) -> Iterator[dict[str, Any]]:
        for line in read_hub(wanted, commit):
            with get_engine().connect() as connection:
                query = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in trans%'"
                assert connection.scalar(text(query)) == 0
            yield line

    monkeypatch.setattr(routes, "read_hub", watched)
    headers = {"Idempotency-Key": "once"}
    first = client.post("/datasets", json=BODY, headers=headers)
    assert first.status_code == 201, first.text
    hub.clear()
    again = client.post("/datasets", json=BODY, headers=headers)
    assert again.json() == first.json(), "it was read again for a repeat"
    assert again.headers["idempotent-replayed"] == "true"


def test_a_server_without_the_library_says_so(
    client: TestClient, hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused = client.post("/datasets", json=BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "hub_not_installed")
    assert "forethought[hub]" in refused.json()["error"]["message"]


def test_a_folder_of_the_server_is_not_the_hubs(
    hub: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`load_dataset` would read it in the place of the dataset that has its name."""
    (tmp_path / "some" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequest, match="is a folder of this server") as refused:
        lines_of(HubDataset(id="some/data"))
    assert refused.value.param == "hf.id"
