"""The feed-forward network and the block: one layer of every model."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.nn.attention import Attention, Context, Held
from ftjax.nn.config import Config
from ftjax.nn.core import ACTIVATIONS, Linear, Norm, matmul, parameter
from ftjax.nn.hooks import Site, acting


class FFN(nn.Module):
    """act(x W_up) W_down, or (act(x W_gate) * x W_up) W_down (Shazeer 2020). A site of `activation`, `sublayer`."""

    cfg: Config

    @nn.compact
    def __call__(self, x: jax.Array, training: bool) -> jax.Array:
        cfg, site, act = self.cfg, Site(self, training), ACTIVATIONS[self.cfg.activation]
        linear = lambda size, name: Linear(size, cfg.ffn_bias, cfg.dtype, std=cfg.init_std, name=name)  # noqa: E731
        h = linear(cfg.ffn_size, "up")(x, training)
        h = act(linear(cfg.ffn_size, "gate")(x, training)) * h if cfg.gated else act(h)
        if cfg.ffn_dropout:
            h = site.dropout(h, cfg.ffn_dropout)
        for adapter in acting(self, "activation", cfg.ffn_size):
            h = adapter.activation(h, site)
        y = linear(cfg.hidden_size, "down")(h, training)
        if cfg.hidden_dropout:
            y = site.dropout(y, cfg.hidden_dropout)
        for adapter in acting(self, "sublayer", cfg.hidden_size):
            y = adapter.sublayer(x, y, site)
        return y


class Conv(nn.Module):
    """norm(y + act(conv(x))): what a convolution of the first layer's input adds to its output, in DeBERTa v2 (its
    reference implementation). Padding and other segments are zeros to it."""

    cfg: Config

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array, segments: jax.Array, training: bool) -> jax.Array:
        """x, y `[B, T, D]`, segments `[B, T]` -> `[B, T, D]`."""
        cfg, (_, t, d), half = self.cfg, x.shape, self.cfg.conv_size // 2
        kernel = parameter(self, "kernel", nn.initializers.normal(cfg.init_std), (cfg.conv_size, d, d))
        bias = parameter(self, "bias", nn.initializers.zeros, (d,))
        around = jnp.pad(x, ((0, 0), (half, half), (0, 0)))
        owner = jnp.pad(segments, ((0, 0), (half, half)))
        taps = [
            jnp.where((owner[:, i : i + t] == segments)[..., None], around[:, i : i + t], 0)
            for i in range(cfg.conv_size)
        ]
        h = matmul(jnp.concatenate(taps, -1), kernel.reshape(-1, d).astype(cfg.dtype)) + bias.astype(cfg.dtype)
        if cfg.hidden_dropout:
            h = Site(self, training).dropout(h, cfg.hidden_dropout)
        return Norm(cfg, name="norm")(y + ACTIVATIONS[cfg.activation](h))


class Block(nn.Module):
    """Attention, attention to the encoder where there is one, and FFN, each with a residual and norms:

    | norm_order | x becomes            | as in                                             |
    |------------|----------------------|---------------------------------------------------|
    | pre        | x + f(norm(x))       | GPT-2, Llama, T5                                  |
    | post       | norm(x + f(x))       | the first Transformer, BERT, GPT, BART            |
    | sandwich   | x + post(f(norm(x))) | Gemma 2                                           |
    | reordered  | x + norm(f(x))       | OLMo 2                                            |
    """

    cfg: Config

    @nn.compact
    def __call__(self, x: jax.Array, ctx: Context, kv: Held | None, layer: jax.Array) -> tuple[jax.Array, Any, Any]:
        """x `[B, T, D]`, kv of the cache -> (x, its updated arrays, probabilities or None)."""
        cfg = self.cfg
        own, source = (kv and Held(kv.arrays[part], kv.row) for part in (slice(2), slice(2, 4)))
        x, own, probs = self._around("attn", x, lambda x: Attention(cfg, name="attn")(x, ctx, own, layer), layer)
        if cfg.encoder is not None:
            cross = Attention(cfg, True, name="cross")
            x, source, _ = self._around("cross", x, lambda x: cross(x, ctx, source, layer), layer)
        x, _, _ = self._around("ffn", x, lambda x: (FFN(cfg, name="ffn")(x, ctx.training), None, None), layer)
        return x, None if own is None or source is None else (*own.arrays, *source.arrays), probs

    def _around(
        self, name: str, x: jax.Array, sublayer: Callable[[jax.Array], tuple], layer: jax.Array
    ) -> tuple[jax.Array, Any, Any]:
        cfg, norm, inner = self.cfg, Norm(self.cfg, name=f"{name}_norm"), x
        if cfg.norm_order in ("pre", "sandwich"):
            inner = norm(x)
            if name == "attn" and not cfg.first_norm:
                inner = jnp.where(layer == 0, x, inner)
        h, kv, probs = sublayer(inner)
        if cfg.norm_order == "sandwich":
            h = Norm(cfg, name=f"{name}_post_norm")(h)
        if cfg.norm_order == "reordered":
            h = norm(h)
        return norm(x + h) if cfg.norm_order == "post" else x + h, kv, probs
