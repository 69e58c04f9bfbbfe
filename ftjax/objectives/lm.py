"""Causal language modelling: next-token cross-entropy at the labelled positions only."""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ftjax.models.transformer import Transformer
from ftjax.objectives.base import IGNORE, Objective, Sums
from ftjax.objectives.body import at, hidden_states, vocabulary_logits
from ftjax.objectives.cross_entropy import chunked, cross_entropy, places_at_a_time


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

    Where examples share prompts, there are `prompt_ids` `[B, T]` (see `ftjax.data.loader`), and two labels may be
    predicted at one position. An encoder-decoder's batches hold `encoder_input_ids`, `encoder_segment_ids`,
    `encoder_position_ids` `[B, S]` too.

    reduction: the mean over labelled tokens, or over examples of their sum (Li & Liang 2021).
    """

    def hidden(variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
        return at(hidden_states(model, variables, batch, key), batch["label_positions"])

    def loss(variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Sums:
        return vocabulary_loss(
            model, variables, hidden(variables, batch, key), batch["labels"], key, label_smoothing, z_loss, chunk,
            examples=jnp.max(batch["segment_ids"], 1).sum() if reduction == "sentence" else None,
        )  # fmt: skip

    def outputs(variables: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return vocabulary_outputs(model, variables, hidden(variables, batch, None), batch["labels"], chunk)

    return Objective(loss, outputs)


def vocabulary_outputs(
    model: Transformer, variables: Any, hidden: jax.Array, labels: jax.Array, chunk: int
) -> dict[str, jax.Array]:
    """`nll` and `correct` (0 or 1), fp32 `[B, M]`, of hidden `[B, M, D]` and labels `[B, M]`; 0 where ignored."""

    def one(place: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
        h, y = place
        logits = model.apply(variables, h, False, method="logits")
        return {"nll": cross_entropy(logits, y)[1], "correct": ((logits.argmax(-1) == y) & (y != IGNORE)) * 1.0}

    size = places_at_a_time(chunk, labels.shape[0])
    found = jax.lax.map(one, (hidden.swapaxes(0, 1), labels.T), batch_size=size)
    return {name: x.T for name, x in found.items()}


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

    def one(variables: Any, h: jax.Array, y: jax.Array, first: jax.Array) -> tuple[jax.Array, Any]:
        logits = vocabulary_logits(model, variables, h, key, first)
        loss, nll = cross_entropy(logits, y, label_smoothing, z_loss)
        if key is not None:
            return loss.sum(), {}
        return loss.sum(), {"nll": nll.sum(), "token_accuracy": jnp.sum((logits.argmax(-1) == y) & (y != IGNORE)) * 1.0}

    loss, sums = chunked(one, variables, hidden, labels, chunk)
    tokens = jnp.sum(labels != IGNORE).astype(jnp.float32)
    weight = tokens if examples is None else examples.astype(jnp.float32)
    return Sums(loss, weight, {name: (total, tokens) for name, total in sums.items()})
