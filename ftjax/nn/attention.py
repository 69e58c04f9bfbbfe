"""Masks and attention. Masks come from (position, segment) alone; fused kernels take slots for positions, which are in
their order inside a segment."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.nn import kernels
from ftjax.nn.config import Config
from ftjax.nn.core import Linear, Norm
from ftjax.nn.hooks import Site, acting, dropout
from ftjax.nn.positions import rotate


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far. S slots, filled up to `index`; an unfilled slot has segment 0.

    kv: keys `[L, B, K, hd, S]` and values `[L, B, K, S, hd]`, as the products of the attention read them, so that
      nothing is transposed; of an encoder-decoder, with those of the encoder's tokens after them. Or a list of such
      without L, one a layer: XLA's CPU backend copies what it reads of a larger array.
    """

    kv: Any
    positions: jax.Array  # [B, S], once for all layers
    segments: jax.Array  # [B, S]
    index: jax.Array  # []
    source: jax.Array | None = None  # [B, S], segments of the encoder's tokens


class Held(NamedTuple):
    """A layer's keys and values in a cache: all layers' arrays and its row in them, or its own (row None)."""

    arrays: tuple[jax.Array, ...]
    row: jax.Array | None

    def write(self, k: jax.Array, v: jax.Array, at: jax.Array | int) -> "Held":
        """With `[B, T, K, hd]` from slot `at` on."""
        new, where = (k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)), ((0, 0, 0, at), (0, 0, at, 0))
        if self.row is not None:
            new, where = tuple(x[None] for x in new), tuple((self.row, *place) for place in where)
        put: Any = jax.lax.dynamic_update_slice
        return self._replace(arrays=tuple(put(x, y.astype(x.dtype), at) for x, y, at in zip(self.arrays, new, where)))

    def read(self) -> tuple[jax.Array, jax.Array]:
        """`[B, S, K, hd]` each."""
        keys, values = self.arrays
        if self.row is not None:
            keys, values = (jax.lax.dynamic_index_in_dim(x, self.row, keepdims=False) for x in self.arrays)
        return keys.transpose(0, 3, 1, 2), values.swapaxes(1, 2)


class Sight(NamedTuple):
    """Where queries look."""

    mask: jax.Array  # bool [B, 1, T, S]: who sees whom
    rotary: tuple[jax.Array, jax.Array] | None  # cos, sin [B, T, hd / 2]


class Relative(NamedTuple):
    """Relative positions. T5: `bias [B, H, T, S]`, added to the scores. DeBERTa: the embeddings of all distances, which
    each layer projects as it does tokens, and the row of each pair."""

    bias: jax.Array | None = None
    embeddings: jax.Array | None = None  # [N, D]
    rows: Any = None  # int [B, T, S]


class Context(NamedTuple):
    """What every layer of one forward pass shares."""

    segments: jax.Array  # [B, T], 0 on padding
    prompts: jax.Array | None  # [B, T], the segment of a prompt that others share, too
    max_segments: int | None  # of a row, as in `kernels.Request`
    everywhere: Sight
    nearby: Sight | None  # of the layers with a window
    relative: Relative | None
    memory: jax.Array | None  # [B, S, D]: what the encoder made of its tokens; None where the cache knows it
    memory_mask: jax.Array | None  # bool [B, 1, T, S]
    memory_segments: jax.Array | None  # [B, S]
    memory_max_segments: int | None
    index: jax.Array | None  # the cache's first free slot
    training: bool
    attentions: bool  # return the probabilities


def visible(
    positions: jax.Array,
    segments: jax.Array,
    key_positions: jax.Array,
    key_segments: jax.Array,
    causal: bool,
    window: int = 0,
    prompts: jax.Array | None = None,
) -> jax.Array:
    """Bool `[B, 1, T, S]`: the same segment or that of the query's prompt (`[B, T]`, 0 for none), not padding (0), not
    later if causal, and less than `window` away. Segments of keys may differ by query: `[B, S]` or `[B, T, S]`."""
    key_segments = key_segments if key_segments.ndim == 3 else key_segments[:, None, :]
    seen = segments[:, :, None] == key_segments
    if prompts is not None:
        seen |= prompts[:, :, None] == key_segments
    seen &= key_segments != 0
    distance = positions[:, :, None] - key_positions[:, None, :]
    if causal:
        seen &= distance >= 0
    if window:
        seen &= jnp.abs(distance) < window
    return seen[:, None]


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    key: jax.Array | None = None,
    rate: float = 0.0,
    *,
    scale: float = 0.0,
    bias: jax.Array | None = None,
    softcap: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """softmax(scale q k^T + bias) v with grouped heads, softmax in fp32.

    Args:
      q: `[B, T, H, hd]`; k, v: `[B, S, K, hd]`, H a multiple of K; mask: bool, broadcastable to `[B, 1, T, S]`.
      key, rate: dropout on the probabilities where a key is given.
      scale: 0 for hd ** -0.5; bias: `[B, H, T, S]`; softcap: c of c tanh(scores / c), 0 for none.
    Returns:
      (`[B, T, H, hd]`, probabilities `[B, H, T, S]` before dropout).
    """
    b, t, h, d = q.shape
    kv, s = k.shape[2], k.shape[1]
    # Heads lead and a group's queries share an axis: both products are then plain batched matmuls, which XLA's CPU
    # backend would otherwise feed by copies of the transposed scores.
    q = q.reshape(b, t, kv, h // kv, d).transpose(0, 2, 3, 1, 4).reshape(b, kv, -1, d)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    scores = jnp.einsum("bkqd,bksd->bkqs", q, k, preferred_element_type=jnp.float32) * (scale or d**-0.5)
    if bias is not None:
        scores = scores + bias.reshape(scores.shape)
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
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


def disentangled(q: jax.Array, k: jax.Array, pos_q: jax.Array, pos_k: jax.Array, rows: jax.Array) -> jax.Array:
    """Content to position and position to content (He et al. 2021, equation 4), unscaled: `[B, H, T, S]`.

    Args:
      q, k: `[B, T, H, hd]`, `[B, S, H, hd]`; pos_q, pos_k: `[1, N, H, hd]` of every distance, or `[B, N, H, hd]` where
        an adapter is each example's own; rows: `[B, T, S]`.
    """
    rows = rows[:, None]

    def dot(x: jax.Array, y: jax.Array) -> jax.Array:
        shared = len(y) == 1
        terms = "bthd,nhd->bhtn" if shared else "bthd,bnhd->bhtn"
        return jnp.einsum(terms, x, y[0] if shared else y, preferred_element_type=jnp.float32)

    to_position = jnp.take_along_axis(dot(q, pos_k), rows, -1)
    to_content = jnp.take_along_axis(dot(k, pos_q), rows.swapaxes(2, 3), -1)
    return to_position + to_content.swapaxes(2, 3)


class Attention(nn.Module):
    """Multi-head attention with grouped keys and values, to the sequence itself or, `cross`, to the encoder's. A site
    of `sublayer`, `keys_values` and `attend`."""

    cfg: Config
    cross: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, ctx: Context, kv: Held | None, layer: jax.Array
    ) -> tuple[jax.Array, Held | None, jax.Array | None]:
        """x `[B, T, D]`, kv of the cache -> (y, updated kv, probabilities or None)."""
        cfg, site = self.cfg, Site(self, ctx.training)
        b, t, _ = x.shape
        linears = {
            name: Linear(n * cfg.head_dim, cfg.qkv_bias, cfg.dtype, std=cfg.init_std, name=name)
            for name, n in (("q", cfg.num_heads), ("k", cfg.num_kv_heads), ("v", cfg.num_kv_heads))
        }

        def project(name: str, x: jax.Array) -> jax.Array:
            y = linears[name](x, ctx.training)
            split = lambda y: y.reshape(*y.shape[:-1], -1, cfg.head_dim)  # noqa: E731
            if cfg.qk_norm == "none" or name == "v":
                return split(y)
            norm = Norm(cfg, name=f"{name}_norm")
            return split(norm(y)) if cfg.qk_norm == "all" else norm(split(y))

        q, scale = project("q", x), cfg.attention_scale or cfg.head_dim**-0.5
        bias = None
        if self.cross:
            mask: Any = ctx.memory_mask
            if ctx.memory is None:  # the cache has them
                assert kv is not None
                k, v = kv.read()
            else:
                k, v = project("k", ctx.memory), project("v", ctx.memory)
                kv = kv and kv.write(k, v, 0)
        else:
            sight, k, v = self._sight(ctx, layer), project("k", x), project("v", x)
            mask = sight.mask
            if sight.rotary is not None:
                q, k = rotate(q, *sight.rotary), rotate(k, *sight.rotary)
            if kv is not None:
                at: Any = ctx.index
                kv = kv.write(k, v, at)
                k, v = kv.read()
            if ctx.relative is not None:
                bias = ctx.relative.bias
                if ctx.relative.embeddings is not None:
                    table = ctx.relative.embeddings
                    table = site.dropout(table, cfg.hidden_dropout) if cfg.hidden_dropout else table
                    far, rows = (project("q", table[None]), project("k", table[None])), ctx.relative.rows
                    bias = disentangled(q, k, *far, rows) * scale
        keys = k.shape[1]
        for adapter in acting(self, "keys_values", cfg.num_kv_heads, cfg.head_dim):
            pk, pv = (jnp.broadcast_to(p.astype(k.dtype), (b, *p.shape[-3:])) for p in adapter.keys_values(site))
            k, v = jnp.concatenate([pk, k], 1), jnp.concatenate([pv, v], 1)
            seen = jnp.broadcast_to((ctx.segments != 0)[:, None, :, None], (b, 1, t, pk.shape[1]))
            mask = jnp.concatenate([seen, mask], -1)
            if bias is not None:
                bias = jnp.concatenate([jnp.zeros((*bias.shape[:3], pk.shape[1]), bias.dtype), bias], -1)
        key = self.make_rng("dropout") if ctx.training and cfg.attention_dropout else None
        request = kernels.Request(
            q.dtype, cfg.head_dim, t, cfg.causal and not self.cross, 0 if self.cross else cfg.window,
            cfg.attention_softcap, self._most(ctx), self.cross, bias is not None, k.shape[1] != keys,
            key is not None, ctx.attentions, ctx.index is not None, ctx.prompts is not None and not self.cross,
        )  # fmt: skip
        kernel = kernels.choose(cfg.attention, kernels.backend(), request, kernels.capability())
        if kernel == "xla":
            out, probs = attend(
                q, k, v, mask, key, cfg.attention_dropout, scale=scale, bias=bias, softcap=cfg.attention_softcap
            )
        else:
            out, probs = self._fused(kernel, q, k, v, ctx, layer, scale), None

        def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            # Not of batch 1: einsum would drop that axis, and XLA's CPU backend has no such product of bf16 into fp32.
            k, v = (jnp.broadcast_to(x, (len(q), *x.shape)) for x in (k, v))
            return attend(q, k, v, None, scale=scale, softcap=cfg.attention_softcap)[0]

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

    def _most(self, ctx: Context) -> int | None:
        """Segments of a row at most; None if not known."""
        own, other = ctx.max_segments, ctx.memory_max_segments if self.cross else 0
        return None if own is None or other is None else max(own, other)

    def _fused(
        self, kernel: str, q: jax.Array, k: jax.Array, v: jax.Array, ctx: Context, layer: jax.Array, scale: float
    ) -> jax.Array:
        cfg = self.cfg
        options: dict[str, Any] = {"softcap": cfg.attention_softcap}
        if kernel == "cudnn":
            options = {"max_segments": self._most(ctx)}
        if self.cross:
            options["key_segments"] = ctx.memory_segments
        run = functools.partial(
            getattr(kernels, kernel), q, k, v, segments=ctx.segments, causal=cfg.causal and not self.cross,
            scale=scale, **options,
        )  # fmt: skip
        if self.cross or not cfg.window:
            return run()
        near = functools.partial(run, window=cfg.window)
        return jax.lax.cond(jnp.isin(layer, jnp.asarray(cfg.global_layers)), run, near) if cfg.global_layers else near()

    def _sight(self, ctx: Context, layer: jax.Array) -> Sight:
        if ctx.nearby is None:
            return ctx.everywhere
        if not self.cfg.global_layers:
            return ctx.nearby
        everywhere = jnp.isin(layer, jnp.asarray(self.cfg.global_layers))
        return jax.tree.map(lambda far, near: jnp.where(everywhere, far, near), ctx.everywhere, ctx.nearby)
