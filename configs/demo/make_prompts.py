"""Writes `prompts.jsonl` beside it: instructions whose answers the verifier can check.

`python configs/demo/make_prompts.py`, with the same bytes each time. Written for a model of 135
million parameters that answers in about 60 tokens: each prompt mixes requirements that it meets
often with one that it meets now and then, so that its answers to one prompt score differently.
"""

import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

PATH = Path(__file__).with_name("prompts.jsonl")
SPLITS = {"train": 50, "validation": 12}
"""Prompts of each category."""

Check = dict[str, object]
Requirement = tuple[str, Check]
"""How it is asked for, and how it is verified."""
Draft = tuple[str, list[Check]]

# A topic, and two words that an answer about it may well use.
TOPICS = [
    ("rivers", "water", "fish"),
    ("the moon", "night", "light"),
    ("cats", "fur", "sleep"),
    ("dogs", "friend", "play"),
    ("bread", "flour", "warm"),
    ("rain", "clouds", "umbrella"),
    ("the sea", "waves", "salt"),
    ("winter", "snow", "cold"),
    ("summer", "sun", "beach"),
    ("libraries", "books", "quiet"),
    ("trees", "leaves", "shade"),
    ("coffee", "morning", "cup"),
    ("music", "song", "dance"),
    ("football", "ball", "team"),
    ("mountains", "snow", "climb"),
    ("birds", "wings", "sky"),
    ("bees", "honey", "flowers"),
    ("trains", "station", "travel"),
    ("bicycles", "wheels", "road"),
    ("gardens", "flowers", "soil"),
    ("the desert", "sand", "heat"),
    ("forests", "trees", "animals"),
    ("breakfast", "eggs", "morning"),
    ("soup", "bowl", "warm"),
    ("schools", "teacher", "learn"),
    ("hospitals", "doctor", "care"),
    ("computers", "screen", "fast"),
    ("letters", "paper", "write"),
    ("markets", "fruit", "people"),
    ("islands", "sea", "boat"),
    ("horses", "ride", "farm"),
    ("the stars", "night", "bright"),
    ("tea", "cup", "leaves"),
    ("painting", "color", "brush"),
    ("bridges", "river", "strong"),
    ("chocolate", "sweet", "milk"),
    ("elephants", "trunk", "large"),
    ("airplanes", "sky", "pilot"),
    ("farms", "animals", "field"),
    ("museums", "art", "history"),
    ("clocks", "time", "hands"),
    ("spring", "flowers", "green"),
    ("autumn", "leaves", "red"),
    ("swimming", "water", "pool"),
    ("running", "legs", "shoes"),
    ("cooking", "kitchen", "food"),
    ("sleep", "bed", "rest"),
    ("friends", "laugh", "help"),
    ("wolves", "pack", "forest"),
    ("lakes", "water", "calm"),
    ("cities", "people", "streets"),
    ("fire", "heat", "wood"),
    ("glass", "window", "clear"),
    ("shoes", "feet", "walk"),
    ("pizza", "cheese", "tomato"),
    ("whales", "ocean", "large"),
    ("robots", "machine", "work"),
    ("camping", "tent", "fire"),
    ("dreams", "sleep", "mind"),
    ("rice", "bowl", "food"),
]
KINDS_OF_THINGS = [
    "fruits", "animals", "colors", "countries", "sports", "vegetables", "cities", "flowers",
    "drinks", "tools", "musical instruments", "school subjects", "jobs", "insects", "trees",
    "birds", "kitchen utensils", "pieces of furniture", "hobbies", "board games", "desserts",
    "planets", "fish", "spices", "languages",
]  # fmt: skip
NAMES = ["Anna", "Ben", "Clara", "David", "Emma", "Farid", "Grace", "Hugo", "Iris", "Jonas"]
THINGS = ["apples", "books", "coins", "pencils", "marbles", "stamps", "eggs", "cards"]


# --- requirements ---------------------------------------------------------------------------------


def at_most_words(count: int) -> Requirement:
    return f"Use at most {count} words.", {"kind": "words", "at_most": count}


def sentences(count: int) -> Requirement:
    text = "Answer in one sentence." if count == 1 else f"Answer in exactly {count} sentences."
    return text, {"kind": "sentences", "at_least": count, "at_most": count}


def keyword(word: str, times: int = 1) -> Requirement:
    often = {1: "", 2: " twice"}[times]
    return f"Include the word '{word}'{often}.", {"kind": "keyword", "word": word, "times": times}


def without(*words: str) -> Requirement:
    quoted = " or ".join(f"'{word}'" for word in words)
    return f"Do not use the word {quoted}.", {"kind": "forbidden", "words": list(words)}


def starts_with(text: str) -> Requirement:
    return f"Begin your answer with '{text}'.", {"kind": "starts_with", "text": text}


def ends_with(text: str) -> Requirement:
    return f"End your answer with '{text}'", {"kind": "ends_with", "text": text}


NO_COMMAS: Requirement = ("Do not use commas.", {"kind": "no_commas"})


def ask(request: str, *requirements: Requirement) -> Draft:
    return " ".join([request, *(text for text, _ in requirements)]), [c for _, c in requirements]


# --- categories: each makes one prompt from a random generator ------------------------------------


def sentence_with_words(rng: random.Random) -> Draft:
    topic, first, second = rng.choice(TOPICS)
    extra = rng.choice([keyword(second), NO_COMMAS, at_most_words(rng.choice([12, 15, 18]))])
    return ask(f"Write a sentence about {topic}.", sentences(1), keyword(first), extra)


def short_description(rng: random.Random) -> Draft:
    topic, first, _ = rng.choice(TOPICS)
    limit = rng.choice([15, 20, 25, 30])
    extra = rng.choice([NO_COMMAS, keyword(first), sentences(2)])
    return ask(f"Describe {topic} to a child.", at_most_words(limit), extra)


def naming(rng: random.Random) -> Draft:
    things, count = rng.choice(KINDS_OF_THINGS), rng.choice([2, 3, 4])
    number = {2: "two", 3: "three", 4: "four"}[count]
    limit = at_most_words(rng.choice([8, 10, 12, 20]))
    return ask(f"Name {number} {things}.", limit, NO_COMMAS)


def lists(rng: random.Random) -> Draft:
    things, count = rng.choice(KINDS_OF_THINGS), rng.choice([3, 4, 5])
    kind, shape = rng.choice(
        [
            ("bullets", f"Give exactly {count} bullet points."),
            ("numbered", f"Give a numbered list of exactly {count} items."),
        ]
    )
    listed: Requirement = (shape, {"kind": kind, "at_least": count, "at_most": count})
    extra = rng.choice([at_most_words(15), at_most_words(25), NO_COMMAS])
    return ask(f"List {things}.", listed, extra)


def first_and_last(rng: random.Random) -> Draft:
    topic, first, _ = rng.choice(TOPICS)
    edge = rng.choice(
        [starts_with("I think"), starts_with("Once"), starts_with("Well"), ends_with("The end.")]
    )
    extra = rng.choice([at_most_words(25), keyword(first), sentences(2)])
    return ask(f"Say something about {topic}.", edge, extra)


def avoiding(rng: random.Random) -> Draft:
    topic, first, second = rng.choice(TOPICS)
    limit = rng.choice([20, 25, 30])
    return ask(
        f"Explain in a few words why people like {topic}.",
        without(first, rng.choice(["they", "people", "the", "is"])),
        at_most_words(limit),
        rng.choice([NO_COMMAS, keyword(second)]),
    )


def repeating(rng: random.Random) -> Draft:
    topic, first, second = rng.choice(TOPICS)
    extra = rng.choice([at_most_words(25), at_most_words(35), keyword(second)])
    return ask(f"Tell me about {topic}.", sentences(2), keyword(first, 2), extra)


def sums(rng: random.Random) -> Draft:
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    a, b = rng.randint(2, 20), rng.randint(2, 12)
    request, answer = rng.choice(
        [
            (f"What is {a} + {b}?", a + b),
            (f"What is {a + b} - {b}?", a),
            (f"What is {a} times {b}?", a * b),
            (f"{name} has {a} {things} and gets {b} more. How many {things} now?", a + b),
            (f"{name} has {a + b} {things} and gives {b} away. How many are left?", a),
        ]
    )
    text, checks = ask(request, rng.choice([at_most_words(10), at_most_words(15), sentences(1)]))
    return text, [{"kind": "math", "answer": str(answer)}, *checks]


Category = Callable[[random.Random], Draft]
CATEGORIES: list[Category] = [
    sentence_with_words, short_description, naming, lists, first_and_last, avoiding, repeating,
    sums,
]  # fmt: skip


def prompts(
    categories: Sequence[Category], splits: Mapping[str, int] = SPLITS
) -> list[dict[str, object]]:
    """The prompts of each split, in mixed order of categories; `splits` holds how many of each."""
    rows: dict[str, list[dict[str, object]]] = {split: [] for split in splits}
    for make in categories:
        category = make.__name__
        drafts = _distinct(make, random.Random(category))
        for split, count in splits.items():
            for text, checks in itertools.islice(drafts, count):
                rows[split].append(
                    {"text": text, "split": split, "category": category, "checks": checks}
                )
    rng = random.Random(0)
    for some in rows.values():
        rng.shuffle(some)
    return list(itertools.chain.from_iterable(rows.values()))


def _distinct(make: Category, rng: random.Random) -> Iterator[Draft]:
    seen: set[str] = set()
    while True:
        text, checks = make(rng)
        if text not in seen:
            seen.add(text)
            yield text, checks


def jsonl(rows: Iterable[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    PATH.write_text(jsonl(prompts(CATEGORIES)), encoding="utf-8")
