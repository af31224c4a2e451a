"""The reader of an answer's pieces: pure, and the same however an answer is cut."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chat.answer import AnswerReader, Piece
from services.chat.schema import Tool
from services.chat.tool_calls import BEGIN, END, ToolCallReader, grammar
from shared.errors import PlatformError, Unavailable
from shared.thinking.answer_filter import AnswerFilter, fold
from shared.thinking.formats import NATIVE, Marks
from shared.vllm.answers import Choice, TokenLogprob

THOUGHT, RESPONSE = "Think: ", "Say:"
MARKS = (Marks(THOUGHT, RESPONSE), NATIVE)
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
TELLING = '<tool_call>\n{"name": "tell", "arguments": {"a": "Say: hm"}}\n</tool_call>'
PARTS = st.sampled_from(
    ["a", " ", "\n", "İ思", "Thi", "nk: ", THOUGHT, THOUGHT.upper(), RESPONSE, RESPONSE.lower(),
     "S", CALL, TELLING, "<tool_call>", "</tool_call>", "<tool", *NATIVE, "<THINK>", "<thi"]
)  # fmt: skip
TEXTS = st.lists(PARTS, max_size=12).map("".join)


def read(
    text: str,
    cuts: list[int],
    *,
    tools: bool = False,
    finish: str = "stop",
    stop: str | None = "x",
    cut_before: str = "",
) -> list[Piece]:
    """What a reader makes of `text`, cut at these offsets, one token a character."""
    calls = Marks(BEGIN, END) if tools else None
    thoughts = AnswerFilter(MARKS, cut_before=cut_before, calls=calls)
    reader = AnswerReader(thoughts, ToolCallReader() if tools else None)
    at = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(at)]
    last = len(pieces) - 1
    return [
        reader.read(
            Choice(
                piece,
                [],
                finish if i == last else None,
                stop if i == last else None,
                [TokenLogprob(c, -1.0, {}) for c in piece],
            )
        )
        for i, piece in enumerate(pieces)
    ]


def shown(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def without_thoughts(text: str, *, tools: bool = False) -> str:
    """The specification, for a whole text. What stands in a call is no thought."""
    hidden = "|".join(f"{re.escape(begin)}.*?(?:{re.escape(end)}|\\Z)" for begin, end in MARKS)
    call = r"(<tool_call>.*?(?:\n</tool_call>|\Z))" if tools else r"((?!))"
    either = re.compile(f"{call}|(?i:{hidden})", re.DOTALL | re.ASCII)
    return either.sub(lambda found: found[1] or "", text).lstrip()


def without_calls(text: str) -> str:
    return re.sub(r"<tool_call>.*?(?:\n</tool_call>\s*|\Z)", "", text, flags=re.DOTALL)


@given(TEXTS, st.lists(st.integers(0, 80)))
def test_what_stands_between_the_markers_is_not_shown(text: str, cuts: list[int]) -> None:
    assert shown(read(text, cuts)) == without_thoughts(text)


@given(TEXTS, st.lists(st.integers(0, 80)))
def test_tokens_are_given_out_as_far_as_nothing_is_hidden(text: str, cuts: list[int]) -> None:
    tokens = "".join(row.text for piece in read(text, cuts) for row in piece.logprobs)
    begins = "|".join(re.escape(begin) for begin, _ in MARKS)
    assert tokens == re.split(begins, text, flags=re.IGNORECASE | re.ASCII)[0]


def test_tokens_of_broken_characters_let_none_of_a_thought_out() -> None:
    reader = AnswerReader(AnswerFilter(MARKS), None)
    text = "\N{REPLACEMENT CHARACTER}" * 12 + "<think>secret</think>4"
    # vLLM writes nothing for a byte that is no character, alone or after others.
    tokens = [""] * 12 + ["<think>", "secret", "</think>", "4"]
    piece = reader.read(Choice(text, [], "stop", "x", [TokenLogprob(t, -1.0, {}) for t in tokens]))
    assert "".join(row.text for row in piece.logprobs) == ""
    assert piece.text.endswith("4")


def test_tokens_may_lack_the_space_before_them() -> None:
    reader = AnswerReader(AnswerFilter(MARKS), None)
    tokens = [TokenLogprob(t, -1.0, {}) for t in ("It", "is", "4")]
    piece = reader.read(Choice(" It is 4", [], "stop", None, tokens))
    assert [row.text for row in piece.logprobs] == ["It", "is", "4"]


@given(TEXTS, st.lists(st.integers(0, 80)))
def test_cuts_change_no_call(text: str, cuts: list[int]) -> None:
    def calls(pieces: list[Piece]) -> list[tuple[str, str]]:
        return [(call.name, call.arguments) for piece in pieces for call in piece.calls]

    whole, cut = read(text, [], tools=True), read(text, cuts, tools=True)
    assert shown(whole) == shown(cut)
    assert calls(whole) == calls(cut)
    assert shown(whole) == without_calls(without_thoughts(text, tools=True))


@given(TEXTS, st.lists(st.integers(0, 80)), st.booleans())
def test_a_thought_cut_short_is_hidden_to_its_own_end(
    text: str, cuts: list[int], tools: bool
) -> None:
    """Which does not stand in the arguments of a call."""
    searched = fold(text).replace(fold(TELLING), "-" * len(TELLING)) if tools else fold(text)
    at = searched.find(fold(RESPONSE))
    expected = without_thoughts(text[at + len(RESPONSE) :] if at >= 0 else text, tools=tools)
    found = shown(read(text, cuts, tools=tools, cut_before=RESPONSE))
    assert found == (without_calls(expected) if tools else expected)


def test_behind_a_marker_of_its_own_no_token_is_given_out() -> None:
    pieces = read(f"{RESPONSE} 42 and more", [5], cut_before=RESPONSE)
    assert (shown(pieces), [piece.logprobs for piece in pieces]) == ("42 and more", [[], []])


@pytest.mark.parametrize("words", ["<think>x</think>y", "<think>", THOUGHT, "</tool_call>"])
def test_an_argument_may_hold_any_text(words: str) -> None:
    call = CALL.replace('"a": 1', f'"a": "{words}"')
    [piece] = read(f"So. {call}", [], tools=True)
    assert (piece.text, piece.calls[0].arguments) == ("So. ", f'{{"a": "{words}"}}')


@pytest.mark.parametrize("number", ["12345678901234567890123", "1e400", '"\\ud83d"'])
def test_arguments_stay_as_they_were_written(number: str) -> None:
    [piece] = read(CALL.replace("1}", f"{number}}}"), [], tools=True)
    assert piece.calls[0].arguments == f'{{"a": {number}}}'


def test_a_call_inside_of_a_thought_is_none() -> None:
    [piece] = read(f"<think>{CALL}</think>So.", [], tools=True)
    assert (piece.text, piece.calls) == ("So.", [])


def test_a_call_is_taken_out_of_the_text() -> None:
    [piece] = read(f"Let me see. {CALL}\n{CALL}", [], tools=True)
    assert piece.text == "Let me see. "
    assert [(c.name, c.arguments) for c in piece.calls] == [("add", '{"a": 1}')] * 2
    assert piece.finish_reason == "tool_calls"


def test_a_call_cut_off_is_dropped() -> None:
    [piece] = read(f"So. {CALL[:30]}", [], tools=True, finish="length", stop=None)
    assert (piece.text, piece.calls, piece.finish_reason) == ("So. ", [], "length")


@pytest.mark.parametrize("text", ["", "  \n", THOUGHT + "hm"])
def test_an_answer_without_a_word_is_an_error(text: str) -> None:
    with pytest.raises(PlatformError, match="empty answer"):
        read(text, [], stop=None)


def test_an_answer_that_its_stop_string_leaves_empty_is_none() -> None:
    assert read("", [])[-1].finish_reason == "stop"


def test_an_answer_that_the_engine_gave_up_is_not_whole() -> None:
    with pytest.raises(Unavailable, match="cut off"):
        read("Forty", [], finish="abort", stop=None)


def test_a_grammar_holds_each_tool_with_its_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tool = Tool.model_validate(
        {"type": "function", "function": {"name": "add", "parameters": schema}}
    )
    made = grammar([tool], required=True, parallel=False)["format"]
    assert made["at_least_one"]
    assert made["stop_after_first"]
    [tag] = made["tags"]
    assert tag["begin"] + '{"a": 1}' + tag["end"] == CALL
    assert tag["content"]["json_schema"] == schema
