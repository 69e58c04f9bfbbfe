"""CIDEr-D (Vedantam et al. 2015), which the captioning scripts and the E2E challenge call CIDEr."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ftjax.metrics.ngrams import ngrams
from ftjax.metrics.ptb import ptb_words

ORDERS = 4
_SIGMA = 6.0


class _Vectors(NamedTuple):
    weights: list[dict[tuple[str, ...], float]]  # tf-idf of the n-grams of each order
    norms: list[float]
    length: int  # in bigrams


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Each row's CIDEr-D, in [0, 10]; the corpus's is their mean.

    The cosine of tf-idf vectors of `ptb_words`' n-grams (n = 1..4), each weight clipped to the reference's, less for
    another length; the mean over orders and references. Documents are rows' reference sets: a row's score hangs on
    all rows, and of a single row it is 0.
    """
    counted = [[_counts(r) for r in row] for row in references]
    within = Counter(gram for row in counted for gram in {g for counts in row for g in counts})
    rarity = {gram: math.log(len(counted)) - math.log(n) for gram, n in within.items()}
    unseen = math.log(len(counted)) if counted else 0.0
    scores = []
    for prediction, row in zip(predictions, counted, strict=True):
        guess = _vectors(_counts(prediction), rarity, unseen)
        total = sum(_similarity(guess, _vectors(counts, rarity, unseen)) for counts in row)
        scores.append(10 * total / ORDERS / len(row))
    return scores


def _counts(text: str) -> Counter[tuple[str, ...]]:
    words = ptb_words(text)
    return Counter(gram for order in range(1, ORDERS + 1) for gram in ngrams(words, order))


def _vectors(counts: Counter[tuple[str, ...]], rarity: dict[tuple[str, ...], float], unseen: float) -> _Vectors:
    weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDERS)]
    for gram, n in counts.items():
        weights[len(gram) - 1][gram] = n * rarity.get(gram, unseen)
    norms = [math.sqrt(sum(w * w for w in order.values())) for order in weights]
    return _Vectors(weights, norms, sum(n for gram, n in counts.items() if len(gram) == 2))


def _similarity(guess: _Vectors, gold: _Vectors) -> float:
    total = 0.0
    for order in range(ORDERS):
        weights, norm = gold.weights[order], guess.norms[order] * gold.norms[order]
        shared = sum(min(w, weights[g]) * weights[g] for g, w in guess.weights[order].items() if g in weights)
        total += shared / norm if norm else 0.0
    return total * math.exp(-((guess.length - gold.length) ** 2) / (2 * _SIGMA**2))
