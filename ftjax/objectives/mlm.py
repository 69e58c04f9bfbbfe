"""Masked language modelling (Devlin et al. 2018): 15% of the tokens, of them 80% masked, 10% random, 10% kept."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.errors import UserError
from ftjax.models.transformer import Transformer
from ftjax.objectives.base import IGNORE, Objective, Sums
from ftjax.objectives.body import at, hidden_states
from ftjax.objectives.lm import vocabulary_loss

Mask = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]


def masked_lm(
    model: Transformer,
    *,
    mask_id: int,
    special_ids: tuple[int, ...],
    rate: float = 0.15,
    continues: Any = None,
    chunk: int = 2048,
) -> Objective:
    """Masked-word loss of batches with `input_ids`, `segment_ids`, `position_ids` `[B, T]`.

    Masks are drawn anew each step from the step's key; evaluation draws them from a fixed key, so that its figure is
    reproducible. Arguments as in `mask_tokens`.
    """
    mask = masking(model, mask_id, special_ids, rate, continues)
    return Objective(lambda variables, batch, key: masked_words(model, variables, batch, key, mask, chunk)[2])


def masking(
    model: Transformer,
    mask_id: int,
    special_ids: tuple[int, ...],
    rate: float,
    continues: Any,
    masked: float = 0.8,
    random: float = 0.1,
) -> Mask:
    """`mask_tokens` for a model: (key, ids, segments) -> its results.

    Raises:
      UserError: a rate outside (0, 1), or a table `continues` of another size than the vocabulary.
    """
    vocab = model.cfg.vocab_size
    if not 0 < rate < 1:
        raise UserError(f"the rate of masked tokens must be between 0 and 1, is {rate}")
    if continues is not None and np.shape(continues) != (vocab,):
        raise UserError(f"continues has the shape {np.shape(continues)}, the vocabulary has {vocab} tokens")
    return partial(
        mask_tokens, vocab=vocab, mask_id=mask_id, special_ids=special_ids, rate=rate, masked=masked, random=random,
        continues=continues,
    )  # fmt: skip


def masked_words(
    model: Transformer, variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None, mask: Mask, chunk: int
) -> tuple[jax.Array, jax.Array, Sums]:
    """(hidden states `[B, T, D]` of the masked batch, labels `[B, M]`, sums of their cross-entropy)."""
    draw, drop = jax.random.split(jax.random.key(0) if key is None else key)
    dropout = None if key is None else drop
    ids, positions, labels = mask(draw, batch["input_ids"], batch["segment_ids"])
    hidden = hidden_states(model, variables, {**batch, "input_ids": ids}, dropout)
    words = vocabulary_loss(model, variables, at(hidden, positions), labels, dropout, 0.0, 0.0, chunk)
    return hidden, labels, words


def mask_tokens(
    key: jax.Array,
    ids: jax.Array,
    segments: jax.Array,
    *,
    vocab: int,
    mask_id: int,
    special_ids: tuple[int, ...],
    rate: float,
    masked: float,
    random: float,
    continues: Any = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hides a share of the tokens: corrupted ids `[B, T]`, the predicted positions and their labels `[B, M]` (-100 past
    the row's share), M = round(rate T).

    A row of n real tokens, special ones and soft ones (>= vocab) not counted, has round(rate n) of them predicted.

    Args:
      ids, segments: `[B, T]`; segment 0 is padding.
      masked, random: of the predicted tokens, the shares shown as `mask_id` and as any token; the rest stays.
      continues: bool `[V]`, the tokens that go on with a word ('##...' of WordPiece). Given, whole words are predicted:
        in random order, each that still fits into the row's share.
    """
    choose, act, word = jax.random.split(key, 3)
    real = (segments != 0) & (ids < vocab) & ~jnp.isin(ids, jnp.asarray(special_ids, ids.dtype))
    count = jnp.round(rate * real.sum(1, keepdims=True)).astype(jnp.int32)
    if continues is not None:
        inside = jnp.asarray(continues)[jnp.minimum(ids, vocab - 1)]
        real = _whole_words(jax.random.fold_in(choose, 1), real, segments, inside, count[:, 0])
        count = real.sum(1, keepdims=True)
    most = max(round(rate * ids.shape[1]), 1)
    _, positions = jax.lax.top_k(jnp.where(real, jax.random.uniform(choose, ids.shape), -1.0), most)
    wanted = jnp.arange(most) < count
    original = jnp.take_along_axis(ids, positions, 1)
    u = jax.random.uniform(act, positions.shape)
    any_word = jax.random.randint(word, positions.shape, 0, vocab)
    shown = jnp.where(u < masked, mask_id, jnp.where(u < masked + random, any_word, original))
    rows = jnp.arange(ids.shape[0])[:, None]
    ids = ids.at[rows, positions].set(jnp.where(wanted, shown, original))
    return ids, positions, jnp.where(wanted, original, IGNORE)


def _whole_words(
    key: jax.Array, real: jax.Array, segments: jax.Array, inside: jax.Array, count: jax.Array
) -> jax.Array:
    """Which tokens `[B, T]` belong to the chosen words, at most `count [B]` a row (BERT's rule for whole words)."""
    before = jnp.where(real, segments, 0)  # a word ends at a special token and at its segment's end
    before = jnp.pad(before[:, :-1], ((0, 0), (1, 0)))
    word = jnp.cumsum(real & ~(inside & (before == segments)), 1)
    rows = jnp.arange(real.shape[0])[:, None]
    sizes = jnp.zeros((real.shape[0], real.shape[1] + 1), jnp.int32).at[rows, word].add(real.astype(jnp.int32))
    order = jnp.argsort(jax.random.uniform(key, sizes.shape), 1)

    def take(used: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array]:
        fits = used + size <= count
        return jnp.where(fits, used + size, used), fits

    _, taken = jax.lax.scan(take, jnp.zeros_like(count), jnp.take_along_axis(sizes, order, 1).T, unroll=8)
    return real & jnp.zeros_like(sizes, bool).at[rows, order].set(taken.T)[rows, word]
