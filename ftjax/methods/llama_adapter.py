"""LLaMA-Adapter: in the top layers, attention to learned prompts beside the tokens, opened by a gate that starts at
zero (Zhang et al. 2023, https://arxiv.org/abs/2303.16199, section 3.2).

out + tanh(g) softmax(q k_p^T / sqrt(hd)) v_p, with k_p, v_p the prompts `[P, D]` through the layer's frozen
projections, not rotated; two softmaxes, summed after. Step 0 is the base bit for bit.
Trainable parameters: P D and the gates, of each of the top layers.

`definition = 'paper'` (the authors' code): a gate a head, tanh, before the output projection. `'peft'`: one gate a
layer, no tanh, and on GPT-2 added after the output projection. `gate` and `tanh` change either.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from ftjax import tree
from ftjax.errors import UserError
from ftjax.methods.base import (
    Context,
    Found,
    Method,
    choose,
    hooked,
    in_rows,
    place,
    positive,
    replace,
    unmergeable,
)
from ftjax.nn.hooks import Site
from ftjax.nn.layers import uncut


@flax.struct.dataclass
class LLaMAAdapter:
    """One layer's prompts; k and v are set by `expand`."""

    prompts: jax.Array  # [P, D]
    gate: jax.Array  # [H] or [1]
    k: jax.Array | None = None  # [P, K, hd]
    v: jax.Array | None = None
    head_dim: int = flax.struct.field(pytree_node=False, default=1)
    tanh: bool = flax.struct.field(pytree_node=False, default=True)
    beyond: bool = flax.struct.field(pytree_node=False, default=False)  # added after the output projection

    def attend(self, q: jax.Array, out: jax.Array, attention: Any, site: Site) -> tuple[jax.Array, jax.Array | None]:
        """out plus the gated attention to the prompts; q, out `[B, T, H, hd]`."""
        assert self.k is not None and self.v is not None, "expand first"
        gate = jnp.tanh(self.gate) if self.tanh else self.gate
        more = attention(q, self.k.astype(q.dtype), self.v.astype(q.dtype)) * gate[:, None].astype(q.dtype)
        return (out, more) if self.beyond else (out + more, None)


def init(ctx: Context, cfg: Any, key: jax.Array) -> dict:
    """Prompts N(0, 1) of `cfg.length` for the top `cfg.count` layers (0: all), gates at zero.

    Raises:
      UserError: an unknown definition or gate, a length below 1, more layers than there are.
    """
    choose("definition", cfg.definition, ("paper", "peft"))
    paper = cfg.definition == "paper"
    gate = cfg.gate or ("head" if paper else "scalar")
    choose("gate", gate, ("head", "scalar"))
    positive("length", cfg.length)
    if ctx.cfg.qk_norm != "none":
        raise UserError("method.name='llama_adapter': its keys are not normed, as this model's are; take prefix")
    rows = ctx.cfg.rows
    count = cfg.count or rows
    positive("count", count, rows)
    heads, _, head_dim = hooked(ctx, "attend")["layers/attn"]
    adapter = LLaMAAdapter(
        prompts=jax.random.normal(jax.random.split(key)[1], (count, cfg.length, ctx.cfg.hidden_size)),
        gate=jnp.zeros((count, heads if gate == "head" else 1)),
        head_dim=head_dim,
        tanh=paper if cfg.tanh is None else cfg.tanh,
        beyond=not paper and ctx.cfg.positions == "learned",
    )
    return place({in_rows("layers/attn", (rows - count, rows), rows): adapter}, "llama_adapter")


def labels(variables: Any, cfg: Any) -> Any:
    """Prompts and gates train."""
    rule = (r"^adapters/.*/llama_adapter/(prompts|gate)$", "llama_adapter")
    return tree.label(variables, [rule, ("", tree.FREEZE)])


def expand(adapters: Any, params: Any) -> Any:
    """Keys and values of the prompts, by the layers' own projections."""

    def with_keys(found: Found) -> dict[str, Any]:
        one, attn = found.adapter, uncut(params["layers"], "attn")

        def project(name: str) -> jax.Array:
            part = {leaf: x[found.rows].astype(one.prompts.dtype) for leaf, x in attn[name].items()}
            y = one.prompts @ part["kernel"] + (part["bias"][:, None] if "bias" in part else 0)
            return y.reshape(*y.shape[:-1], -1, one.head_dim)

        return {found.path: one.replace(k=project("k"), v=project("v"))}

    return replace(adapters, LLaMAAdapter, with_keys)


METHOD = Method(
    init=init,
    labels=labels,
    merge=unmergeable("attention to prompts depends on the query, as no plain weights do; keep the adapter"),
    expand=expand,
    paper="Zhang et al. 2023",
)
