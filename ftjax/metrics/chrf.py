"""chrF (Popovic 2015): F2 of characters' n-grams up to six, without spaces, as sacrebleu has it."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ftjax.metrics.ngrams import ngrams

ORDERS = 6
References = Sequence[Sequence[str]]
Counts = list[Counter[tuple[str, ...]]]  # by order


def chrf_counts(predictions: Sequence[str], references: References) -> np.ndarray:
    """`[n, 18]`: n-grams (n = 1..6) of the prediction, of the reference, and of both; of a row's references it is the
    one that gives the highest chrF. An order of which the reference has none counts for nothing."""
    rows = []
    for prediction, golds in zip(predictions, references, strict=True):
        grams = _grams(prediction)
        counts = np.array([_counted(grams, _grams(gold)) for gold in golds], np.float64)
        rows.append(counts[chrf(counts).argmax()])
    return np.array(rows, np.float64).reshape(-1, 3 * ORDERS)


def chrf(counts: np.ndarray) -> np.ndarray:
    """chrF in [0, 1], `[..., 18]` of `chrf_counts` summed to `[...]`: F2 of the mean precision and the mean recall over
    the orders that both sides have."""
    ours, theirs, both = np.split(counts, 3, -1)
    there = (ours > 0) & (theirs > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = (np.where(there, both / n, 0).sum(-1) / there.sum(-1) for n in (ours, theirs))
        return np.nan_to_num(5 * precision * recall / (4 * precision + recall))


def sentence_chrf(predictions: Sequence[str], references: References) -> list[float]:
    """Each row's chrF."""
    return chrf(chrf_counts(predictions, references)).tolist()


def _grams(text: str) -> Counts:
    characters = "".join(text.split())
    return [Counter(ngrams(characters, order)) for order in range(1, ORDERS + 1)]


def _counted(ours: Counts, theirs: Counts) -> list[int]:
    return [
        *(a.total() if b else 0 for a, b in zip(ours, theirs)), *(b.total() for b in theirs),
        *((a & b).total() for a, b in zip(ours, theirs)),
    ]  # fmt: skip
