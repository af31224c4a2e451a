"""Which tokens are trained on, and which pairs are left out."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from tests.support import tiny_model
from workers.train.pairs import (
    ChatTokens,
    Drop,
    TextPair,
    TrainError,
    checked_pair,
    counts_of,
    read_pairs,
    tokenize_pairs,
)

TOKENIZER = tiny_model.byte_tokenizer()
TOKENS = ChatTokens(TOKENIZER, [2])
EOT = 2


def pair(**fields: Any) -> TextPair:
    return TextPair(**{"prompt": "hi", "chosen": "good", "rejected": "bad"} | fields)


def ids(text: str) -> list[int]:
    found: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return found


def test_prompt_output_and_end_of_turn() -> None:
    row = checked_pair(TOKENS, pair(), 256)
    assert not isinstance(row, Drop)
    assert row["prompt_ids"] == ids("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert row["chosen_ids"] == [*ids("good"), EOT]
    assert row["rejected_ids"] == [*ids("bad"), EOT]


def test_a_truncated_output_has_no_end_of_turn() -> None:
    row = checked_pair(TOKENS, pair(rejected_truncated=True), 256)
    assert not isinstance(row, Drop)
    assert row["chosen_ids"][-1] == EOT  # type: ignore[index]
    assert row["rejected_ids"] == ids("bad")


def test_an_output_that_would_merge_into_the_prompt_is_tokenized_apart() -> None:
    # "assistant\n" + "\nwell" would have the token of two line breaks across the border.
    row = checked_pair(TOKENS, pair(chosen="\nwell"), 256)
    assert not isinstance(row, Drop)
    assert row["chosen_ids"] == [*ids("\n"), *ids("well"), EOT]


@given(st.text(max_size=40), st.text(max_size=40))
def test_tokens_give_the_text_back(prompt: str, output: str) -> None:
    rendered, prompt_ids = TOKENS.prompt(prompt)
    found = TOKENS.output(rendered, prompt_ids, output)
    assert found is not None
    assert TOKENIZER.decode(prompt_ids + found, skip_special_tokens=False) == rendered + output


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": "h", "chosen": "x" * 100}, Drop.too_long),
        ({"rejected": "good"}, Drop.nothing_to_learn),
        ({"chosen": "", "chosen_truncated": True}, Drop.nothing_to_learn),
    ],
)
def test_a_pair_that_cannot_be_trained_on_is_dropped(fields: dict[str, Any], reason: Drop) -> None:
    assert checked_pair(TOKENS, pair(**fields), 100) is reason


@pytest.mark.parametrize("odd", [{"prompt": "5 \u2126"}, {"chosen": "cafe\u0301"}])
def test_text_that_a_tokenizer_normalizes_is_dropped(odd: dict[str, Any]) -> None:
    tokenizer = tiny_model.byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    tokens = ChatTokens(tokenizer, [EOT])
    assert checked_pair(tokens, pair(**odd), 256) is Drop.not_as_sampled
    assert not isinstance(checked_pair(tokens, pair(chosen="caf\u00e9"), 256), Drop)


def test_bad_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a"}\n')
    with pytest.raises(TrainError, match="line 2: chosen"):
        list(read_pairs(path))


def test_stored_longest_first_without_those_dropped(tmp_path: Path) -> None:
    rows = [*tiny_model.some_pairs(6), pair(chosen="x" * 300).model_dump()]
    path, out = tiny_model.write_pairs(tmp_path / "p.jsonl", rows), tmp_path / "pairs.arrow"
    for _ in range(2):  # the second time they are read
        lengths = tokenize_pairs(path, TOKENS, 256, out)["length"][:]
        assert len(lengths) == 6
        assert lengths == sorted(lengths, reverse=True)
        assert counts_of(out) == {"pairs": 6, "pairs_dropped": {"too_long": 1}}


@pytest.mark.parametrize(
    ("rows", "message", "param"),
    [
        ([], "no pair", "pairs"),
        ([pair(chosen="x" * 300)] * 2, r"none of the 2 .*too_long 2.*256", "training.max_length"),
        (
            [pair(chosen="x" * 300), pair(rejected="good")],
            r"too_long 1, nothing_to_learn 1",
            "pairs",
        ),
    ],
)
def test_no_pair_left_is_refused_with_the_counts(
    tmp_path: Path, rows: list[TextPair], message: str, param: str
) -> None:
    path = tiny_model.write_pairs(tmp_path / "p.jsonl", [row.model_dump() for row in rows])
    with pytest.raises(TrainError, match=message) as e:
        tokenize_pairs(path, TOKENS, 256, tmp_path / "pairs.arrow")
    assert e.value.param == param
