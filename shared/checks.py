"""The checks a prompt can carry for the `verifier` judge: their kinds and fields, not their logic.

Datasets are validated against these on upload; `workers/judges/verifier.py` runs them.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Check(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Bounded(_Check):
    """A count that must lie in [at_least, at_most]; a missing bound is open."""

    at_least: int | None = Field(default=None, ge=0)
    at_most: int | None = Field(default=None, ge=0)


class MathAnswer(_Check):
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


class Keyword(_Check):
    """`word` occurs at least `times`, whole words, any case."""

    kind: Literal["keyword"]
    word: str = Field(min_length=1)
    times: int = Field(default=1, ge=1)


class Forbidden(_Check):
    """None of `words` occurs, whole words, any case."""

    kind: Literal["forbidden"]
    words: list[str] = Field(min_length=1)


class StartsWith(_Check):
    kind: Literal["starts_with"]
    text: str = Field(min_length=1)


class EndsWith(_Check):
    kind: Literal["ends_with"]
    text: str = Field(min_length=1)


class Case(_Check):
    kind: Literal["case"]
    case: Literal["upper", "lower"]


class Json(_Check):
    """The whole response (a code fence around it is allowed) is JSON, with these keys if given."""

    kind: Literal["json"]
    keys: list[str] = Field(default_factory=list)


class Language(_Check):
    """The response is written in this language (ISO 639-1 code)."""

    kind: Literal["language"]
    code: str = Field(pattern=r"^[a-z]{2}$")


class NoCommas(_Check):
    kind: Literal["no_commas"]


class Title(_Check):
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
    | Forbidden
    | StartsWith
    | EndsWith
    | Case
    | Json
    | Language
    | NoCommas
    | Title,
    Field(discriminator="kind"),
]
checks_adapter: TypeAdapter[list[Check]] = TypeAdapter(list[Check])
