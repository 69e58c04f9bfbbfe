"""Sequence classification from one pooled vector a row."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from ftjax.models.transformer import Transformer
from ftjax.objectives.base import Objective, Sums
from ftjax.objectives.body import class_sums, pooled, scores


def classification(model: Transformer, *, label_smoothing: float = 0.0) -> Objective:
    """Cross-entropy of batches with `input_ids`, `segment_ids`, `position_ids` `[B, T]` and `labels` `[B]` (-100: an
    empty row). Pooling is the model's."""

    def on(vectors: Callable[[Any, Mapping[str, jax.Array], jax.Array | None], jax.Array]) -> Objective:
        def loss(variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Sums:
            logits = scores(model, variables, vectors(variables, batch, key), key)
            return class_sums(logits, batch["labels"], label_smoothing)

        def outputs(variables: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            return {"logits": scores(model, variables, vectors(variables, batch, None), None)}

        return Objective(loss, outputs)

    features = lambda variables, batch: pooled(model, variables, batch, None)  # noqa: E731
    whole = on(lambda variables, batch, key: pooled(model, variables, batch, key))
    return whole._replace(features=features, head=on(lambda variables, batch, key: batch["features"]))
