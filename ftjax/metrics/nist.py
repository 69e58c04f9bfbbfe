"""NIST (Doddington 2002) as the E2E challenge's scripts have it: any number of references a row."""

import functools
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from ftjax.metrics.ngrams import ngrams

ORDERS = 5
_BETA = math.log(2) / math.log(1.5) ** 2
References = Sequence[Sequence[str]]
Counts = Counter[tuple[str, ...]]


def nist_counts(predictions: Sequence[str], references: References) -> np.ndarray:
    """`[n, 11]`: information of the matched n-grams (n = 1..5), n-grams, mean length of the references.

    Words are mteval-13a's in lower case. An n-gram's information is log2(count of its first n - 1 words / its count)
    in all references of all rows; a row matches it as often as one reference of it has it.
    """
    counted = [[_grams(r) for r in row] for row in references]
    return _rows(predictions, counted, [_total(grams for row in counted for grams in row)] * len(counted))


def nist(counts: np.ndarray) -> np.ndarray:
    """NIST, `[..., 11]` of `nist_counts` summed to `[...]`: half at two thirds of the length."""
    found, lengths, wanted = counts[..., :ORDERS], counts[..., ORDERS : 2 * ORDERS], counts[..., -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        brevity = np.exp(-_BETA * np.log(np.minimum(lengths[..., 0] / wanted, 1)) ** 2)
        return np.nan_to_num(brevity) * np.nan_to_num(found / lengths).sum(-1)


def sentence_nist(predictions: Sequence[str], references: References) -> list[float]:
    """Each row's NIST by itself: information is counted in its own references."""
    counted = [[_grams(r) for r in row] for row in references]
    return nist(_rows(predictions, counted, map(_total, counted))).tolist()


def _rows(predictions: Sequence[str], references: list[list[Counts]], seen: Iterable[Counts]) -> np.ndarray:
    rows = []
    for prediction, golds, counts in zip(predictions, references, seen, strict=True):
        grams, found, lengths = _grams(prediction), [0.0] * ORDERS, [0] * ORDERS
        del grams[()]
        for gram, n in grams.items():
            lengths[len(gram) - 1] += n
            if hits := min(n, max(gold.get(gram, 0) for gold in golds)):
                found[len(gram) - 1] += hits * math.log2(counts[gram[:-1]] / counts[gram])
        rows.append([*found, *lengths, sum(gold[()] for gold in golds) / len(golds)])
    return np.array(rows, np.float64).reshape(-1, 2 * ORDERS + 1)


def _total(counts: Iterable[Counts]) -> Counts:
    total: Counts = Counter()
    for grams in counts:
        total.update(grams)
    return total


def _grams(text: str) -> Counts:
    """The n-grams of all orders, the empty one as often as there are words."""
    words = _tokenizer()(text).lower().split()
    grams = Counter(gram for order in range(1, ORDERS + 1) for gram in ngrams(words, order))
    grams[()] = len(words)
    return grams


@functools.cache
def _tokenizer():
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()
