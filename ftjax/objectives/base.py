"""Losses are sums with a denominator to the end, so that micro-batches, packing and padding change nothing."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

IGNORE = -100


class Sums(NamedTuple):
    """Totals over a batch: the mean loss is `loss / weight`, and each metric is likewise a (total, weight) pair."""

    loss: jax.Array
    weight: jax.Array
    metrics: dict[str, tuple[jax.Array, jax.Array]]


class Objective(NamedTuple):
    """What is minimised.

    loss: (variables, batch, key or None) -> Sums; a key means training (dropout on).
    features, head_loss: where the loss sees the body through one vector a row only: (variables, batch) -> `[B, D]`,
      and the loss from it: (variables, features, batch, key) -> Sums.
    predict: (variables, batch) -> a class a row `[B]`, for classifiers.
    """

    loss: Callable[[Any, Mapping[str, jax.Array], jax.Array | None], Sums]
    features: Callable[[Any, Mapping[str, jax.Array]], jax.Array] | None = None
    head_loss: Callable[[Any, jax.Array, Mapping[str, jax.Array], jax.Array | None], Sums] | None = None
    predict: Callable[[Any, Mapping[str, jax.Array]], jax.Array] | None = None
