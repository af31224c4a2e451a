import time
import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from py3langid.langid import MODEL_FILE, LanguageIdentifier
from pydantic import TypeAdapter

from shared.schemas.checks import LANGUAGES, Check
from shared.schemas.judges import VerifierSpec
from shared.schemas.requests import JudgeItem
from workers.judge.checks.math_answer import MathAnswers
from workers.judge.checks.verifier import Verifier
from workers.judge.kinds import CannotJudge, JudgeContext, make_judge

BULLETS = "Here:\n- one\n* two\n  • three\n-not one\n**bold**"
NUMBERS = "1. one\n2) two\n 10. ten\n3 apples\n4.5 litres"
FENCED = '```json\n{"a": 1, "b": [2]}\n```'

# kind, its fields, a response that satisfies it, one that doesn't
TABLE: list[tuple[str, dict[str, Any], str, str]] = [
    ("words", {"at_most": 3}, "Don't stop well-known-now", "one two three four"),
    ("words", {"at_least": 3}, "It costs 3.50", "-- two words --"),
    ("words", {"at_least": 2, "at_most": 2}, "two words.", "one"),
    ("sentences", {"at_least": 2, "at_most": 2}, "Dr. Ho paid 3.50. Why?!", "One. Two. Three."),
    ("sentences", {"at_most": 1}, 'She said "Go!"', "First line\nSecond line"),
    ("sentences", {"at_least": 2}, "- First\n- Second", "1. Only this"),
    ("sentences", {"at_least": 2}, "はい。そうです。", "..."),
    ("paragraphs", {"at_least": 2, "at_most": 2}, "\none\nmore\n\n \ntwo\n", "one\ntwo"),
    ("bullets", {"at_least": 3, "at_most": 3}, BULLETS, NUMBERS),
    ("numbered", {"at_least": 3, "at_most": 3}, NUMBERS, BULLETS),
    ("keyword", {"word": "Stone"}, "a stone.", "stones, Stonehenge and milestone"),
    ("keyword", {"word": "a.b", "times": 2}, "a.b A.B", "a.b axb"),
    ("keyword", {"word": "new york"}, "In New York.", "new, york"),
    ("forbidden", {"words": ["the", "a"]}, "then another", "Not THE one"),
    ("starts_with", {"text": "Once upon"}, "  once upon a time", "So once upon a time"),
    ("ends_with", {"text": "The end."}, "That was it. The END.\n", "The end. Or not"),
    ("case", {"case": "upper"}, "ÄPFEL, 3!", "ÄPFEL and"),
    ("case", {"case": "lower"}, "all low: 3", "123"),
    ("json", {}, "[1, 2]", "{'a': 1}"),
    ("json", {"keys": ["a", "b"]}, FENCED, '{"a": 1}'),
    ("json", {"keys": ["a"]}, ' {"a": null} ', '["a"]'),
    ("json", {}, "null", "NaN"),
    ("language", {"code": "en"}, "The weather is nice today.", "Das Wetter ist heute schön."),
    ("language", {"code": "fr"}, "Bonjour, je suis un chat.", "1, 2, 3"),
    ("no_commas", {}, "one two", "one, two"),
    ("title", {}, "<<My title>>\nText", "<< >> <title> <<a\nb>>"),
    ("math", {"answer": "42"}, "The answer is 42.", "The answer is 43."),
    ("math", {"answer": "42"}, "7 times 6 is **42**", "First 42 and then 7"),
    ("math", {"answer": "42"}, r"Not \boxed{3}, it is \boxed{42}. See 5.", r"42 or \boxed{43}"),
    ("math", {"answer": "1/2"}, "It is 0.5", "two"),
    ("math", {"answer": r"\frac{1}{2}"}, "so 1/2.", "so 2"),
    ("math", {"answer": "1000"}, "He has 1,000 coins.", "He has 1,001 coins."),
    ("math", {"answer": "-5"}, "x = -5", "x = 5"),
    ("math", {"answer": "$x+1$"}, "It is $1+x$.", "It is $x$."),
]


@pytest.fixture(scope="module")
def verifier() -> Verifier:
    return Verifier(VerifierSpec(), JudgeContext(uuid.uuid4()))


def item(response: str, *checks: dict[str, Any]) -> JudgeItem:
    return JudgeItem.model_validate(
        {"instruction": "Do it.", "response": response, "checks": checks}
    )


@pytest.mark.parametrize(("kind", "fields", "good", "bad"), TABLE)
def test_each_kind(
    verifier: Verifier, kind: str, fields: dict[str, Any], good: str, bad: str
) -> None:
    check = {"kind": kind, **fields}
    right, wrong = verifier.score([item(good, check), item(bad, check)])
    assert (right.value, wrong.value) == (1.0, 0.0)
    assert right.details == {"satisfied": [True], "kinds": [kind]}


def test_the_table_has_every_kind() -> None:
    schema = TypeAdapter(Check).json_schema()
    assert {row[0] for row in TABLE} == set(schema["discriminator"]["mapping"])


def test_score_is_the_share_of_satisfied_checks(verifier: Verifier) -> None:
    checks: list[dict[str, Any]] = [
        {"kind": "no_commas"},
        {"kind": "words", "at_most": 1},
        {"kind": "title"},
    ]
    (score,) = verifier.score([item("two words", *checks)])
    assert score.value == pytest.approx(1 / 3)
    assert score.details["satisfied"] == [True, False, False]


def test_an_empty_response_satisfies_nothing(verifier: Verifier) -> None:
    checks: list[dict[str, Any]] = [{"kind": "no_commas"}, {"kind": "words", "at_most": 5}]
    assert verifier.score([item(" \n", *checks)])[0].value == 0


def test_a_prompt_without_checks_is_an_error(verifier: Verifier) -> None:
    with pytest.raises(CannotJudge, match=r"'Do it\.' has no checks"):
        verifier.score([item("Done.")])


def test_the_languages_that_a_check_takes_are_those_that_are_told() -> None:
    told = LanguageIdentifier.from_model_file(MODEL_FILE).nb_classes
    assert sorted(LANGUAGES) == sorted({code for code in told if len(code) == 2})


EVERY_CHECK = [{"kind": kind, **fields} for kind, fields, _, _ in TABLE if kind != "math"][:32]


# What a JudgeItem takes: NUL and lone surrogates are refused before any judge.
text_st = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=300)


@given(text_st)
def test_any_text_has_a_score(verifier: Verifier, response: str) -> None:
    (score,) = verifier.score([item(response, *EVERY_CHECK)])
    assert score.value is not None
    assert 0 <= score.value <= 1
    assert len(score.details["satisfied"]) == len(EVERY_CHECK)
    assert verifier.score([item(response, *EVERY_CHECK)]) == [score]


@pytest.mark.parametrize("answer", ["???", "!", "$$", "9^{9^{9^9}}"])
def test_a_reference_that_cannot_be_read_gives_no_score(verifier: Verifier, answer: str) -> None:
    checks = [{"kind": "math", "answer": answer}, {"kind": "no_commas"}]
    (score,) = verifier.score([item("It is 42.", *checks)])
    assert score.value is None
    assert score.details["reason"] == "unreadable_reference"


maths_st = st.lists(
    st.sampled_from(
        [*"12x+-*/(){}[]=$%,.| \n", "42", r"\frac", r"\sqrt", r"\boxed{", r"\text{", "answer is "]
    ),
    max_size=12,
).map("".join)


@settings(max_examples=60)
@given(maths_st | text_st)
def test_any_text_has_a_math_verdict(verifier: Verifier, response: str) -> None:
    (score,) = verifier.score([item(response, {"kind": "math", "answer": "42"})])
    assert score.value in (0, 1)


@pytest.mark.parametrize(
    "response",
    [
        "[" * 100_000,
        "{" * 2000,
        "<<" * 5000,
        "1. " * 5000,
        "'" * 20_000,
        '"a": ' * 9999,
        "Hi!!!! " * 5000,
        "x" + " \n" * 20_000 + "x",
        "9" * 9000,
    ],
    ids=lambda text: ascii(text[:4]),
)
def test_hostile_text_is_scored_quickly(verifier: Verifier, response: str) -> None:
    checks = [*EVERY_CHECK[:-1], {"kind": "math", "answer": "42"}]
    start = time.process_time()
    verifier.score([item(response, *checks)])
    assert time.process_time() - start < 2


def test_an_endless_computation_ends_unsatisfied() -> None:
    answers = MathAnswers()
    start = time.monotonic()
    assert not answers.states("It is 9**9**9", "42")
    assert time.monotonic() - start < 60
    assert answers.states("It is 42", "42")  # by a new child


def test_registry() -> None:
    judge = make_judge(VerifierSpec(), JudgeContext(uuid.uuid4()))
    assert isinstance(judge, Verifier)
    assert judge.name == "verifier/1"
