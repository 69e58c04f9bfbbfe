"""Intervals: of means, of ratios, of functions of sums, of rows."""

import math

import numpy as np
import pytest
from scipy.stats import bootstrap as reference

from ftjax.metrics import bootstrap_rows, bootstrap_sums, ratio


def of_ratio(sums, weights, **how):
    return bootstrap_sums(np.stack([sums, weights], 1), ratio, **how)


def test_mean_is_as_by_hand():
    values = np.random.default_rng(0).normal(size=50)
    rng = np.random.default_rng(3)
    means = [values[rng.integers(0, 50, 50)].mean() for _ in range(2000)]
    assert of_ratio(values, np.ones(50), seed=3) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), rel=1e-12)
    assert of_ratio([0.5] * 4, [1.0] * 4) == (0.5, 0.5)


def test_against_scipy():
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 30, 200).astype(float)
    sums = weights * rng.gamma(2.0, size=200)
    theirs = reference(
        (sums, weights), lambda a, b, axis: np.exp(a.sum(axis) / b.sum(axis)), paired=True, method="percentile", rng=1
    ).confidence_interval
    assert np.exp(of_ratio(sums, weights)) == pytest.approx(tuple(theirs), rel=0.02)


def test_sums_and_rows_are_one_draw():
    data = np.random.default_rng(0).random((40, 2, 3))
    of = lambda sums: sums[..., 0, 0] / sums[..., 1, 2] ** 2  # noqa: E731
    by_rows = bootstrap_rows(data, lambda rows: of(rows.sum(0)), draws=300)
    assert bootstrap_sums(data, of, draws=300) == pytest.approx(by_rows, rel=1e-12)
    wide = bootstrap_sums(data, of, level=0.99)
    narrow = bootstrap_sums(data, of, level=0.5)
    assert wide[0] < narrow[0] < of(data.sum(0)) < narrow[1] < wide[1]


def test_draws_without_a_value_do_not_count():
    low, high = of_ratio([1.0, 0.0], [1.0, 0.0])  # a quarter of the draws has no weight
    assert (low, high) == (1.0, 1.0)
    assert all(map(math.isnan, of_ratio([0.0], [0.0])))


@pytest.mark.parametrize("call", [lambda: of_ratio([], []), lambda: bootstrap_rows(np.zeros((0, 2)), lambda rows: 0.0)])
def test_no_values(call):
    with pytest.raises(ValueError, match="no values"):
        call()
