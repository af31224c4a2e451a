"""The end of a thought: closed by the response marker, in tokens that phase 2 can continue."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.vllm.answers import Choice

REPLACEMENT = "\ufffd"


class Vocabulary(Protocol):
    """Questions about the engine's tokenizer."""

    async def tokenize(self, text: str) -> list[int]: ...
    async def detokenize(self, ids: Sequence[int]) -> str: ...
    async def short_text(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class Thought:
    """A thought that is closed by the response marker.

    `ids` are the tokens that phase 2 continues, from the beginning of the model's turn; `text` is
    theirs. `tokens` of them were generated.
    """

    ids: list[int]
    text: str
    tokens: int
    forced: bool

    @property
    def was_cut(self) -> bool:
        """True if the model may have had more to think. A thought of no tokens was not begun."""
        return self.forced and self.tokens > 0


async def close(vocabulary: Vocabulary, choice: Choice, marker: str) -> Thought:
    """The thought of a finished phase 1, ending in the marker, with the tokens to go on from.

    Generated tokens are kept as they are wherever they agree with the text. The token that
    completes a marker may run past it: white space there is kept, since it belongs neither to the
    thought nor to the response; anything else is cut off.
    """
    generated, truncated = len(choice.token_ids), choice.truncated()
    at = choice.text.find(marker)
    if at >= 0:
        text = choice.text[: at + len(marker)]
        last = await vocabulary.short_text(choice.token_ids[-1:])
        beyond = overhang(text, last)
        if beyond is not None:
            return Thought(choice.token_ids, text + beyond, generated, forced=False)
        ids = await align(vocabulary, choice.token_ids, text)
        return Thought(ids, text, generated, forced=False)

    ids, text = choice.token_ids, choice.text
    if ids and not truncated:
        # The model's own end; a marker behind it would be in another turn.
        text = text.removesuffix(await vocabulary.short_text(ids[-1:]))
        ids = ids[:-1]
    if ids and REPLACEMENT in await vocabulary.short_text(ids[-1:]):
        ids = await align(vocabulary, ids, text)  # the budget may have cut a character in two
    put_in = marker if not text or text.endswith("\n") else "\n" + marker
    ids = [*ids, *await vocabulary.tokenize(put_in)]
    return Thought(ids, text + put_in, generated, forced=True)


def overhang(text: str, last: str) -> str | None:
    """Return the part of the token text `last` beyond the end of `text`, if it is only white space.

    `text` ends where a marker does that `last` completes. None where that is not so, or cannot be
    told from these two strings.
    """
    core = last.rstrip()
    if not core or REPLACEMENT in core or not text.endswith(core):
        return None
    # With a border ("aa") an earlier end would look the same as the real one.
    if any(core.startswith(core[i:]) for i in range(1, len(core))):
        return None
    return last[len(core) :]


async def align(vocabulary: Vocabulary, ids: Sequence[int], text: str) -> list[int]:
    """Tokens of exactly `text`: the longest beginning of `ids` that agrees, then the rest anew.

    Looks back over a few tokens only. Where even these do not agree, as with tokenizers that do
    not give back what they took, all of the text is tokenized anew.
    """
    for n in range(len(ids), max(len(ids) - 6, -1), -1):
        covered = await vocabulary.detokenize(ids[:n]) if n else ""
        if text.startswith(covered):
            rest = text[len(covered) :]
            return [*ids[:n], *(await vocabulary.tokenize(rest) if rest else [])]
    return list(await vocabulary.tokenize(text)) if text else []
