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
    outputs: (variables, batch) -> {name: `[B, ...]`}, from which a split is scored; None where the sums say it all.
    features, head: where the loss sees the body through one vector a row only: (variables, batch) -> `[B, D]`, and the
      objective on batches that hold these `features` in place of tokens.
    """

    loss: Callable[[Any, Mapping[str, jax.Array], jax.Array | None], Sums]
    outputs: Callable[[Any, Mapping[str, jax.Array]], dict[str, jax.Array]] | None = None
    features: Callable[[Any, Mapping[str, jax.Array]], jax.Array] | None = None
    head: "Objective | None" = None
