"""Correlations of predicted numbers with right ones."""

from collections.abc import Sequence

import numpy as np


def moments(predictions: Sequence[float] | np.ndarray, labels: Sequence[float] | np.ndarray) -> np.ndarray:
    """`[n, 6]`: 1, x, y, xx, yy, xy of the pairs, moved so that the means are 0: sums lose no digits so."""
    x, y = pairs(predictions, labels).T
    x, y = x - x.mean(), y - y.mean()
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], 1)


def pearson(sums: np.ndarray) -> np.ndarray:
    """Pearson's correlation, `[..., 6]` of summed `moments` to `[...]`; 0 where one of the two is constant."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = (n * xx - x * x) * (n * yy - y * y)
    some = spread > 1e-24 * (n * xx * n * yy)
    return np.where(some, (n * xy - x * y) / np.sqrt(np.where(some, spread, 1.0)), 0.0)


def pairs(predictions: Sequence[float] | np.ndarray, labels: Sequence[float] | np.ndarray) -> np.ndarray:
    """`[n, 2]`."""
    return np.stack([np.asarray(predictions, np.float64), np.asarray(labels, np.float64)], 1)


def spearman(rows: np.ndarray) -> float:
    """Spearman's correlation of `pairs` `[n, 2]`: Pearson's of mean ranks; 0 where one of the two is constant."""
    from scipy.stats import rankdata

    return float(pearson(moments(rankdata(rows[:, 0]), rankdata(rows[:, 1])).sum(0)))
