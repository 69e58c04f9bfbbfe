"""Extractive question answering: where the answer begins and ends (Devlin et al. 2018, sections 4.2 and 4.3)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ftjax.models.transformer import Transformer
from ftjax.objectives.base import Objective, Sums
from ftjax.objectives.body import hidden_states, scores
from ftjax.objectives.cross_entropy import cross_entropy

FIRST, LAST = 1, 2  # marks of an answer's tokens


def span(model: Transformer) -> Objective:
    """The mean of the cross-entropies of start and end, each over the real tokens of its row, of batches with
    `input_ids`, `segment_ids`, `position_ids` `[B, T]`, one example a row, and `answer` `[B, T]`: FIRST at the answer's
    first token plus LAST at its last, both at [CLS] where there is none; 0 all along an empty row. The model's head is
    `span`.

    Outputs: `start`, `end` `[B, T]`, fp32 logits, the lowest number on padding.
    """

    def logits(variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
        """`[B, 2, T]`."""
        found = scores(model, variables, hidden_states(model, variables, batch, key), key)
        return jnp.where(batch["segment_ids"][:, None] != 0, found.swapaxes(1, 2), jnp.finfo(jnp.float32).min)

    def loss(variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Sums:
        found, marks = logits(variables, batch, key), batch["answer"]
        labels = jnp.stack([(marks & FIRST).argmax(-1), (marks & LAST).argmax(-1)], -1)
        real = (marks != 0).any(-1)
        both = jnp.where(real, cross_entropy(found, labels)[0].mean(-1), 0)
        weight = real.sum().astype(jnp.float32)
        right = jnp.sum((found.argmax(-1) == labels).all(-1) & real).astype(jnp.float32)
        return Sums(both.sum(), weight, {"nll": (both.sum(), weight), "accuracy": (right, weight)})

    def outputs(variables: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        start, end = logits(variables, batch, None).swapaxes(0, 1)
        return {"start": start, "end": end}

    return Objective(loss, outputs)
