"""Which tokens are of which word."""

from bisect import bisect_right
from collections.abc import Sequence

from ftjax.errors import UserError


def words_of(ends: Sequence[int], spans: Sequence[tuple[int, int]], fixed: Sequence[int]) -> list[int]:
    """The index of each token's word, -1 of a special token and of what is behind the last word.

    A word begins where the one before ends: a token may begin with the space before its word, or be that space alone,
    of whose characters some tokenizers say nothing.

    Args:
        ends: the character after each word.
        spans: the characters of each token.
        fixed: 1 for a token that is special, and of no word.
    """
    found = (-1 if special else bisect_right(ends, start) for (start, _), special in zip(spans, fixed))
    return [word if word < len(ends) else -1 for word in found]


def first_pieces(words: Sequence[str], word_of: Sequence[int], where: str) -> list[int]:
    """The index of the first token of each word.

    Raises:
        UserError: a word without a token that begins in it.
    """
    first: dict[int, int] = {}
    for token, word in enumerate(word_of):
        first.setdefault(word, token)
    missing = [word for i, word in enumerate(words) if i not in first]
    if missing:
        raise UserError(f"{where}: the tokenizer makes no token of the word {missing[0]!r}; remove it")
    return [first[i] for i in range(len(words))]
