"""What distillation asks of a model: the states that its head reads, the head's scores, a teacher's view of a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ftjax.distill.cache import Entries
from ftjax.distill.losses import top_k
from ftjax.errors import UserError
from ftjax.models.transformer import Transformer
from ftjax.objectives import body
from ftjax.objectives.body import forward, vocabulary_logits
from ftjax.objectives.cross_entropy import places_at_a_time

Batch = Mapping[str, jax.Array]
VOCABULARY, PER_TOKEN, PER_ROW = ("lm", "mlm"), ("lm", "mlm", "tagging"), ("classification",)  # heads


def read(model: Transformer, variables: Any, hidden: Any, batch: Batch) -> jax.Array:
    """What the head reads of `[B, T, D]`: the states at `label_positions`, `[B, M, D]`, or one pooled, `[B, 1, D]`.

    Raises:
      UserError: a head that predicts no classes or tokens.
    """
    if model.cfg.head in PER_ROW:
        return model.apply(variables, hidden, batch["segment_ids"], method="pool")[:, None]
    if model.cfg.head not in PER_TOKEN:
        heads = ", ".join((*PER_TOKEN, *PER_ROW))
        raise UserError(f"distill: a model with the head {model.cfg.head!r} has no such scores; heads {heads} do")
    return jnp.take_along_axis(hidden, batch["label_positions"][..., None], axis=1)


def scores(
    model: Transformer, variables: Any, states: jax.Array, key: jax.Array | None = None, first: Any = 0
) -> jax.Array:
    """Logits over tokens or classes, fp32, of the places `first` to `first + M` of each row: `[B, M, D]` ->
    `[B, M, V]`."""
    if model.cfg.head in VOCABULARY:
        return vocabulary_logits(model, variables, states, key, first)
    return body.scores(model, variables, states, key)


def without_virtual(batch: Batch, vocab: int) -> dict[str, jax.Array]:
    """The batch as a model sees it that knows no virtual ids (>= vocab), which a student's prompt method puts into the
    text: they become padding, positions close up, and what was predicted at one is predicted at the last real token
    before it. Shapes stay."""
    new = dict(batch)
    for prefix in ("", "encoder_"):
        ids, segments, positions = (f"{prefix}{name}" for name in ("input_ids", "segment_ids", "position_ids"))
        if ids not in batch:
            continue
        real = batch[ids] < vocab
        before = jnp.cumsum(~real, 1) - ~real  # virtual ids to the left, in the row
        outside = jax.lax.cummax(jnp.where(batch[positions] == 0, before, 0), axis=1)  # of them in other segments
        new[ids] = jnp.where(real, batch[ids], 0)
        new[segments] = jnp.where(real, batch[segments], 0)
        new[positions] = jnp.where(real, batch[positions] - (before - outside), 0)
    if "label_positions" in batch:
        real = new["segment_ids"] != 0
        last = jax.lax.cummax(jnp.where(real, jnp.arange(real.shape[1]), 0), axis=1)
        new["label_positions"] = jnp.take_along_axis(last, batch["label_positions"], 1)
    return new


def entries(
    model: Transformer, variables: Any, batch: Batch, k: int, temperatures: Sequence[float], chunk: int = 2048
) -> Entries:
    """What a teacher's cache stores of a batch: `[B, M, ...]` for its labels `[B, M]`, or `[B, 1, ...]` for `[B]`.

    chunk: positions of a device whose logits exist at a time.
    """

    def one(states: jax.Array) -> Entries:
        logits = scores(model, variables, states)
        log_z = [jax.nn.logsumexp(logits / t, -1) for t in temperatures]
        made = [top_k(logits, k, t) for t in temperatures]  # of the same tokens
        return Entries(*made[0][:2], jnp.stack(log_z, -1), jnp.stack([entry.log_tail for entry in made], -1))

    states = read(model, variables, forward(model, variables, batch).last_hidden, batch)
    found = jax.lax.map(one, states.swapaxes(0, 1), batch_size=places_at_a_time(chunk, states.shape[0]))
    return jax.tree.map(lambda x: x.swapaxes(0, 1), found)
