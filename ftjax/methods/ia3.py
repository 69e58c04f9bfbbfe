"""(IA)^3: learned vectors rescale keys, values and the FFN's inner activation (Liu et al. 2022, section 3.3).

softmax(q (l_k * k)^T / sqrt(hd)) (l_v * v), and (l_ff * act(x W_up)) W_down; every vector starts at one, so step 0
is the base bit for bit. Outputs are scaled with their bias: (x W + b) * l.
Trainable parameters: L (2 K hd + F).

`definition = 'peft'` sits where PEFT's tables put it: on encoders also on the input of attention's output projection,
on GPT-2 also on the queries (its q, k, v are one matrix there).
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from ftjax import tree
from ftjax.methods.base import (
    Context,
    Method,
    canonical,
    change,
    choose,
    find,
    hooked,
    in_rows,
    layer_spans,
    match_sites,
    place,
)
from ftjax.nn.config import Config
from ftjax.nn.hooks import Site

PEFT = {  # what PEFT scales by default: outputs, and inputs beside the FFN's down projection; its kin's of a new family
    **dict.fromkeys(("gpt2", "openai-gpt"), ("attn/[qkv]", "")),
    **dict.fromkeys(("llama", "mistral", "t5"), ("(attn|cross)/[kv]", "")),
    **dict.fromkeys(("qwen2", "qwen3", "gemma2", "gemma3_text", "bart"), ("(attn|cross)/[qv]", "")),
    **dict.fromkeys(("bert", "roberta", "deberta-v2"), ("attn/[kv]", "attn/o")),
}


def _scaled(x: jax.Array, scale: jax.Array) -> jax.Array:
    # The product in fp32: around 1 the numbers of bf16 are 0.004 and 0.008 apart, and most of what l learns is less.
    return (x.astype(jnp.float32) * scale).astype(x.dtype)


@flax.struct.dataclass
class ScaledOutput:
    """l of a Linear's output `[out]`."""

    scale: jax.Array

    def output(self, y: jax.Array, site: Site) -> jax.Array:
        """y * l."""
        return _scaled(y, self.scale)


@flax.struct.dataclass
class ScaledActivation:
    """l of the FFN's inner activation `[F]`."""

    scale: jax.Array

    def activation(self, h: jax.Array, site: Site) -> jax.Array:
        """h * l."""
        return _scaled(h, self.scale)


@flax.struct.dataclass
class ScaledInput:
    """l of a Linear's input `[in]`."""

    scale: jax.Array

    def input(self, x: jax.Array, site: Site) -> jax.Array:
        """x * l."""
        return _scaled(x, self.scale)


def init(ctx: Context, cfg: Any, key: jax.Array) -> dict:
    """Ones, in `cfg.layers` (all where empty).

    Raises:
      UserError: an unknown definition, a layer that is not there.
    """
    choose("definition", cfg.definition, ("paper", "peft"))
    outputs, inputs = "(attn|cross)/[kv]", ""
    if cfg.definition == "peft":
        kin = "llama" if ctx.cfg.causal else "bert"
        outputs, inputs = PEFT.get(ctx.cfg.family, PEFT[kin])
    chosen = {path: (ScaledOutput, shape[-1:]) for path, shape in match_sites(hooked(ctx, "output"), [outputs]).items()}
    chosen |= {path: (ScaledActivation, shape) for path, shape in hooked(ctx, "activation").items()}
    if inputs:
        chosen |= {path: (ScaledInput, shape) for path, shape in match_sites(hooked(ctx, "input"), [inputs]).items()}
    adapters = {
        in_rows(path, span, ctx.rows(path)): kind(jnp.ones((span[1] - span[0], *shape)))
        for path, (kind, shape) in chosen.items()
        for span in layer_spans(cfg.layers, ctx.rows(path))
    }
    return place(adapters, "ia3")


def labels(variables: Any, cfg: Any) -> Any:
    """The vectors train."""
    return tree.label(variables, [(r"^adapters/.*/ia3/scale$", "ia3"), ("", tree.FREEZE)])


def merge(params: Any, adapters: Any, model: Config) -> Any:
    """l into the columns (and bias) of what it scales the output of, into the rows of what it scales the input of."""
    flat = tree.flatten(canonical(params))
    for found in find(adapters, (ScaledOutput, ScaledActivation, ScaledInput)):
        scale = found.adapter.scale
        if isinstance(found.adapter, ScaledOutput):
            change(flat, f"{found.site}/kernel", found.rows, lambda w, s=scale: w * s[..., None, :])
            if f"{found.site}/bias" in flat:
                change(flat, f"{found.site}/bias", found.rows, lambda b, s=scale: b * s)
        else:
            site = found.site if isinstance(found.adapter, ScaledInput) else f"{found.site}/down"
            change(flat, f"{site}/kernel", found.rows, lambda w, s=scale: w * s[..., :, None])
    return tree.unflatten(flat)


METHOD = Method(init=init, labels=labels, merge=merge, paper="Liu et al. 2022 (T-Few)")
