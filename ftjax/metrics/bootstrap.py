"""The percentile bootstrap (Efron 1979)."""

from collections.abc import Sequence

import numpy as np


def bootstrap(values: Sequence[float], level: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Interval of the mean of per-example values `[n]` at the given level, from resampled means.

    Raises:
      ValueError: no values.
    """
    data = np.asarray(values, np.float64)
    if not len(data):
        raise ValueError("no values to resample")
    rng = np.random.default_rng(seed)
    means = np.stack([data[rng.integers(0, len(data), len(data))].mean() for _ in range(draws)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
