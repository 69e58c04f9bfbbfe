"""T5's span corruption (Raffel et al. 2019, section 3.1.4): spans go out of the encoder's text, the decoder writes
them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ftjax.errors import UserError
from ftjax.models.transformer import Transformer
from ftjax.objectives.base import IGNORE, Objective, Sums
from ftjax.objectives.lm import causal_lm


def span_corruption(
    model: Transformer,
    *,
    sentinels: tuple[int, ...],
    eos_id: int,
    start_id: int,
    rate: float = 0.15,
    mean_span: float = 3.0,
    z_loss: float = 0.0,
    chunk: int = 2048,
) -> Objective:
    """The decoder's cross-entropy of batches with `input_ids`, `segment_ids` `[B, T]`, whose rows are full of one text.

    Spans are drawn anew each step from the step's key; evaluation draws them from a fixed key. Arguments as in
    `corrupt`; the loss as in `causal_lm`.

    Raises:
      UserError: a model without an encoder; when it is traced, what `corrupt` raises.
    """
    if model.cfg.encoder is None:
        raise UserError("span corruption needs an encoder-decoder; this model has no encoder")
    decoder = causal_lm(model, z_loss=z_loss, chunk=chunk)

    def loss(variables: Any, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Sums:
        draw, drop = jax.random.split(jax.random.key(0) if key is None else key)
        corrupted = corrupt(
            draw, batch["input_ids"], batch["segment_ids"], sentinels=sentinels, eos_id=eos_id, start_id=start_id,
            rate=rate, mean_span=mean_span,
        )  # fmt: skip
        return decoder.loss(variables, corrupted, None if key is None else drop)

    return Objective(loss)


def span_counts(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """(tokens that go, in so many spans) of a row of `length` tokens: round(rate T) and round(that / mean_span), with
    at least one token in each span and one before it."""
    gone = min(max(round(length * rate), 1), length - 1)
    return gone, min(max(round(gone / mean_span), 1), gone, length - gone)


def corrupt(
    key: jax.Array,
    ids: jax.Array,
    segments: jax.Array,
    *,
    sentinels: tuple[int, ...],
    eos_id: int,
    start_id: int,
    rate: float = 0.15,
    mean_span: float = 3.0,
) -> dict[str, jax.Array]:
    """A batch for an encoder-decoder from rows of text, all of the same two lengths.

    With k spans of n tokens in all: `encoder_input_ids [B, T - n + k + 1]` is the text with a sentinel in place of each
    span, and `labels [B, n + k + 1]` each sentinel with its span, both closed by `eos_id`; `input_ids` are the labels
    moved by `start_id`. Lengths of the spans, and of what lies between, are uniform over the partitions; a row begins
    with text and ends with a span, as in T5's code.

    Args:
      ids, segments: `[B, T]`. A row with padding (segment 0) anywhere counts as empty.
      sentinels: their ids, the first span's first (T5: <extra_id_0>, descending).
    Raises:
      UserError: rows of one token, or fewer sentinels than spans.
    """
    batch, length = ids.shape
    if length < 2:
        raise UserError("span corruption needs rows of 2 tokens or more")
    gone, spans = span_counts(length, rate, mean_span)
    if len(sentinels) < spans:
        raise UserError(f"rows of {length} tokens have {spans} spans, but there are {len(sentinels)} sentinels")
    text_key, span_key = jax.random.split(key)
    lengths = [_partition(k, batch, n, spans) for k, n in ((text_key, length - gone), (span_key, gone))]
    ends = jnp.cumsum(jnp.stack(lengths, -1).reshape(batch, 2 * spans), 1)  # of text, span, text, span, ...
    piece = (jnp.arange(length)[:, None] >= ends[:, None]).sum(-1)
    hidden, first = piece % 2 == 1, jnp.diff(piece, axis=1, prepend=-1) != 0
    sentinel = jnp.asarray(sentinels, ids.dtype)[piece // 2]

    def without(hidden: jax.Array, size: int) -> jax.Array:
        """The rows with each hidden piece as its sentinel, and the end."""
        kept = jnp.argsort(hidden & ~first, axis=1, stable=True)[:, :size]
        row = jnp.take_along_axis(jnp.where(hidden, sentinel, ids), kept, 1)
        return jnp.pad(row, ((0, 0), (0, 1)), constant_values=eos_id)

    full = (segments != 0).all(1, keepdims=True)
    source, target = without(hidden, length - gone + spans), without(~hidden, gone + spans)
    steps = [jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape) for x in (source, target)]
    real = [jnp.broadcast_to(full, x.shape).astype(jnp.int32) for x in (source, target)]
    return {
        "encoder_input_ids": source,
        "encoder_segment_ids": real[0],
        "encoder_position_ids": steps[0],
        "input_ids": jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=start_id),
        "segment_ids": real[1],
        "position_ids": steps[1],
        "label_positions": steps[1],
        "labels": jnp.where(full, target, IGNORE),
    }


def _partition(key: jax.Array, batch: int, total: int, parts: int) -> jax.Array:
    """`[batch, parts]` numbers of 1 or more that sum to `total`, uniform over all such."""
    cuts = jnp.argsort(jax.random.uniform(key, (batch, total - 1)), 1)[:, : parts - 1] + 1
    return jnp.diff(jnp.sort(cuts, 1), axis=1, prepend=0, append=total)
