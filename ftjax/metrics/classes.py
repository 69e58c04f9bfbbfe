"""Metrics of classes, from counts of rows."""

from collections.abc import Sequence

import numpy as np


def accuracy(predictions: Sequence, labels: Sequence) -> list[float]:
    """1.0 for each prediction that is its label, 0.0 for the others; also hit@1 of the likeliest word."""
    return [float(p == label) for p, label in zip(predictions, labels, strict=True)]


def guesses(predictions: Sequence[int] | np.ndarray, labels: Sequence[int] | np.ndarray) -> np.ndarray:
    """`[n, 2]`, the class that a row is predicted to be of, and the one that it is of."""
    return np.stack([np.asarray(predictions, np.int64), np.asarray(labels, np.int64)], 1)


def class_counts(rows: np.ndarray) -> np.ndarray:
    """`guesses` `[n, 2]` to `[3, C]`, for each class: how many rows are rightly predicted so, predicted so, so."""
    guess, gold = rows.T
    size = max(int(rows.max()), 1) + 1
    return np.stack([np.bincount(x, minlength=size).astype(float) for x in (gold[guess == gold], guess, gold)])


def f1(counts: np.ndarray) -> np.ndarray:
    """F1 of class 1, `[..., 3, C]` of `class_counts` to `[...]`; 0 where there is none of it."""
    return np.nan_to_num(_f1(counts)[..., 1])


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """Mean of the F1 of the classes that are predicted or are there, `[..., 3, C]` to `[...]`."""
    each = _f1(counts)
    return np.nansum(each, -1) / np.maximum(np.sum(~np.isnan(each), -1), 1)


def matthews(counts: np.ndarray) -> np.ndarray:
    """Matthews' correlation (Gorodkin 2004 for more than two classes), `[..., 3, C]` to `[...]`.

    0 where all predictions or all labels are of one class.
    """
    right, guessed, gold = np.moveaxis(counts, -2, 0)
    total = gold.sum(-1)
    spread = (total**2 - (guessed**2).sum(-1)) * (total**2 - (gold**2).sum(-1))
    shared = right.sum(-1) * total - (guessed * gold).sum(-1)
    return np.where(spread > 0, shared / np.sqrt(np.where(spread > 0, spread, 1.0)), 0.0)


def _f1(counts: np.ndarray) -> np.ndarray:
    right, guessed, gold = np.moveaxis(counts, -2, 0)
    with np.errstate(invalid="ignore"):
        return 2 * right / (guessed + gold)
