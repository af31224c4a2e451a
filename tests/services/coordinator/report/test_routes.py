"""Reports over HTTP, as JSON and as pages that load and run nothing."""

import io
import uuid
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from rich.console import Console
from sqlalchemy import Engine, select, update

from services.cli.output.report import run_tables
from services.cli.output.report import table as iteration_table
from services.coordinator.app import app
from services.coordinator.evaluation.winrate import INSEPARABLE
from services.coordinator.report.build import build_report
from services.coordinator.report.pages import run_page
from shared.db.engine import transaction
from shared.db.tables import Iteration, Prompt, Status
from shared.schemas.formatting import interval
from shared.schemas.report_rows import iteration_sections, run_sections
from shared.settings import get_settings
from shared.thinking.formats import NONE, SPECIFIC
from tests.support import access, factories
from tests.support.evaluated_runs import BROKEN, Out, evaluated, running, succeeded, trained
from tests.support.past_runs import past_run

HOSTILE = "</td><script>alert('x')</script>&\"<img src=//evil.test>"
THOUGHT = "SECRET THOUGHT"
TRAINING = [[Out(1.0, text=THOUGHT), Out(0.0), BROKEN]]
ENOUGH = 8
"""Times three prompts are enough for a length-controlled rate."""
SEED = [[Out(0.0)], [Out(0.5)], [Out(1.0)]] * ENOUGH
CONFIG = {
    "thought_format": SPECIFIC.model_dump() | {"name": HOSTILE[:64]},
    "judge": {"kind": "reward_model", "model": HOSTILE},
}
DIRECT = CONFIG | {"name": "thinker-direct", "thought_format": NONE.model_dump()}


class Page(HTMLParser):
    """What a browser would make of it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def client(clean_database: Engine, redis_url: str) -> TestClient:
    return access.client(app)


@pytest.fixture
def runs(client: TestClient) -> tuple[uuid.UUID, uuid.UUID, uuid.UUID]:
    """A run of two iterations, of which the second still runs; its baseline, which has ended one;
    and the iteration that has."""
    with transaction() as session:
        seed, dataset = factories.model(session), factories.dataset(session, 1, 3 * ENOUGH)
        session.execute(update(Prompt).values(category=HOSTILE))
        thinking, direct = uuid.uuid4(), uuid.uuid4()
        for outs, given in (
            ([[Out(1.0)], [Out(1.0)], [BROKEN]] * ENOUGH, {"run_id": thinking, "config": CONFIG}),
            (SEED, {"run_id": direct, "baseline_of": thinking, "config": DIRECT}),
        ):
            row = running(session, dataset, seed, **given)
            checkpoint = trained(session, row, TRAINING)
            evaluated(session, row, seed.id, SEED)
            evaluated(session, row, checkpoint.id, outs)
            succeeded(session, row, checkpoint, build_report(session, row, checkpoint.id))
        running(session, dataset, seed, run_id=thinking, number=2, config=CONFIG)
        ended = session.scalars(
            select(Iteration.id).where(Iteration.run_id == thinking, Iteration.number == 1)
        ).one()
        return thinking, direct, ended


def test_a_run_is_set_beside_its_baseline(client: TestClient, runs: Any) -> None:
    thinking, direct, _ = runs
    report = client.get(f"/runs/{thinking}/report").json()
    assert (report["run_id"], report["baseline"]["run_id"]) == (str(thinking), str(direct))
    assert [i["status"] for i in report["iterations"]] == ["succeeded", "running"]
    first, second = report["iterations"]
    assert first["score"]["mean"] == pytest.approx(2 / 3)
    assert first["parse_rate"] == pytest.approx(2 / 3)
    assert second["score"] is second["win_rate"] is None
    assert report["seed"]["score"]["mean"] == 0.5
    [versus] = report["thinking_vs_direct"]
    assert versus["number"] == 1
    assert versus["difference"]["mean"] == pytest.approx((1 + 0.5 - 1) / 3)
    assert report["same_judge"]
    assert "flattered" in report["warning"]
    back = client.get(f"/runs/{direct}/report").json()
    assert (back["baseline_of"], back["baseline"]) == (str(thinking), None)


def test_two_that_ended_at_one_moment_are_compared_all_the_same(
    client: TestClient, runs: Any
) -> None:
    stored = client.get(f"/runs/{runs[0]}/report").json()["thinking_vs_direct"]
    with transaction() as session:
        for row in session.scalars(select(Iteration).where(Iteration.report.is_not(None))):
            row.report = row.report | {"thinking_vs_direct": None} if row.report else None
    assert client.get(f"/runs/{runs[0]}/report").json()["thinking_vs_direct"] == stored
    with transaction() as session:
        session.execute(update(Iteration).values(pruned_at=Iteration.created_at))
    assert client.get(f"/runs/{runs[0]}/report").json()["thinking_vs_direct"] == []


def test_pages_load_nothing_run_nothing_and_hold_no_thought(client: TestClient, runs: Any) -> None:
    thinking, direct, ended = runs
    for path in (f"/runs/{thinking}", f"/runs/{direct}", f"/iterations/{ended}"):
        answer = client.get(f"{path}/report.html")
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        page = Page(answer.text)
        assert page.open == []
        assert not page.tags & {"script", "img", "link", "iframe", "object"}
        assert not {a for a in page.attributes if a.startswith("on") or a in ("href", "src")}
        assert "url(" not in answer.text
        assert "flattered" in page.text
        for text in (THOUGHT, "SECRET", "Prompt 0"):
            assert text not in answer.text
    assert HOSTILE in page.text, "the iteration's category"
    assert "svg" in page.tags


def test_plots_have_both_runs(client: TestClient, runs: Any) -> None:
    html = client.get(f"/runs/{runs[0]}/report.html").text
    assert html.count("<svg") == 5
    text = Page(html).text
    assert "Win rate of each against its own seed" in text
    assert "Win rate of both against the direct seed" in text
    for line in ("thinking raw", "direct length-controlled", "thinking thought", "direct response"):
        assert line in text
    assert "stroke-dasharray" in html


def test_without_a_baseline_or_a_common_judge_there_is_no_common_seed(
    client: TestClient, runs: Any
) -> None:
    alone = client.get(f"/runs/{runs[1]}/report.html").text
    assert alone.count("<svg") == 4
    assert "Win rate against the seed" in Page(alone).text
    report = client.get(f"/runs/{runs[0]}/report").json()
    report["thinking_vs_direct"][0] |= {"win_rate": None, "win_rate_against_direct_seed": None}
    assert run_page(report).count("<svg") == 4
    del report["thinking_vs_direct"][0]["win_rate_against_direct_seed"]
    assert run_page(report).count("<svg") == 4, "of an earlier version"


def test_a_page_says_why_there_is_no_length_controlled_rate(client: TestClient, runs: Any) -> None:
    report = client.get(f"/runs/{runs[0]}/report").json()
    assert INSEPARABLE not in Page(run_page(report)).text
    report["iterations"][0]["win_rate"]["seed"] |= {"length_controlled": None, "note": INSEPARABLE}
    assert INSEPARABLE in Page(run_page(report)).text


def test_a_page_says_that_points_have_floors_of_their_own(client: TestClient, runs: Any) -> None:
    report = client.get(f"/runs/{runs[0]}/report").json()
    [first, *_], seed = report["iterations"], report["seed"]
    assert (first["floor"], first["parse_rate"]) == (0.0, pytest.approx(2 / 3))
    first["floor"], seed["floor"] = -5.25, -2.5
    assert "from -5.250" not in Page(run_page(report)).text, "all of the seed's outputs parse"
    seed["parse_rate"] = 0.5
    assert "from -5.250 to -2.500" in Page(run_page(report)).text


@pytest.fixture
def old(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[uuid.UUID]:
    """An iteration with a report of an earlier version."""
    monkeypatch.setenv("FORETHOUGHT_MODEL_STORE", str(tmp_path))
    get_settings.cache_clear()
    with transaction() as session:
        factories.model(session)
        [id_] = past_run(session, Status.succeeded)
        row = session.get_one(Iteration, id_)
        row.config = row.config | {"name": "old"}
    yield id_
    get_settings.cache_clear()


def test_an_earlier_versions_report_shows_what_it_has(client: TestClient, old: uuid.UUID) -> None:
    run_id = client.get(f"/iterations/{old}").json()["run_id"]
    report = client.get(f"/runs/{run_id}/report").json()
    assert report["iterations"][0]["score"] is None
    for path in (f"/iterations/{old}", f"/runs/{run_id}"):
        Page(client.get(f"{path}/report.html").text)


def test_a_page_has_the_win_rate_of_each_category(client: TestClient, runs: Any) -> None:
    text = Page(client.get(f"/iterations/{runs[2]}/report.html").text).text
    report = client.get(f"/iterations/{runs[2]}/report").json()
    [category] = report["categories"]
    rates = category["win_rate"]["seed"]
    shown = [interval(rates[kind]) for kind in ("raw", "length_controlled")]
    assert "-" not in shown
    assert interval(category["vs_seed"], signed=True) + "".join(shown) in text


def test_a_page_says_what_the_judges_counted(client: TestClient, runs: Any) -> None:
    page = Page(client.get(f"/iterations/{runs[2]}/report.html").text)
    assert "training samplesvalidationseed" in page.text
    assert "calls32424" in page.text


def test_what_is_not_there_is_said(client: TestClient, runs: Any) -> None:
    nobody = uuid.uuid4()
    for path in (f"/runs/{nobody}/report", f"/runs/{nobody}/report.html"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "run_id")
    with transaction() as session:
        unfinished = session.scalars(select(Iteration.id).where(Iteration.number == 2)).one()
    for end in ("report", "report.html"):
        assert client.get(f"/iterations/{unfinished}/{end}").status_code == 409
        assert client.get(f"/iterations/{nobody}/{end}").status_code == 404


def test_page_and_terminal_have_the_same_rows(client: TestClient, runs: Any) -> None:
    run = client.get(f"/runs/{runs[0]}/report").json()
    row = client.get(f"/iterations/{runs[2]}").json()
    for path, shown, sections in (
        (f"/runs/{runs[0]}", run_tables(run), run_sections(run)),
        (
            f"/iterations/{runs[2]}",
            iteration_table(row),
            iteration_sections(row["report"], row["timings"]),
        ),
    ):
        console = Console(file=io.StringIO(), width=2000)
        console.print(shown)
        assert isinstance(console.file, io.StringIO)
        terminal = console.file.getvalue()
        page = Page(client.get(f"{path}/report.html").text).text
        for section in sections:
            assert section.rows, f"{section.title} has no rows"
            cells = [cell for cells in section.rows for cell in cells]
            for text in (section.title, *section.header, *section.notes, *cells):
                assert text in page, f"{text!r} is not on the page {path}"
                assert text in terminal, f"{text!r} is not on the terminal {path}"
