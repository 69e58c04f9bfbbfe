"""Regression: a number a row, by squared error (STS-B in Devlin et al. 2018, section 4.1)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ftjax.errors import UserError
from ftjax.models.transformer import Transformer
from ftjax.objectives.base import Objective, Sums
from ftjax.objectives.body import pooled, scores


def regression(model: Transformer) -> Objective:
    """Mean squared error of batches with `input_ids`, `segment_ids`, `position_ids` `[B, T]` and `labels` float `[B]`
    (NaN: an empty row). The model's head is `classification` with one output.

    Outputs: `value` `[B]`, fp32.

    Raises:
      UserError: a head of more outputs.
    """
    if model.cfg.head != "classification" or model.cfg.num_classes != 1:
        raise UserError(
            f"regression needs head='classification' with num_classes=1, got head={model.cfg.head!r} with"
            f" num_classes={model.cfg.num_classes}"
        )

    def on(vectors: Callable[[Any, Mapping[str, jax.Array], jax.Array | None], jax.Array]) -> Objective:
        def value(variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
            return scores(model, variables, vectors(variables, batch, key), key)[..., 0]

        def loss(variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Sums:
            found, labels = value(variables, batch, key), batch["labels"]
            real = ~jnp.isnan(labels)
            error = jnp.square(found - jnp.where(real, labels, found)).sum()  # NaN never meets a gradient
            weight = real.sum().astype(jnp.float32)
            return Sums(error, weight, {"squared_error": (error, weight)})

        return Objective(loss, lambda variables, batch: {"value": value(variables, batch, None)})

    features = lambda variables, batch: pooled(model, variables, batch, None)  # noqa: E731
    whole = on(lambda variables, batch, key: pooled(model, variables, batch, key))
    return whole._replace(features=features, head=on(lambda variables, batch, key: batch["features"]))
