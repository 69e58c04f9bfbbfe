"""The percentile bootstrap (Efron 1979): rows are drawn with replacement, and the statistic is taken anew."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Interval = tuple[float, float]


def bootstrap_sums(
    statistics: np.ndarray,
    value: Callable[[np.ndarray], np.ndarray],
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Interval of what `value` makes of the rows' summed statistics (corpus BLEU of n-grams).

    Args:
      statistics: `[n, ...]`, a row an example.
      value: `[d, ...]` of sums to `[d]`. Draws of which it makes NaN count for nothing.

    Raises:
      ValueError: no rows.
    """
    data = np.asarray(statistics, np.float64)
    drawn = _drawn(len(data), draws, seed)
    flat = data.reshape(len(data), -1)
    sums = np.stack([np.bincount(rows, minlength=len(flat)) @ flat for rows in drawn])
    return _percentiles(value(sums.reshape(draws, *data.shape[1:])), level)


def bootstrap_rows(
    rows: np.ndarray, value: Callable[[np.ndarray], Any], level: float = 0.95, draws: int = 1000, seed: int = 0
) -> Interval:
    """Interval of what `value` makes of rows `[n, ...]`, for what is no function of sums (a correlation of ranks),
    or of as many sums as classes.

    Raises:
      ValueError: no rows.
    """
    return _percentiles(np.array([value(rows[drawn]) for drawn in _drawn(len(rows), draws, seed)]), level)


def ratio(sums: np.ndarray) -> np.ndarray:
    """`[..., 2]` to `[...]`: the first over the second, NaN where that is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[..., 0] / sums[..., 1]


def _drawn(count: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    if not count:
        raise ValueError("no values to resample")
    rng = np.random.default_rng(seed)
    return (rng.integers(0, count, count) for _ in range(draws))


def _percentiles(values: np.ndarray, level: float) -> Interval:
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
