"""Sequence classification from one pooled vector a row."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ftjax.models.transformer import Transformer
from ftjax.objectives.base import IGNORE, Objective, Sums
from ftjax.objectives.cross_entropy import cross_entropy


def classification(model: Transformer, *, label_smoothing: float = 0.0) -> Objective:
    """Cross-entropy of batches with `input_ids`, `segment_ids`, `position_ids` `[B, T]` and `labels` `[B]` (-100: an
    empty row). Pooling is the model's: last real token, first, or mean."""

    def pooled(variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
        training = key is not None
        out = model.apply(
            variables, batch["input_ids"], segment_ids=batch["segment_ids"], position_ids=batch["position_ids"],
            token_type_ids=batch.get("token_type_ids"), training=training,
            rngs={"dropout": key} if training else None, method="hidden",
        )  # fmt: skip
        return model.apply(variables, out.last_hidden, batch["segment_ids"], method="pool")

    def on(vectors: Callable[[Any, Mapping[str, jax.Array], jax.Array | None], jax.Array]) -> Objective:
        def loss(variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Sums:
            rngs = None if key is None else {"dropout": jax.random.fold_in(key, 1)}
            features, labels = vectors(variables, batch, key), batch["labels"]
            logits = model.apply(variables, features, key is not None, method="classify", rngs=rngs)
            total, nll = cross_entropy(logits, labels, label_smoothing)
            weight = jnp.sum(labels != IGNORE).astype(jnp.float32)
            correct = jnp.sum((logits.argmax(-1) == labels) & (labels != IGNORE)).astype(jnp.float32)
            return Sums(total.sum(), weight, {"nll": (nll.sum(), weight), "accuracy": (correct, weight)})

        def outputs(variables: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            return {"logits": model.apply(variables, vectors(variables, batch, None), method="classify")}

        return Objective(loss, outputs)

    features = lambda variables, batch: pooled(variables, batch, None)  # noqa: E731
    return on(pooled)._replace(features=features, head=on(lambda variables, batch, key: batch["features"]))
