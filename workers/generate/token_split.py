"""Counts an output's tokens that are its thought: exactly, and fast enough for every completion."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from tokenizers import Tokenizer


class _Pieces(dict[int, str]):
    """Text of each token alone, decoded when first asked for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __missing__(self, token: int) -> str:
        piece: str = self._tokenizer.decode([token], skip_special_tokens=False)
        self[token] = piece
        return piece


class TokenSplitter:
    """Splits outputs of the model in `folder` by its `tokenizer.json`."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._pieces = _Pieces(self._tokenizer)

    def __call__(self, ids: Sequence[int], text: str, end: int) -> int:
        """The smallest n for which the text of `ids[:n]` begins with `text[:end]`.

        `text` is that of `ids`, but for an end token that it may leave out.
        """
        if end <= 0:
            return 0
        pieces = [self._pieces[i] for i in ids]
        if "".join(pieces).startswith(text):
            # Each token stands for itself, as nearly always.
            return bisect_left(list(accumulate(map(len, pieces))), end) + 1
        return self._search(ids, text[:end])

    def _search(self, ids: Sequence[int], beginning: str) -> int:
        """By decoding: some character consists of several tokens."""
        low, high = 1, len(ids)
        while low < high:
            middle = (low + high) // 2
            decoded = self._tokenizer.decode(ids[:middle], skip_special_tokens=False)
            if decoded.startswith(beginning):
                high = middle
            else:
                low = middle + 1
        return low
