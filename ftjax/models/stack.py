"""A stack: embeddings, layers and the final norm. The body of every model, and the encoder of an encoder-decoder."""

import functools
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ftjax.errors import UserError
from ftjax.nn import hooks
from ftjax.nn.attention import Cache, Context, Held, Relative, Sight, visible
from ftjax.nn.block import Block, Conv
from ftjax.nn.config import Config
from ftjax.nn.core import Embed, Linear, Norm, parameter
from ftjax.nn.hooks import Site, acting
from ftjax.nn.layers import run_layers
from ftjax.nn.positions import deberta_bucket, rotary, t5_bucket


@flax.struct.dataclass
class Output:
    """What a forward pass gives; fields that were not asked for are None."""

    logits: jax.Array | None = None  # [B, T, V] (lm, mlm), [B, T] (rtd), [B, T, C] (tagging, span), [B, C]; fp32
    last_hidden: jax.Array | None = None  # [B, T, D], after the final norm
    hidden_states: jax.Array | None = None  # [L + 1, B, T, D]: the embedding, then each layer (the last one normed)
    attentions: jax.Array | None = None  # [L, B, H, T, S]
    cache: Cache | None = None


class Embeddings(nn.Module):
    """Token, position and type embeddings. A site of `embed`."""

    cfg: Config
    own_tokens: bool = True

    def setup(self):
        cfg = self.cfg
        table = lambda rows: Embed(rows, cfg.embed_width, cfg.dtype, cfg.init_std)  # noqa: E731
        if self.own_tokens:
            self.tokens = table(cfg.vocab_size)
        if cfg.positions == "learned":
            self.positions = table(cfg.max_positions + cfg.position_offset)
        if cfg.token_types:
            self.types = table(cfg.token_types)
        if cfg.embed_norm:
            self.norm = Norm(cfg)
        if cfg.embed_size:
            self.project = Linear(cfg.hidden_size, dtype=cfg.dtype, std=cfg.init_std)

    def __call__(
        self,
        ids: jax.Array,
        positions: jax.Array,
        types: jax.Array | None,
        training: bool,
        tokens: Embed | None = None,
    ) -> jax.Array:
        cfg, site = self.cfg, Site(self, training)
        x = (tokens or self.tokens)(ids)
        for adapter in acting(self, "embed", cfg.vocab_size, cfg.embed_width):
            x = adapter.embed(ids, x, site)
        if cfg.embed_scale != 1:
            x = x * jnp.asarray(cfg.embed_scale, x.dtype)
        if cfg.positions == "learned":
            x = x + self.positions(positions + cfg.position_offset)
        if cfg.token_types:
            x = x + self.types(jnp.zeros_like(ids) if types is None else types)
        if cfg.embed_norm:
            x = self.norm(x)
        if cfg.embed_dropout:
            x = site.dropout(x, cfg.embed_dropout)
        return self.project(x, training) if cfg.embed_size else x


class RelativePositions(nn.Module):
    """The table of relative positions that all layers share."""

    cfg: Config

    @nn.compact
    def __call__(self, positions: jax.Array, key_positions: jax.Array) -> Relative:
        """`[B, T]`, `[B, S]` -> what the attention of each layer adds."""
        cfg = self.cfg
        offset = key_positions[:, None, :] - positions[:, :, None]
        if cfg.positions == "t5":
            table = Embed(cfg.relative_buckets, cfg.num_heads, cfg.dtype, cfg.init_std, name="bias")
            rows = t5_bucket(offset, cfg.causal, cfg.relative_buckets, cfg.relative_distance)
            return Relative(bias=table(rows).astype(jnp.float32).transpose(0, 3, 1, 2))
        size = (2 * cfg.relative_buckets, cfg.hidden_size)
        table = parameter(self, "embedding", nn.initializers.normal(cfg.init_std), size)
        rows = deberta_bucket(-offset, cfg.relative_buckets, cfg.relative_distance)
        return Relative(embeddings=Norm(cfg, name="norm")(table.astype(cfg.dtype)), rows=rows)


class Stack(nn.Module):
    """Parameters are nested dicts; those of the layers are `[L, ...]` under `layers` (see `ftjax.nn.layers`)."""

    cfg: Config
    own_tokens: bool = True

    if TYPE_CHECKING:  # linen's own types say neither what a method returns nor that a module hashes
        apply: ClassVar[Any]

        def __hash__(self) -> int: ...

    def setup(self):
        cfg = self.cfg
        self.embed = Embeddings(cfg, self.own_tokens)
        if cfg.positions in ("t5", "disentangled"):
            self.relative = RelativePositions(cfg)
        if self.is_initializing():  # a cut stack is not what the initializer would make: only then
            self.param("layers", self._init_layers)
            if cfg.conv_size:
                self.param("conv", self._init_conv)
        if cfg.norm_order != "post":
            self.final_norm = Norm(cfg)

    def run(
        self,
        input_ids: jax.Array,
        segments: jax.Array,
        position_ids: jax.Array | None,
        token_type_ids: jax.Array | None,
        *,
        prompt_ids: jax.Array | None = None,
        tokens: Embed | None = None,
        memory: tuple[jax.Array, jax.Array, int | None] | None = None,
        max_segments: int | None = None,
        cache: Cache | None = None,
        seen: jax.Array | None = None,
        training: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Output:
        """Hidden states of tokens; `memory` is (hidden states, segments, most segments) of the encoder."""
        if seen is not None and cache is None:
            raise UserError("seen is about the slots of a cache; give one")
        cfg = self.cfg
        if cfg.positions == "learned" and position_ids is None and input_ids.shape[1] > (room := self.room()):
            taken = f" and the {cfg.room - room} of its adapters" if room < cfg.room else ""
            raise UserError(f"{input_ids.shape[1]} tokens{taken} are over the model's {cfg.room} positions")
        if position_ids is None:  # the first token's is how many the cache has
            before = 0 if cache is None else (cache.segments != 0).sum(1, keepdims=True)
            position_ids = jnp.maximum(before + jnp.cumsum(segments != 0, 1) - 1, 0)
        positions = position_ids.astype(jnp.int32)
        for adapter in acting(self, "positions"):
            positions = adapter.positions(positions, Site(self, training))
        x = self.embed(input_ids, positions, token_type_ids, training, tokens)

        at, key_segments = positions, segments
        source = None if memory is None else memory[1]
        kv: Any = None
        if cache is not None:
            at = jax.lax.dynamic_update_slice(cache.positions, positions, (0, cache.index))
            key_segments = jax.lax.dynamic_update_slice(cache.segments, segments, (0, cache.index))
            kv = cache.kv
            source = cache.source if source is None else source
        seen_segments = key_segments if seen is None else jnp.where(seen, key_segments[:, None], 0)
        sight = functools.partial(self._sight, positions, segments, at, seen_segments, prompts=prompt_ids)
        ctx = Context(
            segments=segments,
            prompts=prompt_ids,
            max_segments=max_segments,
            everywhere=sight(0),
            nearby=sight(cfg.window) if cfg.window else None,
            relative=self.relative(positions, at) if cfg.positions in ("t5", "disentangled") else None,
            memory=None if memory is None else memory[0],
            memory_mask=None if source is None else visible(segments, segments, source, source, False),
            memory_segments=source,
            memory_max_segments=None if memory is None else memory[2],
            index=None if cache is None else cache.index,
            training=training,
            attentions=output_attentions,
        )
        x, kv, hidden, probs = self._run(x, kv, ctx, output_hidden_states)
        if cfg.norm_order != "post":
            x = self.final_norm(x)
        if cfg.final_dropout:
            x = Site(self, training).dropout(x, cfg.final_dropout)
        if hidden is not None:
            hidden = hidden.at[-1].set(x)
        if cache is not None:
            cache = Cache(kv, at, key_segments, cache.index + input_ids.shape[1], source)
        return Output(last_hidden=x, hidden_states=hidden, attentions=probs, cache=cache)

    def room(self) -> int:
        """How many tokens a row may have, by the positions of this stack and what adapters take of them."""
        taken: Any = np.zeros((1, 1), np.int32)
        with jax.ensure_compile_time_eval():  # a shift is the same whatever is traced
            for adapter in acting(self, "positions"):
                taken = adapter.positions(taken, Site(self, False))
            return self.cfg.room - int(taken.max())

    def _sight(
        self, positions: jax.Array, segments: jax.Array, at: jax.Array, key_segments: jax.Array, window: int,
        prompts: jax.Array | None,
    ) -> Sight:  # fmt: skip
        cfg = self.cfg
        mask = visible(positions, segments, at, key_segments, cfg.causal, window, prompts)
        if cfg.positions != "rotary":
            return Sight(mask, None)
        if window and cfg.window_rope_theta:
            return Sight(mask, rotary(positions, cfg.head_dim, cfg.window_rope_theta))
        return Sight(mask, rotary(positions, cfg.head_dim, cfg.rope_theta, cfg.rope_scaling))

    def _init_layers(self, key: jax.Array) -> Any:
        cfg = self.cfg
        x, one = jnp.zeros((1, 1, cfg.hidden_size), cfg.dtype), jnp.ones((1, 1), jnp.int32)
        sight = Sight(visible(one, one, one, one, cfg.causal), None)
        memory = jnp.zeros((1, 1, cfg.encoder.hidden_size), cfg.dtype) if cfg.encoder else None
        ctx = Context(
            segments=one, prompts=None, max_segments=None, everywhere=sight, nearby=None, relative=None, memory=memory,
            memory_mask=sight.mask, memory_segments=one, memory_max_segments=None, index=None, training=False,
            attentions=False,
        )  # fmt: skip
        init = lambda k: Block(cfg.replace(attention="xla"), parent=None).init(k, x, ctx, None, 0)["params"]  # noqa: E731
        return jax.vmap(init)(jax.random.split(key, cfg.rows))

    def _init_conv(self, key: jax.Array) -> Any:
        x = jnp.zeros((1, 1, self.cfg.hidden_size), self.cfg.dtype)
        return Conv(self.cfg, parent=None).init(key, x, x, jnp.ones((1, 1), jnp.int32), False)["params"]

    def _run(self, x: jax.Array, kv: Any, ctx: Context, collect: bool) -> tuple[jax.Array, Any, Any, Any]:
        cfg = self.cfg
        apply: Any = Block(cfg, parent=None).apply
        adapters = self.variables.get("adapters", {}).get("layers", {})
        stacks = {"params": self.get_variable("params", "layers"), "adapters": adapters}
        key = self.make_rng("dropout") if ctx.training else None
        path = "/".join((*self.path, "layers"))
        conv = self.get_variable("params", "conv")

        def convolved(x: jax.Array, y: jax.Array) -> jax.Array:
            rngs = None if key is None else {"dropout": jax.random.fold_in(key, cfg.num_layers)}
            apply: Any = Conv(cfg, parent=None).apply
            return apply({"params": conv}, x, y, ctx.segments, ctx.training, rngs=rngs)

        def body(x: jax.Array, kv: Any, place: jax.Array, layer: jax.Array, row: Any) -> tuple[Any, Any, Any]:
            rngs = None if key is None else {"dropout": jax.random.fold_in(key, layer)}
            with hooks.under(path):
                y, kv, probs = apply(row, x, ctx, kv and Held(kv, place), layer, rngs=rngs)
            if cfg.conv_size:
                y = jax.lax.cond(layer == 0, convolved, lambda x, y: y, x, y)
            return y, kv, (x if collect else None, probs)

        unroll = cfg.scan_unroll if kv is None else 1
        x, kv, (inputs, probs) = run_layers(
            body, stacks, x, held=kv, rows=cfg.rows, repeats=cfg.num_layers // cfg.rows, unroll=unroll,
            remat=cfg.remat and ctx.training,
        )  # fmt: skip
        return x, kv, jnp.concatenate([inputs, x[None]]) if collect else None, probs
