"""The feed-forward network and the block: one layer of every model."""

from typing import Any

import flax.linen as nn
import jax

from ftjax.nn.attention import Attention, Context
from ftjax.nn.config import Config
from ftjax.nn.core import ACTIVATIONS, Linear, Norm
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
        for adapter in acting(self, "activation", cfg.ffn_size):
            h = adapter.activation(h, site)
        y = linear(cfg.hidden_size, "down")(h, training)
        if cfg.hidden_dropout:
            y = site.dropout(y, cfg.hidden_dropout)
        for adapter in acting(self, "sublayer", cfg.hidden_size):
            y = adapter.sublayer(x, y, site)
        return y


class Block(nn.Module):
    """Attention and FFN with residuals, normed before (`norm_first`) or after (BERT)."""

    cfg: Config

    @nn.compact
    def __call__(self, x: jax.Array, ctx: Context, kv: Any, layer: jax.Array) -> tuple[jax.Array, Any, Any]:
        cfg = self.cfg
        norms = [Norm(cfg.norm, cfg.norm_eps, name=name) for name in ("attn_norm", "ffn_norm")]
        attn, ffn = Attention(cfg, name="attn"), FFN(cfg, name="ffn")
        if cfg.norm_first:
            h, kv, probs = attn(norms[0](x), ctx, kv, layer)
            x = x + h
            return x + ffn(norms[1](x), ctx.training), kv, probs
        h, kv, probs = attn(x, ctx, kv, layer)
        x = norms[0](x + h)
        return norms[1](x + ffn(x, ctx.training)), kv, probs
