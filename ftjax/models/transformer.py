"""The one Transformer: decoder or encoder, with the head that its config names."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from ftjax.errors import UserError
from ftjax.nn import hooks
from ftjax.nn.attention import Cache, Context, rotary, visible
from ftjax.nn.block import Block
from ftjax.nn.config import Config
from ftjax.nn.core import ACTIVATIONS, Embed, Linear, Norm
from ftjax.nn.hooks import Site, acting
from ftjax.nn.layers import run_layers


@flax.struct.dataclass
class Output:
    """What a forward pass gives; fields that were not asked for are None."""

    logits: jax.Array | None = None  # [B, T, V], or [B, C] of a classifier; fp32
    last_hidden: jax.Array | None = None  # [B, T, D], after the final norm
    hidden_states: jax.Array | None = None  # [L + 1, B, T, D]: the embedding, then each layer (the last one normed)
    attentions: jax.Array | None = None  # [L, B, H, T, S]
    cache: Cache | None = None


class Embeddings(nn.Module):
    """Token, position and type embeddings. A site of `embed`."""

    cfg: Config

    def setup(self):
        cfg = self.cfg
        self.tokens = Embed(cfg.vocab_size, cfg.hidden_size, cfg.dtype, cfg.init_std)
        if cfg.positions == "learned":
            self.positions = Embed(cfg.max_positions, cfg.hidden_size, cfg.dtype, cfg.init_std)
        if cfg.token_types:
            self.types = Embed(cfg.token_types, cfg.hidden_size, cfg.dtype, cfg.init_std)
        if cfg.embed_norm:
            self.norm = Norm(cfg.norm, cfg.norm_eps)

    def __call__(self, ids: jax.Array, positions: jax.Array, types: jax.Array | None, training: bool) -> jax.Array:
        cfg, site = self.cfg, Site(self, training)
        x = self.tokens(ids)
        for adapter in acting(self, "embed", cfg.vocab_size, cfg.hidden_size):
            x = adapter.embed(ids, x, site)
        if cfg.positions == "learned":
            x = x + self.positions(positions)
        if cfg.token_types:
            x = x + self.types(jnp.zeros_like(ids) if types is None else types)
        if cfg.embed_norm:
            x = self.norm(x)
        return site.dropout(x, cfg.embed_dropout) if cfg.embed_dropout else x


class MaskedHead(nn.Module):
    """BERT's transform before the masked-word logits: norm(act(x W + b)) (Devlin et al. 2018, appendix)."""

    cfg: Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        x = Linear(cfg.hidden_size, dtype=cfg.dtype, std=cfg.init_std, name="dense")(x)
        return Norm(cfg.norm, cfg.norm_eps, name="norm")(ACTIVATIONS[cfg.activation](x))


class Transformer(nn.Module):
    """`model.apply({"params": params, "adapters": adapters}, input_ids, attention_mask=mask) -> Output`.

    Parameters are nested dicts; those of the layers are stacked `[L, ...]` under `layers` (see `ftjax.nn.layers`).
    """

    cfg: Config

    if TYPE_CHECKING:  # linen's own types say neither what a method returns nor that a module hashes
        apply: ClassVar[Any]

        def __hash__(self) -> int: ...

    def setup(self):
        cfg = self.cfg
        self.embed = Embeddings(cfg)
        if self.is_initializing():  # a cut stack is not what the initializer would make: only then
            self.param("layers", self._init_layers)
        if cfg.norm_first:
            self.final_norm = Norm(cfg.norm, cfg.norm_eps)
        if cfg.head == "mlm":
            self.transform = MaskedHead(cfg)
        if cfg.head in ("lm", "mlm"):
            self.head = Linear(cfg.vocab_size, cfg.head == "mlm", cfg.dtype, out_dtype=jnp.float32, std=cfg.init_std)
        if cfg.head == "classification":
            if cfg.pooler:
                self.pooler = Linear(cfg.hidden_size, dtype=cfg.dtype, std=cfg.init_std)
            self.classifier = Linear(
                cfg.num_classes, cfg.classifier_bias, cfg.dtype, out_dtype=jnp.float32, std=cfg.init_std
            )

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        segment_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        cache: Cache | None = None,
        training: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Output:
        """One forward pass with logits.

        Args:
          input_ids: int `[B, T]`.
          attention_mask: `[B, T]`, 0 on padding (left or right); or
          segment_ids: `[B, T]`, 0 on padding, else the number of the packed example.
          position_ids: `[B, T]`; counted from 0 over each row's real tokens where not given.
          cache: what was seen before; the result then holds the cache with these tokens.
          training: dropout on (needs `rngs={"dropout": key}`).
        """
        out: Any = self.hidden(
            input_ids,
            attention_mask,
            segment_ids=segment_ids,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            cache=cache,
            training=training,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        if self.cfg.head == "none":
            return out
        if self.cfg.head == "classification":
            segments = self._segments(input_ids, attention_mask, segment_ids)
            return out.replace(logits=self.classify(self.pool(out.last_hidden, segments), training))
        return out.replace(logits=self.logits(out.last_hidden, training))

    def hidden(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        segment_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        cache: Cache | None = None,
        training: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Output:
        """The forward pass without the head; arguments as in `__call__`."""
        cfg = self.cfg
        segments = self._segments(input_ids, attention_mask, segment_ids)
        if cfg.positions == "learned" and position_ids is None and input_ids.shape[1] > cfg.max_positions:
            raise UserError(f"{input_ids.shape[1]} tokens are over the model's {cfg.max_positions} positions")
        real = segments != 0
        positions = jnp.maximum(jnp.cumsum(real, 1) - 1, 0) if position_ids is None else position_ids
        positions = positions.astype(jnp.int32)
        for adapter in acting(self, "positions"):
            positions = adapter.positions(positions, Site(self, training))
        x = self.embed(input_ids, positions, token_type_ids, training)

        key_positions, key_segments = positions, segments
        kv: Any = None
        if cache is not None:
            key_positions = jax.lax.dynamic_update_slice(cache.positions, positions, (0, cache.index))
            key_segments = jax.lax.dynamic_update_slice(cache.segments, segments, (0, cache.index))
            kv = (cache.k, cache.v)
        ctx = Context(
            mask=visible(positions, segments, key_positions, key_segments, cfg.causal),
            real=real,
            rotary=rotary(positions, cfg.head_dim, cfg.rope_theta) if cfg.positions == "rotary" else None,
            index=None if cache is None else cache.index,
            training=training,
            attentions=output_attentions,
        )
        x, kv, hidden, probs = self._run(x, kv, ctx, output_hidden_states)
        if cfg.norm_first:
            x = self.final_norm(x)
        if hidden is not None:
            hidden = hidden.at[-1].set(x)
        if cache is not None:
            cache = Cache(kv[0], kv[1], key_positions, key_segments, cache.index + input_ids.shape[1])
        return Output(last_hidden=x, hidden_states=hidden, attentions=probs, cache=cache)

    def logits(self, x: jax.Array, training: bool = False) -> jax.Array:
        """Vocabulary logits of hidden states: `[..., D]` -> `[..., V]`, fp32."""
        cfg = self.cfg
        if cfg.head == "mlm":
            x = self.transform(x)
        kernel = self.embed.tokens.embedding.T if cfg.tied_head else None
        return self.head(x, training, kernel)

    def pool(self, hidden: jax.Array, segment_ids: jax.Array) -> jax.Array:
        """One vector a row: the first or last real token's, or the mean of all: `[B, T, D]` -> `[B, D]`."""
        real = segment_ids != 0
        if self.cfg.pooling == "mean":
            weight = real[..., None].astype(hidden.dtype)
            return (hidden * weight).sum(1) / jnp.maximum(weight.sum(1), 1)
        t = real.shape[1]
        index = jnp.argmax(real, 1) if self.cfg.pooling == "first" else t - 1 - jnp.argmax(real[:, ::-1], 1)
        return jnp.take_along_axis(hidden, index[:, None, None], axis=1)[:, 0]

    def classify(self, pooled: jax.Array, training: bool = False) -> jax.Array:
        """Class logits of pooled vectors: `[B, D]` -> `[B, C]`, fp32."""
        cfg = self.cfg
        if cfg.pooler:
            pooled = jnp.tanh(self.pooler(pooled, training))
        if cfg.classifier_dropout:
            pooled = Site(self, training).dropout(pooled, cfg.classifier_dropout)
        return self.classifier(pooled, training)

    def _segments(self, ids: jax.Array, mask: jax.Array | None, segments: jax.Array | None) -> jax.Array:
        if segments is not None:
            return segments.astype(jnp.int32)
        return jnp.ones_like(ids) if mask is None else (mask != 0).astype(jnp.int32)

    def _init_layers(self, key: jax.Array) -> Any:
        cfg = self.cfg
        x, one = jnp.zeros((1, 1, cfg.hidden_size), cfg.dtype), jnp.ones((1, 1), jnp.int32)
        ctx = Context(visible(one, one, one, one, cfg.causal), one != 0, None, None, False, False)
        init = lambda k: Block(cfg, parent=None).init(k, x, ctx, None, 0)["params"]  # noqa: E731
        return jax.vmap(init)(jax.random.split(key, cfg.num_layers))

    def _run(self, x: jax.Array, kv: Any, ctx: Context, collect: bool) -> tuple[jax.Array, Any, Any, Any]:
        cfg = self.cfg
        apply: Any = Block(cfg, parent=None).apply
        adapters = self.variables.get("adapters", {}).get("layers", {})
        stacks = {"params": self.get_variable("params", "layers"), "adapters": adapters}
        key = self.make_rng("dropout") if ctx.training else None

        def body(carry: Any, layer: jax.Array, row: Any) -> tuple[Any, Any]:
            x, kv = carry
            rngs = None if key is None else {"dropout": jax.random.fold_in(key, layer)}
            with hooks.under("layers"):
                y, kv, probs = apply(row, x, ctx, kv, layer, rngs=rngs)
            return (y, kv), (x if collect else None, probs)

        unroll = cfg.scan_unroll if kv is None else 1
        (x, kv), (inputs, probs) = run_layers(
            body, stacks, (x, kv), rows=cfg.num_layers, unroll=unroll, remat=cfg.remat and ctx.training
        )
        return x, kv, jnp.concatenate([inputs, x[None]]) if collect else None, probs


def empty_cache(cfg: Config, batch: int, slots: int) -> Cache:
    """A cache of `slots` tokens for `batch` rows."""
    shape = (cfg.num_layers, batch, cfg.num_kv_heads, slots, cfg.head_dim)
    zeros = jnp.zeros((batch, slots), jnp.int32)
    return Cache(jnp.zeros(shape, cfg.dtype), jnp.zeros(shape, cfg.dtype), zeros, zeros, jnp.zeros((), jnp.int32))


def init(model: Transformer, key: jax.Array) -> Any:
    """Random parameters, normal(init_std) kernels and embeddings."""
    return model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def abstract(model: Transformer) -> Any:
    """Shapes and dtypes of the parameters, without making them."""
    return jax.eval_shape(lambda key: init(model, key), jax.random.key(0))


def keys_values(model: Transformer, params: Any, ids: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """The keys (rotated, where the model rotates) and values of one text: `[L, P, K, hd]` each."""
    tokens = jnp.asarray([list(ids)], jnp.int32)
    out = model.apply({"params": params}, tokens, cache=empty_cache(model.cfg, 1, tokens.shape[1]), method="hidden")
    return tuple(x[:, 0].swapaxes(1, 2) for x in (out.cache.k, out.cache.v))  # type: ignore[return-value]


def shifted(model: Transformer, variables: Any, position: int, rows: int = 1) -> int:
    """Where adapters in site form put a position (a prefix shifts it), at most over the rows of a batch."""

    def at(model: Transformer, position: Any) -> Any:
        for adapter in acting(model, "positions"):
            position = adapter.positions(position, Site(model, False))
        return position

    return int(model.apply(variables, jnp.full((rows, 1), position), method=at).max())


@functools.lru_cache(maxsize=16)
def sites(model: Transformer) -> dict[str, dict[str, tuple[int, ...]]]:
    """{site path: {hook: shape}} of everything an adapter may act on, from one abstract forward pass."""
    params = abstract(model)
    with hooks.recording() as record:
        jax.eval_shape(lambda p: model.apply({"params": p}, jnp.zeros((1, 1), jnp.int32)), params)
    return dict(sorted(record.items()))
