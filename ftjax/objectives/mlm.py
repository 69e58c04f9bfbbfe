"""Masked language modelling (Devlin et al. 2018): 15% of the tokens, of them 80% masked, 10% random, 10% kept."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ftjax.models.transformer import Transformer
from ftjax.objectives.base import IGNORE, Objective, Sums
from ftjax.objectives.lm import vocabulary_loss


def masked_lm(
    model: Transformer, *, mask_id: int, special_ids: tuple[int, ...], rate: float = 0.15, chunk: int = 2048
) -> Objective:
    """Masked-word loss of batches with `input_ids`, `segment_ids`, `position_ids` `[B, T]`.

    Masks are drawn anew each step from the step's key; evaluation draws them from a fixed key, so that its figure is
    reproducible. A row of n real tokens has round(rate n) of them predicted.
    """

    def loss(variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Sums:
        training = key is not None
        draw, drop = jax.random.split(jax.random.key(0) if key is None else key)
        ids, positions, labels = mask_tokens(draw, batch["input_ids"], batch["segment_ids"] != 0, model.cfg.vocab_size)
        out = model.apply(
            variables, ids, segment_ids=batch["segment_ids"], position_ids=batch["position_ids"],
            training=training, rngs={"dropout": drop} if training else None, method="hidden",
        )  # fmt: skip
        hidden = jnp.take_along_axis(out.last_hidden, positions[..., None], axis=1)
        return vocabulary_loss(model, variables, hidden, labels, drop if training else None, 0.0, 0.0, chunk)

    def mask_tokens(key: jax.Array, ids: jax.Array, real: jax.Array, vocab: int) -> tuple[jax.Array, ...]:
        """Corrupted ids `[B, T]`, predicted positions and their labels `[B, M]` (-100 past the row's share)."""
        choose, act, word = jax.random.split(key, 3)
        real &= ~jnp.isin(ids, jnp.asarray(special_ids))
        most = max(round(rate * ids.shape[1]), 1)
        _, positions = jax.lax.top_k(jnp.where(real, jax.random.uniform(choose, ids.shape), -1.0), most)
        wanted = jnp.arange(most) < jnp.round(rate * real.sum(1, keepdims=True))
        original = jnp.take_along_axis(ids, positions, 1)
        u = jax.random.uniform(act, positions.shape)
        random_word = jax.random.randint(word, positions.shape, 0, vocab)
        shown = jnp.where(u < 0.8, mask_id, jnp.where(u < 0.9, random_word, original))
        rows = jnp.arange(ids.shape[0])[:, None]
        ids = ids.at[rows, positions].set(jnp.where(wanted, shown, original))
        return ids, positions, jnp.where(wanted, original, IGNORE)

    return Objective(loss)
