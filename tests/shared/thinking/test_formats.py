import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.thinking.formats import FORMATS, GENERIC, NONE, SPECIFIC, THINK, ThoughtFormat

MARKERS = ["<R>", "Here is my response:", "</think>", "aba"]
THINKING = [
    ThoughtFormat(name="aba", response_marker="aba"),  # overlaps with itself
    *(f for f in FORMATS.values() if f.thinks),
]
# Text of parts of markers: plain text hardly ever holds one.
output_st = st.lists(
    st.text(max_size=8) | st.sampled_from([*MARKERS, "<R", "R>", "ab", " ", "\n", "\u3000"]),
    max_size=8,
).map("".join)
thinking = pytest.mark.parametrize("format_", THINKING, ids=lambda f: f.name)


@thinking
@given(output=output_st)
def test_response_is_what_follows_the_first_marker(format_: ThoughtFormat, output: str) -> None:
    thought, marker, rest = output.partition(format_.response_marker)
    start = format_.response_start(output)
    if not marker or not rest.strip():
        assert start is None
        return
    assert start is not None
    assert output[start:] == rest.lstrip()
    assert start >= len(thought) + len(marker)


@thinking
@given(output=output_st)
def test_offset_is_inside_the_output_and_on_ink(format_: ThoughtFormat, output: str) -> None:
    start = format_.response_start(output)
    if start is not None:
        assert 0 < start < len(output)
        assert not output[start].isspace()


@thinking
@given(thought=output_st, gap=st.sampled_from(["", " ", "\n\n", "\t"]), response=output_st)
def test_a_thought_and_a_response_come_apart_again(
    format_: ThoughtFormat, thought: str, gap: str, response: str
) -> None:
    marker = format_.response_marker
    assume((thought + marker).index(marker) == len(thought))
    assume(response.strip())
    output = thought + marker + gap + response
    start = format_.response_start(output)
    assert start is not None
    assert output[start:] == response.lstrip()


@given(output_st)
def test_without_a_thought_everything_is_the_response(output: str) -> None:
    start = NONE.response_start(output)
    assert start is None if not output.strip() else output[start:] == output.lstrip()


@given(query=st.text())
@pytest.mark.parametrize("format_", FORMATS.values(), ids=lambda f: f.name)
def test_prompt_holds_the_query_as_it_is(format_: ThoughtFormat, query: str) -> None:
    before, after = format_.template.split("{query}")
    assert format_.prompt(query) == before + query + after


@pytest.mark.parametrize("query", ["{query}", "{0} {} {x!r}", "{{", "}", "%s %(query)s", r"\1"])
def test_braces_in_a_query_mean_nothing(query: str) -> None:
    assert SPECIFIC.prompt(query).endswith(f"User query: {query}")


def test_prompts_are_those_of_the_paper() -> None:
    assert GENERIC.prompt("Why?") == (
        "Respond to the following user query in a comprehensive and detailed way. You can write "
        "down your thought process before responding. Write your thoughts after "
        '"Here is my thought process:" and write your response after "Here is my response:".\n\n'
        "User query: Why?"
    )
    assert SPECIFIC.prompt("Why?") == (
        "Respond to the following user query in a comprehensive and detailed way. But first write "
        "down your internal thoughts. This must include your draft response and its evaluation. "
        'After this, write your final response after "<R>".\n\nUser query: Why?'
    )


def test_prefix_is_what_the_turn_begins_with() -> None:
    assert THINK.prefix == "<think>"
    assert GENERIC.prefix == ""
    assert not NONE.thinks


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"template": "no place for it"}, "must contain"),
        ({"thought_marker": "T:"}, "is required with"),
        ({"response_marker": "R:", "prefill": True}, "needs a thought_marker"),
        ({"response_marker": "R: "}, "white space"),
        ({"thought_marker": "<R>", "response_marker": "R"}, "a part of the thought_marker"),
        ({"marker": "R:"}, "Extra inputs"),
    ],
)
def test_unusable_formats_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ThoughtFormat.model_validate({"name": "mine", **fields})
