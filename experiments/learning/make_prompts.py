"""Writes `prompts.jsonl` and `test.jsonl`: the demo's kinds of prompts, with bounds both ways.

`python -m experiments.learning.make_prompts`, with the same bytes each time. The demo's bound the
number of words from above alone, so that a model learns to be brief whatever it is asked. No run
sees the prompts of the test.
"""

import random
from pathlib import Path

from configs.demo.make_prompts import (
    NO_COMMAS,
    SPLITS,
    TOPICS,
    Category,
    Draft,
    Requirement,
    ask,
    at_most_words,
    ends_with,
    jsonl,
    keyword,
    lists,
    naming,
    prompts,
    sentences,
    starts_with,
    sums,
    without,
)

PATH = Path(__file__).with_name("prompts.jsonl")
TEST_PATH = Path(__file__).with_name("test.jsonl")
TEST_PROMPTS = 30
"""Of each category."""
LONG = [30, 35, 40]
"""Words: an answer of 64 tokens has room for them, and most of such a model have fewer."""


def length(rng: random.Random, short: list[int], long: list[int]) -> Requirement:
    """A bound on the words, above as often as below."""
    if rng.random() < 0.5:
        return at_most_words(rng.choice(short))
    count = rng.choice(long)
    return f"Use at least {count} words.", {"kind": "words", "at_least": count}


def sentence_with_words(rng: random.Random) -> Draft:
    topic, first, second = rng.choice(TOPICS)
    extra = rng.choice([keyword(second), NO_COMMAS, length(rng, [12, 15], [16, 20])])
    return ask(f"Write a sentence about {topic}.", sentences(1), keyword(first), extra)


def short_description(rng: random.Random) -> Draft:
    topic, first, _ = rng.choice(TOPICS)
    extra = rng.choice([NO_COMMAS, keyword(first), sentences(2)])
    return ask(f"Describe {topic} to a child.", length(rng, [15, 20, 25], LONG), extra)


def first_and_last(rng: random.Random) -> Draft:
    topic, first, _ = rng.choice(TOPICS)
    edge = rng.choice(
        [starts_with("I think"), starts_with("Once"), starts_with("Well"), ends_with("The end.")]
    )
    extra = rng.choice([length(rng, [20, 25], LONG), keyword(first), sentences(2)])
    return ask(f"Say something about {topic}.", edge, extra)


def avoiding(rng: random.Random) -> Draft:
    topic, first, second = rng.choice(TOPICS)
    return ask(
        f"Explain why people like {topic}.",
        without(first, rng.choice(["they", "people", "the", "is"])),
        length(rng, [15, 20, 25], LONG),
        rng.choice([NO_COMMAS, keyword(second)]),
    )


def repeating(rng: random.Random) -> Draft:
    topic, first, second = rng.choice(TOPICS)
    extra = rng.choice([length(rng, [20, 25], LONG), keyword(second)])
    return ask(f"Tell me about {topic}.", sentences(2), keyword(first, 2), extra)


CATEGORIES: list[Category] = [
    sentence_with_words, short_description, naming, lists, first_and_last, avoiding, repeating,
    sums,
]  # fmt: skip


def test_prompts() -> list[dict[str, object]]:
    rows = prompts(CATEGORIES, SPLITS | {"test": TEST_PROMPTS})
    return [row for row in rows if row["split"] == "test"]


def more_prompts(train: int) -> list[dict[str, object]]:
    """At least so many to train on, and to validate as many as ever; none of them of the test."""
    each = -(-train // len(CATEGORIES)) + TEST_PROMPTS
    held_out = {row["text"] for row in test_prompts()}
    rows = prompts(CATEGORIES, SPLITS | {"train": each})
    return [row for row in rows if row["text"] not in held_out]


if __name__ == "__main__":
    PATH.write_text(jsonl(prompts(CATEGORIES)), encoding="utf-8")
    TEST_PATH.write_text(jsonl(test_prompts()), encoding="utf-8")
