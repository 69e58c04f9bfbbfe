"""What a metric is, and what it makes of rows: a value, an interval, and each row's own value."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ftjax.metrics.bootstrap import Interval, bootstrap_rows, bootstrap_sums, ratio

Rows = Sequence[Any] | np.ndarray


class Measure(NamedTuple):
    """A metric of rows.

    statistics: `[n, ...]`, a row an example.
    of: makes the metric of their sum, or, where `summed` is False, of the rows themselves.
    rows: each row's own value; None where a row has none.
    resamples: whether there is an interval; not for what another program adds up.
    """

    statistics: np.ndarray
    of: Callable[[np.ndarray], Any] = ratio
    summed: bool = True
    rows: list[float] | None = None
    resamples: bool = True

    @property
    def value(self) -> float:
        """The metric over all rows."""
        return float(self.of(self.statistics.sum(0) if self.summed else self.statistics))

    def interval(self) -> Interval | None:
        """The 95% bootstrap interval."""
        if not self.resamples:
            return None
        return (bootstrap_sums if self.summed else bootstrap_rows)(self.statistics, self.of)


class Metric(NamedTuple):
    """One metric.

    takes: what its predictions and references are: `classes` (an index a row, likewise), `numbers`, `tags` (a list of
      tags a row, likewise), `texts` (a text a row, a list of references), `sums` (a row's sum, its weight).
    measure: (predictions, references) -> Measure.
    """

    better: Literal["higher", "lower"]
    takes: Literal["classes", "numbers", "tags", "texts", "sums"]
    measure: Callable[[Rows, Rows], Measure]


def mean(rows: Callable[..., list[float]]) -> Callable[..., Measure]:
    """The mean of the rows' values."""

    def measure(predictions: Rows, references: Rows) -> Measure:
        values = rows(predictions, references)
        return Measure(np.stack([values, np.ones(len(values))], 1), rows=values)

    return measure


def of_sums(
    statistics: Callable[..., np.ndarray],
    value: Callable[[np.ndarray], Any],
    rows: Callable[..., list[float]] | None = None,
) -> Callable[..., Measure]:
    """What `value` makes of the sum of the rows' `statistics` `[n, ...]`; `rows` gives each row's own."""

    def measure(predictions: Rows, references: Rows) -> Measure:
        each = rows(predictions, references) if rows else None
        return Measure(statistics(predictions, references), value, rows=each)

    return measure


def of_rows(arrange: Callable[..., np.ndarray], value: Callable[[np.ndarray], Any]) -> Callable[..., Measure]:
    """What `value` makes of all rows `[n, ...]`, as `arrange` gives them, and is no function of sums (or of many)."""
    return lambda predictions, references: Measure(arrange(predictions, references), value, summed=False)


def whole(compute: Callable[..., tuple[float, list[float]]]) -> Callable[..., Measure]:
    """What another program says: (the corpus's value, each row's)."""

    def measure(predictions: Rows, references: Rows) -> Measure:
        value, rows = compute(predictions, references)
        return Measure(np.array([value]), np.asarray, rows=rows, resamples=False)

    return measure
