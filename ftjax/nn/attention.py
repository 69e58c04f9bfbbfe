"""Masks, rotary positions and attention. Masks come from (position, segment) alone, never from slot order."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.nn.config import Config
from ftjax.nn.core import Linear
from ftjax.nn.hooks import Site, acting, dropout


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far. S slots, filled up to `index`; an unfilled slot has segment 0."""

    k: jax.Array  # [L, B, K, S, hd]: a head's keys lie together, so that attending to them transposes nothing
    v: jax.Array  # [L, B, K, S, hd]
    positions: jax.Array  # [B, S], once for all layers
    segments: jax.Array  # [B, S]
    index: jax.Array  # []


class Context(NamedTuple):
    """What every layer of one forward pass shares."""

    mask: jax.Array  # bool [B, 1, T, S]: who sees whom
    real: jax.Array  # bool [B, T]: not padding
    rotary: tuple[jax.Array, jax.Array] | None  # cos, sin [B, T, hd / 2]
    index: jax.Array | None  # the cache's first free slot
    training: bool
    attentions: bool  # return the probabilities


def visible(
    positions: jax.Array, segments: jax.Array, key_positions: jax.Array, key_segments: jax.Array, causal: bool
) -> jax.Array:
    """Bool `[B, 1, T, S]`: the same segment, not padding (0), and not later if causal."""
    same = (segments[:, :, None] == key_segments[:, None, :]) & (segments[:, :, None] != 0)
    if causal:
        same &= key_positions[:, None, :] <= positions[:, :, None]
    return same[:, None]


def rotary(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin `[B, T, hd / 2]` of rotary position embedding (Su et al. 2021), fp32."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates `[B, T, H, hd]`, pairing dimension i with i + hd / 2 (the Llama layout)."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, key: jax.Array | None = None, rate: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """softmax(q k^T / sqrt(hd)) v with grouped heads, softmax in fp32.

    Args:
      q: `[B, T, H, hd]`; k, v: `[B, S, K, hd]`, H a multiple of K; mask: bool, broadcastable to `[B, 1, T, S]`.
      key, rate: dropout on the probabilities where a key is given.
    Returns:
      (`[B, T, H, hd]`, probabilities `[B, H, T, S]` before dropout).
    """
    b, t, h, d = q.shape
    kv, s = k.shape[2], k.shape[1]
    # Heads lead and a group's queries share an axis: both products are then plain batched matmuls, which XLA's CPU
    # backend would otherwise feed by copies of the transposed scores.
    q = q.reshape(b, t, kv, h // kv, d).transpose(0, 2, 3, 1, 4).reshape(b, kv, -1, d)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    scores = jnp.einsum("bkqd,bksd->bkqs", q, k, preferred_element_type=jnp.float32) * d**-0.5
    if mask is not None:
        by_group = scores.reshape(b, kv, -1, t, s)
        scores = jnp.where(mask[:, :, None], by_group, jnp.finfo(jnp.float32).min).reshape(scores.shape)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    probs = (weights / total).reshape(b, h, t, s)
    if key is not None:
        weights = dropout(key, weights, rate)
    # Dividing the result by the total, not the weights, saves two passes over `[T, S]`, forward and backward.
    out = jnp.einsum("bkqs,bksd->bkqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
    out = out.astype(v.dtype).reshape(b, kv, -1, t, d).transpose(0, 3, 1, 2, 4)
    return out.reshape(b, t, h, d), probs


class Attention(nn.Module):
    """Multi-head attention with grouped keys and values. A site of `sublayer`, `keys_values` and `attend`."""

    cfg: Config

    @nn.compact
    def __call__(
        self, x: jax.Array, ctx: Context, kv: Any, layer: jax.Array
    ) -> tuple[jax.Array, Any, jax.Array | None]:
        """x `[B, T, D]`, kv the whole cache's `[L, B, K, S, hd]` pair -> (y, updated kv, probabilities or None)."""
        cfg, site = self.cfg, Site(self, ctx.training)
        b, t, _ = x.shape

        def project(name: str, heads: int) -> jax.Array:
            linear = Linear(heads * cfg.head_dim, cfg.qkv_bias, cfg.dtype, std=cfg.init_std, name=name)
            return linear(x, ctx.training).reshape(b, t, heads, cfg.head_dim)

        q, k, v = project("q", cfg.num_heads), project("k", cfg.num_kv_heads), project("v", cfg.num_kv_heads)
        if ctx.rotary is not None:
            q, k = rotate(q, *ctx.rotary), rotate(k, *ctx.rotary)
        if kv is not None:
            at: Any = (layer, 0, 0, ctx.index, 0)
            news = (new.swapaxes(1, 2)[None] for new in (k, v))
            kv = tuple(jax.lax.dynamic_update_slice(c, new.astype(c.dtype), at) for c, new in zip(kv, news))
            k, v = (jax.lax.dynamic_index_in_dim(c, layer, keepdims=False).swapaxes(1, 2) for c in kv)
        mask = ctx.mask
        for adapter in acting(self, "keys_values", cfg.num_kv_heads, cfg.head_dim):
            pk, pv = (jnp.broadcast_to(p.astype(k.dtype), (b, *p.shape[-3:])) for p in adapter.keys_values(site))
            k, v = jnp.concatenate([pk, k], 1), jnp.concatenate([pv, v], 1)
            seen = jnp.broadcast_to(ctx.real[:, None, :, None], (b, 1, t, pk.shape[1]))
            mask = jnp.concatenate([seen, mask], -1)
        key = self.make_rng("dropout") if ctx.training and cfg.attention_dropout else None
        out, probs = attend(q, k, v, mask, key, cfg.attention_dropout)

        def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return attend(q, k[None], v[None], None)[0]

        beyond = []
        for adapter in acting(self, "attend", cfg.num_heads, cfg.num_kv_heads, cfg.head_dim):
            out, more = adapter.attend(q, out, plain, site)
            beyond += [] if more is None else [more.reshape(b, t, cfg.hidden_size)]
        y = Linear(cfg.hidden_size, cfg.out_bias, cfg.dtype, std=cfg.init_std, name="o")(
            out.reshape(b, t, cfg.num_heads * cfg.head_dim), ctx.training
        )
        for more in beyond:
            y = y + more
        if cfg.hidden_dropout:
            y = site.dropout(y, cfg.hidden_dropout)
        for adapter in acting(self, "sublayer", cfg.hidden_size):
            y = adapter.sublayer(x, y, site)
        return y, kv, probs if ctx.attentions else None
