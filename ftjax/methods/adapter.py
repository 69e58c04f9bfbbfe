"""Bottleneck adapters: h + act(h W_down + b) W_up + b after a sublayer's output projection, before the residual.

- `houlsby` (Houlsby et al. 2019, section 2.1): after attention and after the FFN, GELU, the layers' norms trained too.
  Trainable: 2 L (2 D m + m + D), and 4 L D of norms.
- `lin` (Lin et al. 2020; Adapter^L of Hu et al. 2021): after the FFN, ReLU, a LayerNorm of its own first.
  Trainable: L (2 D m + m + D) + 2 L D.
- `pfeiffer` (Pfeiffer et al. 2020, AdapterFusion): after the FFN, ReLU; in a post-norm block the bottleneck reads the
  normed residual sum, h + A(norm(x + h)), by the base's own norm. Trainable: L (2 D m + m + D).

Both projections start as normals of deviation `init_std`, cut at two of them: near the identity, and at it where 0.
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
    layer_spans,
    place,
    positive,
    replace,
    unmergeable,
)
from ftjax.nn.core import ACTIVATIONS, layer_norm, matmul
from ftjax.nn.hooks import Site
from ftjax.nn.layers import uncut

KINDS = ("houlsby", "lin", "pfeiffer")


@flax.struct.dataclass
class Bottleneck:
    """One adapter. `norm` (scale, bias) comes before it: trained (`lin`), or the base's, set by `expand`."""

    down: dict[str, jax.Array]  # kernel [D, m], bias [m]
    up: dict[str, jax.Array]  # kernel [m, D], bias [D]
    norm: dict[str, jax.Array] | None = None  # scale, bias [D]
    act: str = flax.struct.field(pytree_node=False, default="gelu")
    reads_sum: bool = flax.struct.field(pytree_node=False, default=False)  # the normed x + h, not h
    eps: float = flax.struct.field(pytree_node=False, default=1e-5)

    def sublayer(self, x: jax.Array, h: jax.Array, site: Site) -> jax.Array:
        """h plus the bottleneck of what it reads; x, h `[B, T, D]`."""
        z = x + h if self.reads_sum else h
        if self.norm is not None:
            z = layer_norm(z, self.norm["scale"], self.norm["bias"], self.eps)
        z = ACTIVATIONS[self.act](matmul(z, self.down["kernel"].astype(z.dtype)) + self.down["bias"])
        z = matmul(z.astype(h.dtype), self.up["kernel"].astype(h.dtype)) + self.up["bias"]
        return h + z.astype(h.dtype)


def init(ctx: Context, cfg: Any, key: jax.Array) -> dict:
    """Adapters with a bottleneck of `cfg.size`, in `cfg.layers` (all where empty).

    Raises:
      UserError: an unknown kind, a size below 1, a layer that is not there.
    """
    choose("kind", cfg.kind, KINDS)
    positive("size", cfg.size)
    if cfg.layers and cfg.kind == "houlsby":
        raise UserError(
            "method.layers: houlsby trains the norms of all layers; take lin or pfeiffer, or leave it empty"
        )
    adapters: dict[str, Any] = {}
    paths = {p: w for p, w in hooked(ctx, "sublayer").items() if cfg.kind == "houlsby" or p.endswith("/ffn")}
    for path in paths:
        ((width,), rows) = paths[path], ctx.rows(path)
        for span in layer_spans(cfg.layers, rows):
            lead = (span[1] - span[0],)
            key, k1, k2 = jax.random.split(key, 3)
            normal = lambda k, shape: cfg.init_std * jax.random.truncated_normal(k, -2.0, 2.0, shape)  # noqa: E731
            own_norm = {"scale": jnp.ones((*lead, width)), "bias": jnp.zeros((*lead, width))}
            adapters[in_rows(path, span, rows)] = Bottleneck(
                down={"kernel": normal(k1, (*lead, width, cfg.size)), "bias": jnp.zeros((*lead, cfg.size))},
                up={"kernel": normal(k2, (*lead, cfg.size, width)), "bias": jnp.zeros((*lead, width))},
                norm=own_norm if cfg.kind == "lin" else None,
                act="gelu" if cfg.kind == "houlsby" else "relu",
                reads_sum=cfg.kind == "pfeiffer" and ctx.cfg.norm_order == "post",
                eps=ctx.cfg.norm_eps,
            )
    return place(adapters, "adapter")


def labels(variables: Any, cfg: Any) -> Any:
    """The adapters train, and, of the base, Houlsby's layer norms."""
    norms = [(r"^params/(encoder/)?layers/.*norm/(scale|bias)$", "norm")] if cfg.kind == "houlsby" else []
    return tree.label(variables, [(r"^adapters/.*/adapter/", "adapter"), *norms, ("", tree.FREEZE)])


def expand(adapters: Any, params: Any) -> Any:
    """Gives those that read the normed sum the base's norm."""

    def with_norm(found: Found) -> dict[str, Any]:
        if not found.adapter.reads_sum:
            return {found.path: found.adapter}
        norm = uncut((params if found.site.startswith("layers/") else params["encoder"])["layers"], "ffn_norm")
        return {found.path: found.adapter.replace(norm={name: x[found.rows] for name, x in norm.items()})}

    return replace(adapters, Bottleneck, with_norm)


METHOD = Method(
    init=init,
    labels=labels,
    merge=unmergeable("a bottleneck has a non-linearity, which no plain weights have; keep the adapter"),
    expand=expand,
    paper="Houlsby et al. 2019",
    at_start="near the base",
)
