"""Causal language modelling: next-token cross-entropy at the labelled positions only."""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ftjax.models.transformer import Transformer
from ftjax.objectives.base import IGNORE, Objective, Sums
from ftjax.objectives.cross_entropy import chunked, cross_entropy


def causal_lm(
    model: Transformer,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Literal["token", "sentence"] = "token",
    chunk: int = 2048,
) -> Objective:
    """Language-model loss of batches with `input_ids`, `segment_ids`, `position_ids` `[B, T]`, and `label_positions`,
    `labels` `[B, M]`: the hidden state at `label_positions[b, m]` predicts `labels[b, m]` (-100: none).

    An encoder-decoder's batches hold `encoder_input_ids`, `encoder_segment_ids`, `encoder_position_ids` `[B, S]` too.

    reduction: the mean over labelled tokens, or over examples of their sum (Li & Liang 2021).
    """

    def loss(variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Sums:
        training = key is not None
        out = model.apply(
            variables,
            batch["input_ids"],
            segment_ids=batch["segment_ids"],
            position_ids=batch["position_ids"],
            training=training,
            rngs={"dropout": key} if training else None,
            method="hidden",
            **{name: x for name, x in batch.items() if name.startswith("encoder_")},
        )
        hidden = jnp.take_along_axis(out.last_hidden, batch["label_positions"][..., None], axis=1)
        return vocabulary_loss(
            model, variables, hidden, batch["labels"], key, label_smoothing, z_loss, chunk,
            examples=jnp.max(batch["segment_ids"], 1).sum() if reduction == "sentence" else None,
        )  # fmt: skip

    return Objective(loss)


def vocabulary_loss(
    model: Transformer,
    variables: Any,
    hidden: jax.Array,
    labels: jax.Array,
    key: jax.Array | None,
    label_smoothing: float,
    z_loss: float,
    chunk: int,
    examples: jax.Array | None = None,
) -> Sums:
    """Sums of cross-entropy over the vocabulary: hidden `[B, M, D]`, labels `[B, M]`; per token, or per example."""
    training = key is not None

    def one(variables: Any, h: jax.Array, y: jax.Array, number: jax.Array) -> tuple[jax.Array, Any]:
        rngs = {} if key is None else {"dropout": jax.random.fold_in(key, number)}  # or all chunks would drop alike
        logits = model.apply(variables, h, training, method="logits", rngs=rngs)
        loss, nll = cross_entropy(logits, y, label_smoothing, z_loss)
        if training:
            return loss.sum(), {}
        return loss.sum(), {"nll": nll.sum(), "token_accuracy": jnp.sum((logits.argmax(-1) == y) & (y != IGNORE)) * 1.0}

    loss, sums = chunked(one, variables, hidden, labels, chunk)
    tokens = jnp.sum(labels != IGNORE).astype(jnp.float32)
    weight = tokens if examples is None else examples.astype(jnp.float32)
    return Sums(loss, weight, {name: (total, tokens) for name, total in sums.items()})
