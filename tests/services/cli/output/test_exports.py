"""`forethought report` and `export` against the real routes and rows."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from sqlalchemy import Engine, select, update
from typer.testing import CliRunner

from services.cli.api import client as cli_client
from services.cli.api.client import Client
from services.cli.machine.datadir import DataDir
from services.cli.main import app
from services.cli.output import exports
from services.coordinator.app import app as coordinator
from services.coordinator.report.build import build_report
from services.train.app import app as train
from shared.db.engine import transaction
from shared.db.tables import Completion, Iteration, Scope
from shared.thinking.formats import SPECIFIC
from tests.support import access, factories
from tests.support.evaluated_runs import BROKEN, Out, evaluated, running, succeeded, trained

SECRET = "hm"
"""What the thoughts of these outputs are."""
TRAINING = [
    [Out(1.0, text='Best "one"\nof two'), Out(0.0, text="Worst")],
    [Out(1.0, text="Only"), BROKEN],
]
SEED = [[Out(0.0, text="Seed's")], [Out(0.0)], [Out(0.0)]]
CHOSEN = [
    [Out(1.0, text="Ünï"), Out(0.0, text="second sample")],
    [BROKEN, BROKEN],
    [Out(1.0, text="Three"), Out(1.0)],
]


@pytest.fixture
def iteration(clean_database: Engine, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> uuid.UUID:
    """Of one that has succeeded, with the command line pointed at its coordinator."""
    apps = [access.client(coordinator), access.client(train)]

    def answer(request: httpx2.Request) -> httpx2.Response:
        # Models are the train service's; the coordinator would ask it over the network.
        app = apps["/models" in request.url.path]
        path = request.url.raw_path.decode()
        found = app.request(request.method, path, headers=dict(request.headers))
        return httpx2.Response(found.status_code, content=found.content, request=request)

    def connected(_: DataDir) -> Client:
        key = os.environ["FORETHOUGHT_API_KEY"]
        return Client("http://testserver", key, transport=httpx2.MockTransport(answer))

    monkeypatch.setenv("FORETHOUGHT_API_KEY", access.SERVICE_KEY)
    for module in ("report", "export"):
        monkeypatch.setattr(f"services.cli.commands.{module}.connect", connected)
    monkeypatch.setattr(cli_client, "PAGE_ROWS", 2)
    with transaction() as session:
        seed, dataset = factories.model(session), factories.dataset(session, 2, 3)
        row = running(
            session, dataset, seed, config={"pairing": {"max_parse_failure_fraction": 0.5}}
        )
        checkpoint = trained(session, row, TRAINING)
        evaluated(session, row, seed.id, SEED)
        evaluated(session, row, checkpoint.id, CHOSEN)
        succeeded(session, row, checkpoint, build_report(session, row, checkpoint.id))
        return row.id


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_alpaca_evals_outputs(iteration: uuid.UUID, tmp_path: Path) -> None:
    file = tmp_path / "made" / "outputs.json"
    run("export", "alpaca-eval", iteration, "-o", file)
    rows = json.loads(file.read_text())
    assert {row["generator"] for row in rows} == {"thinker@v1"}
    assert [(row["instruction"], row["output"]) for row in rows] == [
        ("Prompt 2?", "Ünï"),
        ("Prompt 3?", ""),
        ("Prompt 4?", "Three"),
    ]
    assert all(row.keys() == {"dataset", "instruction", "output", "generator"} for row in rows)
    run("export", "alpaca-eval", iteration, "-o", file, "--of", "seed")
    rows = json.loads(file.read_text())
    assert (rows[0]["generator"], rows[0]["output"]) == ("seed@v1", "Seed's")
    assert [p.name for p in file.parent.iterdir()] == [file.name], "something half-written"


def test_arena_hards_folder(iteration: uuid.UUID, tmp_path: Path) -> None:
    run("export", "arena-hard", iteration, "-o", tmp_path)
    answers = lines(tmp_path / "model_answer" / "thinker@v1.jsonl")
    questions = lines(tmp_path / "question.jsonl")
    assert [a["uid"] for a in answers] == [q["uid"] for q in questions]
    assert len({a["ans_id"] for a in answers}) == 3
    assert answers[0]["model"] == "thinker@v1"
    assert answers[0]["messages"] == [
        {"role": "user", "content": "Prompt 2?"},
        {"role": "assistant", "content": {"answer": "Ünï"}},
    ]
    assert answers[0]["metadata"] == {"token_len": 10}
    assert questions[0]["prompt"] == "Prompt 2?"


def test_arena_hards_own_questions_keep_their_uids(iteration: uuid.UUID, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.jsonl"
    theirs.write_text(json.dumps({"uid": "u3", "prompt": "Prompt 4?", "category": "x"}) + "\n")
    folder = tmp_path / "made"
    shown = run("export", "arena-hard", iteration, "-o", folder, "--questions", theirs)
    assert "1 answers; 2 left out, not in" in shown
    [answer] = lines(folder / "model_answer" / "thinker@v1.jsonl")
    assert answer["uid"] == "u3"
    assert not (folder / "question.jsonl").exists()
    theirs.write_text("{}")
    shown = run("export", "arena-hard", iteration, "-o", folder, "--questions", theirs, code=1)
    assert "questions: line 1" in shown


def test_preferences_are_answers_with_a_card(iteration: uuid.UUID, tmp_path: Path) -> None:
    shown = run("export", "preferences", iteration, "-o", tmp_path)
    assert "1 pairs; 1 pairs left out" in shown, "the second's rejected has no response"
    [row] = lines(tmp_path / "preferences.jsonl")
    assert row["prompt"] == [{"role": "user", "content": "Prompt 0?"}]
    assert row["chosen"] == [{"role": "assistant", "content": 'Best "one"\nof two'}]
    assert row["rejected"] == [{"role": "assistant", "content": "Worst"}]
    assert (row["chosen_score"], row["rejected_score"]) == (1.0, 0.0)
    card = (tmp_path / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["configs"][0]["data_files"] == "preferences.jsonl"
    assert "| rows | 1 |" in card
    assert "Answers only" in card


def test_with_thoughts_they_are_what_was_trained_on(
    iteration: uuid.UUID, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = ("export", "preferences", iteration, "-o", tmp_path, "--with-thoughts")
    monkeypatch.setenv("FORETHOUGHT_API_KEY", access.made_key(Scope.iterate, Scope.thoughts))
    run(*export)
    first, second = lines(tmp_path / "preferences.jsonl")
    assert first["prompt"][0]["content"] == SPECIFIC.prompt("Prompt 0?")
    assert first["chosen"][0]["content"] == f'{SECRET} <R> Best "one"\nof two'
    assert second["rejected_score"] is None
    monkeypatch.setenv("FORETHOUGHT_API_KEY", access.made_key(Scope.iterate))
    assert "may not read thoughts" in run(*export, code=1)
    assert len(lines(tmp_path / "preferences.jsonl")) == 2, "a failed export left the last one"


def test_a_second_thought_is_in_no_export(iteration: uuid.UUID, tmp_path: Path) -> None:
    fmt = SPECIFIC.model_copy(update={"thought_marker": "<T>"})
    with transaction() as session:
        row = session.get_one(Iteration, iteration)
        row.config = row.config | {"thought_format": fmt.model_dump()}
        for completion in session.scalars(select(Completion)):
            completion.output += " <T> AGAIN <R> after"
    run("export", "alpaca-eval", iteration, "-o", tmp_path / "a.json")
    run("export", "arena-hard", iteration, "-o", tmp_path)
    run("export", "preferences", iteration, "-o", tmp_path)
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert "AGAIN" not in file.read_text()
    assert "after" in (tmp_path / "a.json").read_text()


def test_a_report_is_shown_and_written(iteration: uuid.UUID, tmp_path: Path) -> None:
    shown = run("report", iteration)
    assert "win rate against the seed" in shown
    with transaction() as session:
        run_id = session.get_one(Iteration, iteration).run_id
    shown = run("report", run_id)
    assert "thinker" in shown
    assert "succeeded" in shown
    for id_ in (iteration, run_id):
        run("report", id_, "--html", tmp_path / "report.html")
        assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert "no iteration and no run" in run("report", uuid.uuid4(), code=1)


def test_what_cannot_be_exported_is_said(iteration: uuid.UUID, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    assert "no iteration" in run("export", "alpaca-eval", uuid.uuid4(), "-o", file, code=1)
    with transaction() as session:
        session.execute(update(Iteration).values(pruned_at=Iteration.created_at))
    assert "was pruned" in run("export", "alpaca-eval", iteration, "-o", file, code=1)
    with transaction() as session:
        session.execute(update(Iteration).values(pruned_at=None, result_model_id=None))
    assert "no result model yet" in run("export", "alpaca-eval", iteration, "-o", file, code=1)
    assert not file.exists()


def test_nothing_is_an_empty_list() -> None:
    assert json.loads("".join(exports.alpaca_eval([], "m", "d"))) == []


def test_a_card_survives_hostile_names() -> None:
    iteration = {
        "id": "i",
        "number": 1,
        "parent_model": "m",
        "report": {"judges": {"training": "a | b\n---\n# c"}},
        "config": {
            "name": "x: y",
            "dataset": "d",
            "thought_format": {"name": "e\n---"},
            "judge": {"kind": "verifier"},
            "length_control": {"rho": 0.25},
        },
    }
    card = exports.card(iteration, 1, 0, with_thoughts=False)
    assert yaml.safe_load(card.split("---\n")[1])["pretty_name"].startswith("x: y")
    assert "| judge | a \\| b --- # c |" in card


def test_prompts_of_one_text_have_one_uid() -> None:
    assert exports.uid("a") == exports.uid("a") != exports.uid("b")
