"""N-grams."""

from collections.abc import Iterator, Sequence


def ngrams(tokens: Sequence[str], order: int) -> Iterator[tuple[str, ...]]:
    """All of one order, in the text's order."""
    return zip(*(tokens[i:] for i in range(order)))
