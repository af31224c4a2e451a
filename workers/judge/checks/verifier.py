"""The verifier: the share of a prompt's checks that its response satisfies. Needs no model."""

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, NoReturn, assert_never

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from shared.schemas import checks
from shared.schemas.judges import VerifierSpec
from shared.schemas.requests import JudgeItem
from workers.judge.base import CannotJudge, Judge, JudgeContext, Score
from workers.judge.checks.math_answer import MathAnswers

# Typographic quotes and CJK stops are escaped: they look like others.
WORD = re.compile(r"\w+(?:['\u2019.,:-]\w+)*")
"""Words as a reader counts them: "don't", "well-known" and "3.5" are one."""
ABBREVIATION = re.compile(r"\b(Mr|Mrs|Ms|Dr|Prof|St|vs|e\.g|i\.e)\.")
SENTENCE_END = re.compile(
    r"""(?<=[.!?\u2026])["'\u201d\u2019)*_\]]*\s+|(?<=[\u3002\uff01\uff1f])|\n+"""
)
BULLET = re.compile(r"^[ \t]*[-*•][ \t]+\S", re.MULTILINE)
NUMBERED = re.compile(r"^[ \t]*\d{1,3}[.)][ \t]+\S", re.MULTILINE)
LIST_MARKER = re.compile(r"^[ \t]*(?:[-*•]|\d{1,3}[.)])[ \t]+", re.MULTILINE)
FENCE = re.compile(r"\A```[\w-]*\n(.*?)\n?```\Z", re.DOTALL)
TITLE = re.compile(r"<<[^<>\n]*[^<>\s][^<>\n]*>>")

# Rare languages look like common ones in a short text (Luxembourgish like German), so a language
# competes with the widely written ones only.
COMMON_LANGUAGES = (
    "ar bg bn cs da de el en es fa fi fr he hi hu id it ja ko nl no pl pt ro ru sv th tr uk ur vi "
    "zh"
)
LANGUAGE_CHARACTERS = 5000
"""Characters of a text that are enough to recognise its language."""


class Verifier(Judge):
    name = "verifier/1"

    def __init__(self, _: VerifierSpec, __: JudgeContext) -> None:
        self._math = MathAnswers()

    def applies(self, item: JudgeItem) -> bool:
        return bool(item.checks)

    def score(self, items: Sequence[JudgeItem]) -> list[Score]:
        """Scores in [0, 1]. Raises `CannotJudge` for an item without checks."""
        return [self._score(item) for item in items]

    def _score(self, item: JudgeItem) -> Score:
        if not item.checks:
            raise CannotJudge(f"prompt {item.instruction[:80]!r} has no checks to verify")
        satisfied = [self.satisfies(item.response, check) for check in item.checks]
        details = {"satisfied": satisfied, "kinds": [check.kind for check in item.checks]}
        known = [one for one in satisfied if one is not None]
        if len(known) < len(satisfied):
            return Score(None, details | {"reason": "unreadable_reference"})
        return Score(sum(known) / len(known), details)

    def satisfies(self, response: str, check: checks.Check) -> bool | None:
        """An empty response satisfies nothing, or saying nothing would be the way to obey. None
        where the check's own reference answer cannot be read."""
        text = response.strip()
        if not text:
            return False
        if isinstance(check, checks.MathAnswer):
            return self._math.states(text, check.answer)
        return _satisfies(text, check)


def _satisfies(text: str, check: checks.Check) -> bool:
    match check:
        case checks.Words():
            return _within(check, len(WORD.findall(text)))
        case checks.Sentences():
            return _within(check, _sentences(text))
        case checks.Paragraphs():
            return _within(check, len(re.split(r"\n\s*\n", text)))
        case checks.Bullets():
            return _within(check, len(BULLET.findall(text)))
        case checks.Numbered():
            return _within(check, len(NUMBERED.findall(text)))
        case checks.Keyword():
            return _occurrences(text, check.word) >= check.times
        case checks.ForbiddenWords():
            return not any(_occurrences(text, word) for word in check.words)
        case checks.StartsWith():
            return text.casefold().startswith(check.text.strip().casefold())
        case checks.EndsWith():
            return text.casefold().endswith(check.text.strip().casefold())
        case checks.Case():
            return text.isupper() if check.case == "upper" else text.islower()
        case checks.WholeJson():
            return _is_json(text, check.keys)
        case checks.Language():
            return _language(text, check.code) == check.code
        case checks.NoCommas():
            return "," not in text
        case checks.Title():
            return TITLE.search(text) is not None
        case checks.MathAnswer():
            raise AssertionError("needs the math child")
        case _:
            assert_never(check)


def _within(
    bounds: checks.Words | checks.Sentences | checks.Paragraphs | checks.Bullets | checks.Numbered,
    count: int,
) -> bool:
    low = 0 if bounds.at_least is None else bounds.at_least
    return low <= count and (bounds.at_most is None or count <= bounds.at_most)


def _sentences(text: str) -> int:
    """Sentences end at . ! ? before white space, and at the end of a line."""
    plain = ABBREVIATION.sub(r"\1", LIST_MARKER.sub("", text))
    return sum(1 for part in SENTENCE_END.split(plain) if WORD.search(part))


def _occurrences(text: str, word: str) -> int:
    """Whole words, any case; `word` may be a phrase."""
    pattern = rf"(?<!\w){re.escape(word.strip().casefold())}(?!\w)"
    return len(re.findall(pattern, text.casefold()))


def _is_json(text: str, keys: Sequence[str]) -> bool:
    fenced = FENCE.match(text)
    try:
        value = json.loads(fenced[1] if fenced else text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return not keys or (isinstance(value, dict) and all(key in value for key in keys))


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _language(text: str, code: str) -> str | None:
    """ISO 639-1 code of the text's language; None for a text without letters."""
    if not any(map(str.isalpha, text)):
        return None
    language, _ = _identifier(code).classify(text[:LANGUAGE_CHARACTERS])
    return str(language)


@cache
def _identifier(code: str) -> Any:
    """Tells `code` from the common languages."""
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages({*COMMON_LANGUAGES.split(), code})
    return identifier
