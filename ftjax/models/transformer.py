"""The one Transformer: decoder, encoder or encoder-decoder, with the head that its config names."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.errors import UserError
from ftjax.models.stack import Output, Stack
from ftjax.nn import hooks
from ftjax.nn.attention import Cache
from ftjax.nn.config import Config
from ftjax.nn.core import ACTIVATIONS, Linear, Norm
from ftjax.nn.hooks import Site

MASKED = ("mlm", "pretraining")  # heads of masked words


class Transform(nn.Module):
    """BERT's transform before the masked-word logits: norm(act(x W + b)) (Devlin et al. 2018, appendix)."""

    cfg: Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        width = cfg.embed_width if cfg.head in MASKED else cfg.hidden_size
        x = Linear(width, cfg.transform_bias, cfg.dtype, std=cfg.init_std, name="dense")(x)
        return Norm(cfg, name="norm")(ACTIVATIONS[cfg.activation](x))


class Transformer(Stack):
    """`model.apply({"params": params, "adapters": adapters}, input_ids, attention_mask=mask) -> Output`.

    An encoder-decoder (`cfg.encoder`) is this stack as the decoder and another one under `encoder`.
    """

    if TYPE_CHECKING:  # linen's own types do not say that a module hashes

        def __hash__(self) -> int: ...

    def setup(self):
        super().setup()
        cfg = self.cfg
        if cfg.encoder is not None:
            self.encoder = Stack(cfg.encoder, own_tokens=False)
        linear = functools.partial(Linear, dtype=cfg.dtype, std=cfg.init_std)
        scores = functools.partial(linear, out_dtype=jnp.float32)
        if cfg.head in MASKED or cfg.pooler == "transform":
            self.transform = Transform(cfg)
        if cfg.head in ("lm", *MASKED):
            self.head = scores(cfg.vocab_size, cfg.head_bias)
        if cfg.pooler == "dense":
            self.pooler = linear(cfg.hidden_size)
        if cfg.head in ("pretraining", "rtd", "classification", "tagging", "span"):
            self.classifier = scores(self.outputs, cfg.classifier_bias)

    @property
    def outputs(self) -> int:
        """Scores of the classifier: one to be replaced or not, start and end of a span, whether the second text is the
        next or not (`pretraining`), or those of the classes."""
        return {"rtd": 1, "span": 2, "pretraining": 2}.get(self.cfg.head, self.cfg.num_classes)

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None = None, **inputs: Any) -> Output:
        """One forward pass with logits (of `pretraining`, the masked words'; `pool` and `classify` give the other's);
        arguments as in `hidden`."""
        out: Any = self.hidden(input_ids, attention_mask, **inputs)
        training = inputs.get("training", False)
        if self.cfg.head == "none":
            return out
        if self.cfg.head in ("lm", "mlm"):
            return out.replace(logits=self.logits(out.last_hidden, training))
        if self.cfg.head in ("classification", "pretraining"):
            segments = _segments(input_ids, attention_mask, inputs.get("segment_ids"))
            rows = self.classify(self.pool(out.last_hidden, segments), training)
            words = self.cfg.head == "pretraining"
            return out.replace(logits=self.logits(out.last_hidden, training) if words else rows)
        return out.replace(logits=self.classify(out.last_hidden, training))

    def hidden(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        segment_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        prompt_ids: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        encoder_input_ids: jax.Array | None = None,
        encoder_attention_mask: jax.Array | None = None,
        encoder_segment_ids: jax.Array | None = None,
        encoder_position_ids: jax.Array | None = None,
        encoder_hidden: jax.Array | None = None,
        cache: Cache | None = None,
        seen: jax.Array | None = None,
        training: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Output:
        """The forward pass without the head.

        Args:
          input_ids: int `[B, T]`; of an encoder-decoder, the decoder's.
          attention_mask: `[B, T]`, 0 on padding (left or right); or
          segment_ids: `[B, T]`, 0 on padding, else the number of the packed example.
          position_ids: `[B, T]`, growing from slot to slot inside a segment; where not given, counted from 0 over each
            row's real tokens, a cache's before these.
          prompt_ids: `[B, T]`, another segment that a token sees: its example's prompt, where several share one; 0 for
            none.
          encoder_*: the same of the encoder's tokens `[B, S]`; the decoder sees those of its own segment.
            `encoder_hidden [B, S, D]` (from `encode`) in place of the ids; neither, where the cache has them.
          cache: what was seen before; the result then holds the cache with these tokens.
          seen: bool `[B, T, S]`, which of a cache's slots each token may see at all; None for all.
          training: dropout on (needs `rngs={"dropout": key}`).
        Raises:
          UserError: more tokens than a learned position table has, or an encoder's tokens missing or out of place.
        """
        given = encoder_input_ids is not None or encoder_hidden is not None
        known = cache is not None and cache.source is not None
        if self.cfg.encoder is None and given:
            raise UserError("encoder_input_ids are for an encoder-decoder; this model has no encoder")
        if self.cfg.encoder is not None and not (given or known):
            raise UserError("an encoder-decoder needs encoder_input_ids (input_ids are the decoder's)")
        memory, most = None, self._most(encoder_attention_mask, encoder_segment_ids)
        if encoder_hidden is not None:
            source = _segments(encoder_hidden[..., 0], encoder_attention_mask, encoder_segment_ids)
            memory = (encoder_hidden, source, most)
        elif encoder_input_ids is not None:
            source = _segments(encoder_input_ids, encoder_attention_mask, encoder_segment_ids)
            read: Any = self.encoder.run(
                encoder_input_ids, source, encoder_position_ids, None, tokens=self.embed.tokens, training=training,
                max_segments=most,
            )  # fmt: skip
            memory = (read.last_hidden, source, most)
        return self.run(
            input_ids, _segments(input_ids, attention_mask, segment_ids), position_ids, token_type_ids,
            prompt_ids=prompt_ids, memory=memory, max_segments=self._most(attention_mask, segment_ids), cache=cache,
            seen=seen, training=training, output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )  # fmt: skip

    def encode(
        self,
        encoder_input_ids: jax.Array,
        encoder_attention_mask: jax.Array | None = None,
        output_hidden_states: bool = False,
    ) -> Output:
        """The encoder's pass alone; `last_hidden [B, S, D]` is what `encoder_hidden` takes."""
        segments = _segments(encoder_input_ids, encoder_attention_mask, None)
        return self.encoder.run(
            encoder_input_ids, segments, None, None, tokens=self.embed.tokens,
            max_segments=self._most(encoder_attention_mask, None), output_hidden_states=output_hidden_states,
        )  # fmt: skip

    def _most(self, mask: jax.Array | None, segments: jax.Array | None) -> int | None:
        """How many segments a row has at most: of a mask, one, with padding on either side."""
        return self.cfg.max_segments if segments is not None else int(mask is not None)

    def logits(self, x: jax.Array, training: bool = False) -> jax.Array:
        """Vocabulary logits of hidden states: `[..., D]` -> `[..., V]`, fp32."""
        cfg = self.cfg
        if cfg.head in MASKED:
            x = self.transform(x)
        if cfg.head_scale != 1:
            x = x * jnp.asarray(cfg.head_scale, x.dtype)
        logits = self.head(x, training, self.embed.tokens.embedding if cfg.tied_head else None)
        return cfg.logit_softcap * jnp.tanh(logits / cfg.logit_softcap) if cfg.logit_softcap else logits

    def pool(self, hidden: jax.Array, segment_ids: jax.Array) -> jax.Array:
        """One vector a row: the first or last real token's, or the mean or maximum of all: `[B, T, D]` -> `[B, D]`."""
        real = segment_ids != 0
        if self.cfg.pooling == "mean":
            weight = real[..., None].astype(hidden.dtype)
            return (hidden * weight).sum(1) / jnp.maximum(weight.sum(1), 1)
        if self.cfg.pooling == "max":
            most = jnp.where(real[..., None], hidden, jnp.finfo(hidden.dtype).min).max(1)
            return jnp.where(real.any(1)[:, None], most, 0)
        t = real.shape[1]
        index = jnp.argmax(real, 1) if self.cfg.pooling == "first" else t - 1 - jnp.argmax(real[:, ::-1], 1)
        return jnp.take_along_axis(hidden, index[:, None, None], axis=1)[:, 0]

    def classify(self, x: jax.Array, training: bool = False) -> jax.Array:
        """Scores of pooled vectors or of tokens: `[..., D]` -> `[..., C]` (of replaced tokens: `[...]`), fp32."""
        cfg, site = self.cfg, Site(self, training)
        if cfg.pooler != "none":
            x = site.dropout(x, cfg.pooler_dropout) if cfg.pooler_dropout else x
            dense = cfg.pooler == "dense"
            x = ACTIVATIONS[cfg.pooler_activation](self.pooler(x, training)) if dense else self.transform(x)
        if cfg.classifier_dropout:
            x = site.dropout(x, cfg.classifier_dropout)
        scores = self.classifier(x, training)
        return scores[..., 0] if cfg.head == "rtd" else scores


def _segments(ids: jax.Array, mask: jax.Array | None, segments: jax.Array | None) -> jax.Array:
    if segments is not None:
        return segments.astype(jnp.int32)
    return jnp.ones(ids.shape, jnp.int32) if mask is None else (mask != 0).astype(jnp.int32)


def empty_cache(cfg: Config, batch: int, slots: int, source_slots: int = 0) -> Cache:
    """A cache of `slots` tokens for `batch` rows, and of `source_slots` tokens of an encoder."""

    def pair(slots: int) -> tuple[jax.Array, jax.Array]:
        lead = (cfg.num_layers, batch, cfg.num_kv_heads)
        return jnp.zeros((*lead, cfg.head_dim, slots), cfg.dtype), jnp.zeros((*lead, slots, cfg.head_dim), cfg.dtype)

    zeros = jnp.zeros((batch, slots), jnp.int32)
    kv = (*pair(slots), *(pair(source_slots) if cfg.encoder else ()))
    source = jnp.zeros((batch, source_slots), jnp.int32) if cfg.encoder else None
    return Cache(kv, zeros, zeros, jnp.zeros((), jnp.int32), source)


def init(model: Transformer, key: jax.Array) -> Any:
    """Random parameters, normal(init_std) kernels and embeddings."""
    one = jnp.zeros((1, 1), jnp.int32)
    sources: Any = _source(model, one)
    return model.init(key, one, **sources)["params"]


def _source(model: Transformer, ids: jax.Array) -> dict[str, jax.Array]:
    return {"encoder_input_ids": ids} if model.cfg.encoder else {}


@functools.lru_cache(maxsize=64)  # traced once for all that ask: checkpoints, adapters, a random start
def abstract(model: Transformer) -> Any:
    """Shapes and dtypes of the parameters, without making them."""
    return jax.eval_shape(lambda key: init(model, key), jax.random.key(0))


def keys_values(model: Transformer, params: Any, ids: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """The keys (rotated, where the model rotates) and values of one text: `[L, P, K, hd]` each."""
    tokens = jnp.asarray([list(ids)], jnp.int32)
    out = model.apply({"params": params}, tokens, cache=empty_cache(model.cfg, 1, tokens.shape[1]), method="hidden")
    keys, values = out.cache.kv
    return keys[:, 0].transpose(0, 3, 1, 2), values[:, 0].swapaxes(1, 2)


def room(model: Transformer, adapters: Any, *, encoder: bool = False) -> int:
    """How many tokens a row may have, by the positions of the model (or its encoder) and what adapters in site form
    take of them."""
    variables = {"params": {}, "adapters": adapters or {}}
    return model.apply(variables, method=lambda model: (model.encoder if encoder else model).room())


@functools.lru_cache(maxsize=64)
def sites(model: Transformer) -> dict[str, dict[str, tuple[int, ...]]]:
    """{site path: {hook: shape}} of everything an adapter may act on, from one abstract forward pass."""
    params, one = abstract(model), jnp.zeros((1, 1), jnp.int32)
    with hooks.recording() as record:
        jax.eval_shape(lambda p: model.apply({"params": p}, one, **_source(model, one)), params)
    return dict(sorted(record.items()))
