"""The checks a prompt can carry for the `verifier` judge: their kinds and fields, not their logic.

Datasets are validated against these on upload; `workers/judge/checks/verifier.py` runs them.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from shared.base import RequestModel

_CODES = (
    "af am an ar as az ba be bg bn br bs ca cs cy da de dz el en eo es et eu fa fi fo fr fy ga "
    "gd gl gu ha he hi hr ht hu hy id ig is it ja jv ka kk km kn ko ku ky la lb lg ln lo lt lv "
    "mg mk ml mn mr ms mt my ne nl nn no oc om or pa pl ps pt qu ro ru rw sa se si sk sl sn so "
    "sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz vi vo wa xh yo zh zu"
)
LANGUAGES = tuple(_CODES.split())
"""ISO 639-1 codes that the verifier's detector tells (py3langid; a test compares the two)."""


def _known(code: str) -> str:
    if code not in LANGUAGES:
        raise ValueError(f"no language {code!r} is known; there are {', '.join(LANGUAGES)}")
    return code


LanguageCode = Annotated[
    str, AfterValidator(_known), WithJsonSchema({"type": "string", "enum": list(LANGUAGES)})
]


class _Bounded(RequestModel):
    """A count that must lie in [at_least, at_most]; a missing bound is open, but not both."""

    at_least: int | None = Field(default=None, ge=0)
    at_most: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least: {self.at_least} is more than at_most {self.at_most}")
        if not self.at_least and self.at_most is None:
            raise ValueError("at_least: any response meets this; give 1 or more, or at_most")
        return self


class MathAnswer(RequestModel):
    """The final answer equals `answer` mathematically (math-verify)."""

    kind: Literal["math"]
    answer: str = Field(min_length=1)


class Words(_Bounded):
    kind: Literal["words"]


class Sentences(_Bounded):
    kind: Literal["sentences"]


class Paragraphs(_Bounded):
    """Paragraphs are separated by an empty line."""

    kind: Literal["paragraphs"]


class Bullets(_Bounded):
    """Lines that begin with -, * or a bullet."""

    kind: Literal["bullets"]


class Numbered(_Bounded):
    """Lines that begin with `1.`, `2)` and so on."""

    kind: Literal["numbered"]


class Keyword(RequestModel):
    """`word` occurs at least `times`, whole words, any case."""

    kind: Literal["keyword"]
    word: str = Field(min_length=1)
    times: int = Field(default=1, ge=1)


class ForbiddenWords(RequestModel):
    """None of `words` occurs, whole words, any case."""

    kind: Literal["forbidden"]
    words: list[str] = Field(min_length=1)


class StartsWith(RequestModel):
    kind: Literal["starts_with"]
    text: str = Field(min_length=1)


class EndsWith(RequestModel):
    kind: Literal["ends_with"]
    text: str = Field(min_length=1)


class Case(RequestModel):
    kind: Literal["case"]
    case: Literal["upper", "lower"]


class WholeJson(RequestModel):
    """The whole response (a code fence around it is allowed) is JSON, with these keys if given."""

    kind: Literal["json"]
    keys: list[str] = Field(default_factory=list)


class Language(RequestModel):
    """The response is written in this language (ISO 639-1 code)."""

    kind: Literal["language"]
    code: LanguageCode


class NoCommas(RequestModel):
    kind: Literal["no_commas"]


class Title(RequestModel):
    """The response holds a title in double angle brackets: <<title>>."""

    kind: Literal["title"]


Check = Annotated[
    MathAnswer
    | Words
    | Sentences
    | Paragraphs
    | Bullets
    | Numbered
    | Keyword
    | ForbiddenWords
    | StartsWith
    | EndsWith
    | Case
    | WholeJson
    | Language
    | NoCommas
    | Title,
    Field(discriminator="kind"),
]
