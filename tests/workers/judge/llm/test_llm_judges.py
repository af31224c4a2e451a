"""LLM judges against a server that answers as a script says."""

import asyncio
import logging
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select
from starlette.applications import Starlette
from starlette.routing import Route

from shared import log
from shared.db.engine import transaction
from shared.db.tables import JobKind, JudgeAnswer
from shared.jobs.job import NewShard, submit_job
from shared.schemas.judges import AnySpec, judge_spec
from shared.schemas.requests import JudgeItem
from shared.vllm.answers import EngineFailed
from tests.support.judge_server import JudgeServer, Messages, Reply, running
from tests.support.scripted_engine import serving
from workers.judge.kinds import Judge, JudgeContext, make_judge
from workers.judge.llm import remote
from workers.judge.llm.remote import RateLimiter
from workers.leases import StageError

KEY = "sk-canary-1234"
ANSWERS = re.compile(r"\[The Start of Assistant.*?Answer\]\n(.*?)\n\[The End", re.DOTALL)
Script = Callable[[Messages], Reply | str]


def item(response: str, instruction: str = "How?") -> JudgeItem:
    return JudgeItem(instruction=instruction, response=response)


def longer_wins(messages: Messages) -> str:
    first, second = ANSWERS.findall(messages[-1]["content"])
    return f"I compared them. [[{'A' if len(first) > len(second) else 'B'}]]"


@contextmanager
def judging(script: Script, spec: Mapping[str, object]) -> Iterator[tuple[Judge, JudgeServer]]:
    server = JudgeServer(script)
    with running(server) as url:
        if spec["kind"] == "openai":
            spec = {**spec, "base_url": f"{url}/v1"}
        yield make_judge(judge_spec(spec), JudgeContext(a_job(judge_spec(spec)), url)), server


def a_job(spec: AnySpec) -> uuid.UUID:
    job_id = uuid.uuid4()
    if spec.kind != "openai":
        return job_id
    with transaction() as session:
        params = {"judge": spec.model_dump(mode="json")}
        submit_job(session, JobKind.judge, params, [NewShard({})], job_id=job_id)
    return job_id


PAIRWISE = {"kind": "pairwise", "model": "some"}
POINTWISE = {"kind": "pointwise_llm", "model": "some"}
MIXED = {
    "kind": "mixture",
    "judges": [
        {"judge": {"kind": "verifier"}, "weight": 1},
        {"judge": POINTWISE, "weight": 2},
    ],
}
REMOTE = {"kind": "openai", "model": "some"}


def choice(text: object, *rows: str, finish: str | None = "stop") -> dict[str, Any]:
    """Of an answer, with tokens that were sure."""
    logprobs = [
        {"token": t, "logprob": 0.0, "top_logprobs": [{"token": t, "logprob": 0.0}]} for t in rows
    ]
    return {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": text},
        "logprobs": {"content": logprobs} if rows else None,
    }


class TestPairwise:
    def test_the_order_of_the_ratings_is_that_of_the_verdicts(self) -> None:
        texts = ["a", "aaa", "aa", "aaaa"]
        with judging(longer_wins, PAIRWISE) as (judge, server):
            scores = judge.score([item(t) for t in texts] + [item("b", "Why?"), item("bb", "Why?")])
        values = [score.value for score in scores]
        assert None not in values
        assert sorted(range(4), key=lambda i: values[i] or 0) == [0, 2, 1, 3]
        assert (values[4] or 0) < (values[5] or 0)
        assert sum(v or 0 for v in values[:4]) == pytest.approx(0, abs=1e-6)
        assert len(server.asked) == 4 * 3 + 2 * 1
        assert scores[0].counts["calls"] == 12
        assert scores[0].counts["verdict_first"] == scores[0].counts["verdict_second"] == 6
        assert (scores[0].counts["orders_agree"], scores[0].counts["orders_differ"]) == (6, 0)

    def test_a_share_of_the_comparisons(self) -> None:
        with judging(longer_wins, {**PAIRWISE, "share": 0.34}) as (judge, server):
            judge.score([item("a" * n) for n in range(1, 9)])
        assert len(server.asked) == 19

    def test_equal_texts_are_asked_about_once(self) -> None:
        with judging(longer_wins, PAIRWISE) as (judge, server):
            scores = judge.score([item("a"), item("aa"), item("a")])
            assert scores[0].value == scores[2].value
            assert len(server.asked) == 2
            [alone] = judge.score([item("only")])
        assert alone.value == 0
        assert len(server.asked) == 2

    @pytest.mark.parametrize(
        "reply",
        ["I like both.", "", Reply("[[A]]", finish="length"), Reply(status=413)],
        ids=["no verdict", "empty", "cut off", "too long"],
    )
    def test_what_has_no_verdict_has_no_score(self, reply: Reply | str) -> None:
        with judging(lambda _: reply, PAIRWISE) as (judge, _):
            scores = judge.score([item("a"), item("b")])
            shares = judge.win_shares([item("a")], [[item("b")]])
        assert [score.value for score in scores] == [None, None]
        assert [share.value for share in shares] == [None]
        assert scores[0].details["reason"] == "no_verdict"
        assert scores[0].counts["verdict_unreadable"] == 2

    def test_shares_of_wins_are_asked_in_both_orders(self) -> None:
        with judging(lambda _: "[[A]]", PAIRWISE) as (judge, _):
            [share] = judge.win_shares([item("a")], [[item("b"), item("c")]])
        assert share.value == 0.5  # the judge always says the first
        assert (share.counts["orders_agree"], share.counts["orders_differ"]) == (0, 2)
        with judging(longer_wins, PAIRWISE) as (judge, server):
            shares = judge.win_shares(
                [item("aa"), item("a")], [[item("b"), item("aa")], [item("bbb")]]
            )
            assert [share.value for share in shares] == [0.75, 0.0]
            assert len(server.asked) == 4

    def test_an_engine_that_fails_is_for_the_worker(self) -> None:
        with (
            judging(lambda _: Reply(status=500), PAIRWISE) as (judge, _),
            pytest.raises(EngineFailed),
        ):
            judge.score([item("a"), item("b")])


class TestPointwise:
    def test_the_mean_of_several_scores(self) -> None:
        replies = iter(["Fine. Score: 7", "Score: 8", "I cannot say."])
        with judging(lambda _: next(replies), {**POINTWISE, "samples": 3}) as (judge, server):
            [score] = judge.score([item("a")])
        assert score.value == 7.5
        assert score.counts["unreadable"] == 1
        assert {asked["temperature"] for asked in server.asked} == {1.0}
        assert {asked["seed"] for asked in server.asked} == {0, 1, 2}

    def test_the_expected_score(self) -> None:
        reply = Reply(
            "Score: 7", top={" 7": math.log(0.2), "7": math.log(0.3), " 9": math.log(0.5)}
        )
        with judging(lambda _: reply, {**POINTWISE, "expected": True}) as (judge, server):
            [score] = judge.score([item("a")])
        assert score.value == pytest.approx(8)
        asked = server.asked[0]["messages"][0]["content"]
        assert "from 0 to 9." in asked
        assert "10" not in asked

    @pytest.mark.parametrize("number", [("1", "0"), ("-", "1")])
    def test_an_expected_score_is_one_digit(self, number: tuple[str, str]) -> None:
        """Of many tokenizers 10 is two tokens, of which the first is the score 1."""
        said = choice(f"Score: {''.join(number)}", "Score", ":", " ", *number)
        reply = Reply(changes={"choices": [said]})
        with judging(lambda _: reply, {**POINTWISE, "expected": True}) as (judge, _):
            [score] = judge.score([item("a")])
        assert (score.value, score.counts["unreadable"]) == (None, 1)

    def test_a_rubric_of_ones_own(self) -> None:
        with judging(lambda _: "Score: 1", {**POINTWISE, "rubric": "Only rhymes count."}) as (j, s):
            j.score([item("a")])
        assert "Only rhymes count." in s.asked[0]["messages"][0]["content"]

    def test_nonsense_has_no_score(self) -> None:
        with judging(lambda _: "Score: 99", POINTWISE) as (judge, _):
            [score] = judge.score([item("a")])
        assert score.value is None


@pytest.mark.usefixtures("clean_database")
class TestRemote:
    @pytest.fixture(autouse=True)
    def _key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TEST_API_KEY", KEY)
        monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)

    def test_it_judges_with_the_key_and_says_what_it_cost(self) -> None:
        spec = {**REMOTE, "pairwise": {}, "price_in": 10, "price_out": 20}
        with judging(longer_wins, spec) as (judge, server):
            scores = judge.score([item("a"), item("aa")])
        assert {asked["key"] for asked in server.asked} == {f"Bearer {KEY}"}
        words = len(["I", "compared", "them.", "[[A]]"])
        assert scores[0].counts["dollars"] == pytest.approx((200 * 10 + 2 * words * 20) / 1e6)
        assert judge.name == "openai/pairwise/1"
        assert judge.versions()["judge_model"] == "some"

    def test_what_was_answered_is_not_asked_again(self) -> None:
        fails, good = True, 0

        def script(messages: Messages) -> Reply | str:
            nonlocal good
            good += 1
            return Reply(status=401) if fails and good > 2 else longer_wins(messages)

        spec = {**REMOTE, "pairwise": {}, "concurrency": 1}
        with judging(script, spec) as (judge, server):
            with pytest.raises(StageError):
                judge.score([item("a"), item("aa"), item("aaa")])
            with transaction() as session:
                answered = len(session.scalars(select(JudgeAnswer)).all())
            before = len(server.asked)
            fails = False
            judge.score([item("a"), item("aa"), item("aaa")])
            assert answered == 2
            assert len(server.asked) == before + 6 - answered

    def test_what_passes_is_tried_again(self) -> None:
        replies = iter([Reply(status=429, headers={"retry-after": "0.1"}), Reply(status=503)])
        spec = {**REMOTE, "pointwise": {}}
        with judging(lambda _: next(replies, "Score: 3"), spec) as (judge, server):
            [score] = judge.score([item("a")])
        assert score.value == 3
        assert len(server.asked) == 3

    @pytest.mark.parametrize(
        ("status", "param"),
        [(401, "judge.base_url"), (404, "judge.model"), (400, "judge"), (402, "judge")],
    )
    def test_a_refusal_names_its_field_and_not_the_key(
        self, status: int, param: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        spec = {**REMOTE, "pointwise": {}}
        with (
            judging(lambda _: Reply(status=status), spec) as (judge, server),
            pytest.raises(StageError) as refused,
        ):
            judge.score([item("canary-in-a-response")])
        assert refused.value.error["param"] == param
        assert not refused.value.retry
        assert len(server.asked) == 1
        assert KEY not in f"{refused.value.error} {caplog.text}"
        assert "canary-in-a-response" not in str(refused.value.error)

    def test_no_key_no_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with judging(lambda _: "Score: 1", {**REMOTE, "pointwise": {}}) as (judge, server):
            monkeypatch.delenv("TEST_API_KEY")
            with pytest.raises(StageError, match="TEST_API_KEY"):
                judge.score([item("a")])
        assert not server.asked

    def test_another_address_is_not_called(self) -> None:
        spec = judge_spec({**REMOTE, "pointwise": {}, "base_url": "http://169.254.169.254/v1"})
        judge = make_judge(spec, JudgeContext(uuid.uuid4()))
        with pytest.raises(StageError, match="FORETHOUGHT_JUDGE_ADDRESSES"):
            judge.score([item("a")])

    def test_two_of_a_mixture_are_two(self) -> None:
        both: list[dict[str, object]] = [
            {**REMOTE, "model": name, "pointwise": {}} for name in ("one", "two")
        ]
        with judging(lambda _: "Score: 1", both[0]) as (_, server):
            address = os.environ["FORETHOUGHT_JUDGE_ADDRESSES"].split()[1].partition("=")[0]
            parts = [{"judge": {**spec, "base_url": address}} for spec in both]
            spec = judge_spec({"kind": "mixture", "judges": parts})
            make_judge(spec, JudgeContext(a_job(judge_spec(both[0])))).score([item("a")])
        assert [asked["model"] for asked in server.asked] == ["one", "two"]

    def test_a_retry_logs_nothing_that_was_asked(self, capfd: pytest.CaptureFixture[str]) -> None:
        log.configure("test")
        replies = iter([Reply(status=503, headers={"retry-after": "0"})])
        with judging(lambda _: next(replies, "Score: 3"), {**REMOTE, "pointwise": {}}) as (j, _):
            j.score([item("canary-in-a-response")])
        logged = capfd.readouterr()
        assert "trying again" in logged.err
        assert "canary" not in logged.err + logged.out

    def test_a_question_too_long_is_one_without_a_score(self) -> None:
        reply = Reply(status=400, code="context_length_exceeded")
        with judging(lambda _: reply, {**REMOTE, "pointwise": {}}) as (judge, _):
            [score] = judge.score([item("a")])
        assert score.value is None
        assert score.counts["unanswered_too_long"] == 1

    def test_what_takes_too_long_is_tried_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(remote, "REMOTE_SECONDS", 0.3)
        replies = iter([Reply("Score: 9", seconds=2)])
        with judging(lambda _: next(replies, "Score: 3"), {**REMOTE, "pointwise": {}}) as (j, _):
            [score] = j.score([item("a")])
        assert score.value == 3

    def test_what_always_takes_too_long_is_said_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(remote, "REMOTE_SECONDS", 0.3)
        monkeypatch.setattr(remote, "ATTEMPTS", 2)
        slow = Reply("Score: 9", seconds=1)
        with (
            judging(lambda _: slow, {**REMOTE, "pointwise": {}}) as (judge, server),
            pytest.raises(StageError, match=r"2 times in a row \(APITimeoutError") as failed,
        ):
            judge.score([item("a")])
        assert failed.value.retry
        assert len(server.asked) == 2

    def test_an_answer_without_choices_is_tried_again(self) -> None:
        replies = iter([Reply(empty=True)])
        with judging(lambda _: next(replies, "Score: 3"), {**REMOTE, "pointwise": {}}) as (j, _):
            [score] = j.score([item("a")])
        assert score.value == 3

    @pytest.mark.parametrize(
        "changes",
        [
            "<html>Welcome</html>",
            '{"choices": [',
            {"choices": [{"index": 0, "text": "Score: 1"}]},
            {"choices": 5},
            {"choices": [None]},
            {"choices": [{"index": 0, "message": "Score: 1"}]},
            {"choices": [choice(["Score: 1"])]},
            {"choices": [choice(1)]},
            {"choices": [choice("Score: 1", finish="abort")]},
            {"usage": "much"},
            {"usage": {"prompt_tokens": "many"}},
        ],
    )
    def test_what_is_no_completion_is_tried_again(self, changes: dict[str, Any] | str) -> None:
        replies = iter([Reply("Score: 1", changes=changes)])
        with judging(lambda _: next(replies, "Score: 3"), {**REMOTE, "pointwise": {}}) as (j, _):
            [score] = j.score([item("a")])
        assert score.value == 3

    @pytest.mark.parametrize("finish", ["eos", None])
    def test_ends_of_other_names_are_ends(self, finish: str | None) -> None:
        reply = Reply(changes={"choices": [choice("Score: 3", finish=finish)]})
        with judging(lambda _: reply, {**REMOTE, "pointwise": {}}) as (judge, _):
            [score] = judge.score([item("a")])
        assert score.value == 3

    @pytest.mark.parametrize(
        ("said", "why"),
        [
            (choice("Score: 3", finish="length"), "cut"),
            (choice("Score: 3", finish="content_filter"), "filtered"),
            (choice(None), "empty"),
            (choice(""), "empty"),
        ],
    )
    def test_why_an_answer_has_no_text_is_counted(self, said: dict[str, Any], why: str) -> None:
        reply = Reply(changes={"choices": [said]})
        with judging(lambda _: reply, {**REMOTE, "pointwise": {}}) as (judge, _):
            [score] = judge.score([item("a")])
        assert (score.value, score.counts[f"unanswered_{why}"]) == (None, 1)

    def test_one_question_that_always_fails_ends_no_job(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote, "ATTEMPTS", 2)

        def script(messages: Messages) -> Reply | str:
            fails = ANSWERS.findall(messages[-1]["content"]) == ["hard"]
            return Reply(status=500) if fails else "Score: 3"

        with judging(script, {**REMOTE, "pointwise": {}, "concurrency": 3}) as (judge, _):
            scores = judge.score([item("hard"), item("a"), item("b")])
        assert [score.value for score in scores] == [None, 3, 3]
        assert scores[0].counts["unanswered_failed"] == 1

    @pytest.mark.parametrize("headers", [{}, {"retry-after": "0"}, {"retry-after": "nan"}])
    @pytest.mark.parametrize("status", [408, 409, 429, 500])
    def test_what_never_passes_is_for_another_attempt(
        self, status: int, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote, "ATTEMPTS", 2)
        with (
            judging(
                lambda _: Reply(status=status, headers=headers), {**REMOTE, "pointwise": {}}
            ) as (j, server),
            pytest.raises(StageError, match=rf"2 times in a row \(status {status}") as failed,
        ):
            j.score([item("a")])
        assert failed.value.retry
        assert len(server.asked) == 2

    def test_usage_may_be_missing(self) -> None:
        for usage in (None, {}, {"prompt_tokens": None}):
            reply = Reply("Score: 3", changes={"usage": usage})
            with judging(partial(_same, reply), {**REMOTE, "pointwise": {}}) as (judge, _):
                [score] = judge.score([item("a")])
            assert (score.value, score.counts["prompt_tokens"]) == (3, 0)

    def test_log_probabilities_may_be_none(self) -> None:
        spec = {**REMOTE, "pointwise": {"expected": True}}
        said = choice("3", "3")
        said["logprobs"]["content"][0]["top_logprobs"] = None
        reply = Reply(changes={"choices": [said]})
        with judging(lambda _: reply, spec) as (judge, _):
            [score] = judge.score([item("a")])
        assert score.value is None

    def test_it_is_not_followed_to_another_address(self) -> None:
        elsewhere = JudgeServer(lambda _: "Score: 9")
        route = Route("/", elsewhere.chat, methods=["POST"])
        with serving(Starlette(routes=[route])) as url:
            reply = Reply(status=307, headers={"location": url})
            with (
                judging(lambda _: reply, {**REMOTE, "pointwise": {}}) as (judge, _),
                pytest.raises(StageError),
            ):
                judge.score([item("a")])
        assert not elsewhere.asked

    def test_a_model_without_sampling(self) -> None:
        spec = {**REMOTE, "pointwise": {}, "sends_sampling": False}
        with judging(lambda _: "Score: 3", spec) as (judge, server):
            judge.score([item("a")])
        assert not {"temperature", "seed"} & set(server.asked[0])


def _same(reply: Reply, _: Messages) -> Reply:
    return reply


def test_a_pace_holds_across_loops() -> None:
    limiter = RateLimiter(per_minute=600)
    began = time.monotonic()
    for _ in range(2):
        asyncio.run(_turns(limiter))
    assert 0.45 < time.monotonic() - began < 3


async def _turns(limiter: RateLimiter) -> None:
    await asyncio.gather(*(limiter.acquire() for _ in range(3)))


class TestMixture:
    @staticmethod
    def script(messages: Messages) -> str:
        [answer] = ANSWERS.findall(messages[-1]["content"])
        return f"Score: {min(len(answer), 10)}"

    def test_each_is_normalised_over_an_instructions_responses(self) -> None:
        checks = [{"kind": "words", "at_most": 1}]
        checked = [
            JudgeItem.model_validate({"instruction": "C?", "response": r, "checks": checks})
            for r in ("a", "a b c")
        ]
        with judging(self.script, MIXED) as (judge, _):
            scores = judge.score([*checked, item("a"), item("aa"), item("aaa")])
        assert [s.value for s in scores[:2]] == [
            pytest.approx((1 - 2) / 3),
            pytest.approx((-1 + 2) / 3),
        ]
        # The verifier has no say without checks.
        assert [s.value for s in scores[2:]] == [
            pytest.approx(-(1.5**0.5)),
            pytest.approx(0),
            pytest.approx(1.5**0.5),
        ]
        assert scores[0].details["parts"][1]["raw"] == 1
        assert judge.versions()["judge"] == "mixture/1"

    def test_shares_of_wins_are_weighted(self) -> None:
        checks = [{"kind": "words", "at_most": 1}]
        mine, theirs = (
            JudgeItem.model_validate({"instruction": "C?", "response": r, "checks": checks})
            for r in ("a", "a b c")
        )
        with judging(self.script, MIXED) as (judge, _):
            [share] = judge.win_shares([mine], [[theirs]])
        assert share.value == pytest.approx(1 / 3)

    def test_one_that_a_part_cannot_score_has_no_score(self) -> None:
        def script(messages: Messages) -> str:
            [answer] = ANSWERS.findall(messages[-1]["content"])
            return "who knows" if answer == "aa" else "Score: 5"

        with judging(script, MIXED) as (judge, _):
            scores = judge.score([item("a"), item("aa"), item("aaa")])
        assert [score.value for score in scores] == [0.0, None, 0.0]
