"""BLEU (Papineni et al. 2002); sacrebleu counts the n-grams."""

import functools
from collections.abc import Sequence

import numpy as np

References = Sequence[Sequence[str]]


def bleu_counts(predictions: Sequence[str], references: References, lowercase: bool = True) -> np.ndarray:
    """`[n, 10]`: matched n-grams (n = 1..4), n-grams, words, words of the closest reference; mteval-13a's words."""
    score = _scorer(lowercase).sentence_score
    rows = [score(p, list(r)) for p, r in zip(predictions, references, strict=True)]
    return np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in rows], np.float64).reshape(-1, 10)


def bleu(counts: np.ndarray, smoothing: float = 0.0) -> np.ndarray:
    """BLEU-4 in [0, 1], `[..., 10]` of `bleu_counts` summed to `[...]`; 0 where an order has no match.

    Args:
      smoothing: is added to matches and n-grams of every order.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        precisions = np.nan_to_num((counts[..., :4] + smoothing) / (counts[..., 4:8] + smoothing))
        brevity = np.minimum(1 - counts[..., 9] / counts[..., 8], 0)
        return np.nan_to_num(np.exp(np.log(precisions).mean(-1) + brevity))


def sentence_bleu(
    predictions: Sequence[str], references: References, smoothing: float = 1.0, lowercase: bool = True
) -> list[float]:
    """Each row's BLEU-4, one added to every count (Lin & Och 2004, at all orders): `sentBLEU` of the E2E scripts."""
    return bleu(bleu_counts(predictions, references, lowercase), smoothing).tolist()


@functools.cache
def _scorer(lowercase: bool):
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(lowercase=lowercase, tokenize="13a", effective_order=True)
