"""Which tokens are trained on, and which pairs are refused."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers import tiny_model
from workers.preference_data import (
    ChatTokens,
    PairRow,
    TrainError,
    read_pairs,
    tokenize_pair,
    tokenize_pairs,
)

TOKENIZER = tiny_model.byte_tokenizer()
TOKENS = ChatTokens(TOKENIZER, [2])
EOT = 2


def pair(**fields: Any) -> PairRow:
    return PairRow(**{"prompt": "hi", "chosen": "good", "rejected": "bad"} | fields)


def ids(text: str) -> list[int]:
    found: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return found


def test_prompt_output_and_end_of_turn() -> None:
    row = tokenize_pair(TOKENS, pair(), 0, 256)
    assert row["prompt_ids"] == ids("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert row["chosen_ids"] == [*ids("good"), EOT]
    assert row["rejected_ids"] == [*ids("bad"), EOT]


def test_a_truncated_output_has_no_end_of_turn() -> None:
    row = tokenize_pair(TOKENS, pair(rejected_truncated=True), 0, 256)
    assert row["chosen_ids"][-1] == EOT  # type: ignore[index]
    assert row["rejected_ids"] == ids("bad")


def test_an_output_that_would_merge_into_the_prompt_is_tokenized_apart() -> None:
    # "assistant\n" + "\nwell" would have the token of two line breaks across the border.
    row = tokenize_pair(TOKENS, pair(chosen="\nwell"), 0, 256)
    assert row["chosen_ids"] == [*ids("\n"), *ids("well"), EOT]


@given(st.text(max_size=40), st.text(max_size=40))
def test_tokens_give_the_text_back(prompt: str, output: str) -> None:
    rendered, prompt_ids = TOKENS.prompt(prompt)
    found = TOKENS.output(rendered, prompt_ids, output)
    assert found is not None
    assert TOKENIZER.decode(prompt_ids + found, skip_special_tokens=False) == rendered + output


def test_a_long_pair_is_refused_with_its_lengths() -> None:
    with pytest.raises(TrainError, match=r"pair 7: 20 tokens of prompt and 101 of chosen") as e:
        tokenize_pair(TOKENS, pair(prompt="h", chosen="x" * 100), 7, 100)
    assert e.value.param == "training.max_length"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rejected": "good"}, "pair 3: chosen and rejected are the same tokens"),
        ({"chosen": "", "chosen_truncated": True}, "pair 3: chosen has no tokens"),
    ],
)
def test_pairs_that_teach_nothing_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError, match=message) as e:
        tokenize_pair(TOKENS, pair(**fields), 3, 256)
    assert e.value.param == "pairs"


def test_a_tokenizer_that_loses_text_is_refused() -> None:
    class Lossy:
        eos_token_id = EOT

        def __getattr__(self, name: str) -> Any:
            return getattr(TOKENIZER, name)

        def __call__(self, text: str, **kwargs: Any) -> Any:
            return TOKENIZER(text.lower(), **kwargs)

    with pytest.raises(TrainError, match="do not decode"):
        tokenize_pair(ChatTokens(Lossy(), [EOT]), pair(chosen="GOOD"), 0, 256)


def test_bad_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a"}\n')
    with pytest.raises(TrainError, match="line 2: chosen"):
        list(read_pairs(path))


def test_stored_longest_first(tmp_path: Path) -> None:
    path = tiny_model.write_pairs(tmp_path / "p.jsonl", tiny_model.some_pairs(6))
    stored = tokenize_pairs(path, TOKENS, 256, tmp_path / "pairs.arrow")
    lengths = stored["length"][:]
    assert len(lengths) == 6
    assert lengths == sorted(lengths, reverse=True)


def test_no_pair_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("")
    with pytest.raises(TrainError, match="no pair"):
        tokenize_pairs(tmp_path / "p.jsonl", TOKENS, 256, tmp_path / "pairs.arrow")
