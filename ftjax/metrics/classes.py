"""Metrics of classes, from counts that add up over rows."""

from collections.abc import Sequence

import numpy as np


def accuracy(predictions: Sequence, labels: Sequence) -> list[float]:
    """1.0 for each prediction that is its label, 0.0 for the others; also hit@1 of the likeliest word."""
    return [float(p == label) for p, label in zip(predictions, labels, strict=True)]


def class_counts(predictions: Sequence[int] | np.ndarray, labels: Sequence[int] | np.ndarray) -> np.ndarray:
    """`[n, 3, C]`, for each class index: whether the row is predicted so and is so, is predicted so, is so."""
    guess, gold = np.asarray(predictions, np.int64), np.asarray(labels, np.int64)
    if guess.shape != gold.shape:
        raise ValueError(f"{guess.shape} predictions of {gold.shape} labels")
    eye = np.eye(max(guess.max(), gold.max(), 1) + 1)
    return np.stack([eye[guess] * eye[gold], eye[guess], eye[gold]], 1)


def f1(counts: np.ndarray) -> np.ndarray:
    """F1 of class 1, `[..., 3, C]` of `class_counts` summed to `[...]`; 0 where there is none of it."""
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
