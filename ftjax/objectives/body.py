"""What several objectives share: hidden states, some of them, the classifier's scores, and sums over classes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ftjax.models.stack import Output
from ftjax.models.transformer import Transformer
from ftjax.objectives.base import IGNORE, Sums
from ftjax.objectives.cross_entropy import cross_entropy


def forward(
    model: Transformer, variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None = None, **wanted: Any
) -> Output:
    """The pass without the head over `input_ids`, `segment_ids`, `position_ids` and, where the batch has them,
    `prompt_ids`, `token_type_ids`, `[B, T]` each, and what an encoder reads (`encoder_...`). A key means training
    (dropout on); `wanted` are `output_hidden_states` and `output_attentions`."""
    out: Any = model.apply(
        variables, batch["input_ids"], segment_ids=batch["segment_ids"], position_ids=batch["position_ids"],
        prompt_ids=batch.get("prompt_ids"), token_type_ids=batch.get("token_type_ids"), training=key is not None,
        rngs=None if key is None else {"dropout": key}, method="hidden",
        **{name: x for name, x in batch.items() if name.startswith("encoder_")}, **wanted,
    )  # fmt: skip
    return out


def hidden_states(model: Transformer, variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Any:
    """The last hidden states `[B, T, D]`, as `forward` gives them."""
    return forward(model, variables, batch, key).last_hidden


def at(hidden: jax.Array, positions: jax.Array) -> jax.Array:
    """`[B, T, D]` at positions `[B, M]` -> `[B, M, D]`."""
    return jnp.take_along_axis(hidden, positions[..., None], axis=1)


def pooled(model: Transformer, variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
    """One vector a row, by the model's pooling: `[B, D]`."""
    return model.apply(variables, hidden_states(model, variables, batch, key), batch["segment_ids"], method="pool")


def scores(
    model: Transformer, variables: Any, features: jax.Array, key: jax.Array | None, method: str = "classify"
) -> jax.Array:
    """The classifier's scores of vectors, or with `logits` the vocabulary's: `[..., D]` -> `[..., C]`, fp32."""
    rngs = None if key is None else {"dropout": jax.random.fold_in(key, 1)}
    return model.apply(variables, features, key is not None, method=method, rngs=rngs)


def vocabulary_logits(
    model: Transformer, variables: Any, hidden: jax.Array, key: jax.Array | None, first: jax.Array
) -> jax.Array:
    """Of the places `first` to `first + m` of each row, `[B, m, D]` -> `[B, m, V]`, fp32. What the head draws in
    training, for adapters of its own, is by place: the same in chunks of any size."""
    if key is None or "head" not in variables.get("adapters", {}):
        return model.apply(variables, hidden, method="logits")

    def of_place(h: jax.Array, place: jax.Array) -> jax.Array:
        rngs = {"dropout": jax.random.fold_in(key, place)}
        return model.apply(variables, h, True, method="logits", rngs=rngs)

    return jax.vmap(of_place, in_axes=(1, 0), out_axes=1)(hidden, first + jnp.arange(hidden.shape[1]))


def class_sums(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> Sums:
    """Cross-entropy, `nll` and `accuracy` of logits `[..., C]` and labels `[...]` (-100 ignored), each of weight 1."""
    loss, nll = cross_entropy(logits, labels, label_smoothing)
    weight = jnp.sum(labels != IGNORE).astype(jnp.float32)
    right = jnp.sum((logits.argmax(-1) == labels) & (labels != IGNORE)).astype(jnp.float32)
    return Sums(loss.sum(), weight, {"nll": (nll.sum(), weight), "accuracy": (right, weight)})
