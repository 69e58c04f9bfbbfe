"""LoRA: low-rank adaptation of linear layers (Hu et al. 2021, https://arxiv.org/abs/2106.09685), and its variants.

y = x W + s dropout(x) A B, with W frozen, A `[in, R]`, B `[R, out]`, s = alpha / R (eq. 3, in row convention). B starts
at zero, so step 0 is the base bit for bit; A starts as U(-1/sqrt(in), 1/sqrt(in)), as the authors' code does.
Trainable parameters: sum over sites of R (in + out); DoRA adds out.

- `rslora`: s = alpha / sqrt(R) (Kalajdzievski 2023).
- `dora`: y = m (x W + s x A B) / |W + s A B| by output column, m = |W| at first, the norm without a gradient (Liu
  et al. 2024, eq. 5 and section 4.3). Of the embedding the columns are the D features, over the vocabulary.
- `pissa`: s A B starts as the R largest singular directions of W, and W without them is frozen (Meng et al. 2024). Here
  W stays whole: the start is subtracted by a frozen LoRA of the same rank, which is also how it is exported. Without
  dropout, as the authors train it: it is to act on A B and not on what is subtracted, here one LoRA.
- A rank filled up with zeros (columns of A, rows of B, scale) stays zero: each of the two gradients is a product with
  the other's zeros.
- LoRA+ (Hayou et al. 2024): A and B are the optimizer groups `lora_a` and `lora_b`: optimizer.group_rates=lora_b:16.

Beside the linear sites there are `embed` (h + s A[ids] B; A zero, B normal at first) and `qkv`: one LoRA over the three
projections side by side, as models with a fused one (GPT-2's c_attn) are adapted elsewhere; its dropout is drawn for
each of the three.
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
    Sites,
    by_pattern,
    canonical,
    change,
    find,
    hooked,
    in_rows,
    layer_spans,
    match_sites,
    place,
    replace,
)
from ftjax.nn.config import Config
from ftjax.nn.core import matmul
from ftjax.nn.hooks import Site
from ftjax.nn.layers import layered

QKV, TABLE = "layers/attn/qkv", "embed/tokens/embedding"


class LowRank:
    """What A, B and scale of a linear site and of the embedding stand for: a change of the kernel, or of the table."""

    a: jax.Array
    b: jax.Array
    scale: jax.Array

    def delta(self) -> jax.Array:
        """What is added to the kernel: A diag(scale) B, fp32, `[..., in, out]`."""
        a, b, scale = (x.astype(jnp.float32) for x in (self.a, self.b, self.scale))
        return (a * scale[..., None, :]) @ b

    def norm(self, kernel: jax.Array) -> jax.Array:
        """|W + A diag(scale) B| by output column `[..., out]`, without the sum: |W|^2 + 2 <W^T A, B> + |A B|^2."""
        w, a, b = (x.astype(jnp.float32) for x in (kernel, self.a, self.b))
        a = a * self.scale.astype(jnp.float32)[..., None, :]
        cross = jnp.sum((a.mT @ w) * b, -2)
        low = jnp.sum(b * ((a.mT @ a) @ b), -2)
        return jnp.sqrt(jnp.sum(jnp.square(w), -2) + 2 * cross + low)


@flax.struct.dataclass
class LoRA(LowRank):
    """One site's A and B. `scale` carries s by column, so that alpha, rank masks and gates are data."""

    a: jax.Array  # [in, R], or [L, in, R] in the stack
    b: jax.Array  # [R, out]
    scale: jax.Array  # [R]
    rate: jax.Array | None = None  # [], dropout on the input of A; None is no dropout
    magnitude: jax.Array | None = None  # [out], DoRA's m
    start: tuple[jax.Array, jax.Array] | None = None  # PiSSA's first A and B; only in trained form

    def linear(self, x: jax.Array, y: jax.Array, kernel: jax.Array, site: Site) -> jax.Array:
        """y + (dropout(x) A * scale) B; x `[..., in]`, y `[..., out]`."""
        if self.start is not None:
            raise UserError("a PiSSA adapter in trained form: bring it to site form by Method.expand first")
        if self.rate is not None:
            x = site.dropout(x, self.rate)
        h = (matmul(x, self.a.astype(x.dtype), jnp.float32) * self.scale).astype(x.dtype)
        y = y + matmul(h, self.b.astype(x.dtype), y.dtype)
        if self.magnitude is None:
            return y
        norm = jax.lax.stop_gradient(self.norm(kernel))
        return (y * (self.magnitude / norm)).astype(y.dtype)


@flax.struct.dataclass
class LoRAEmbedding(LowRank):
    """A and B of the token embedding; its columns are those of the table `[V, D]`."""

    a: jax.Array  # [V, R]
    b: jax.Array  # [R, D]
    scale: jax.Array  # [R]
    magnitude: jax.Array | None = None  # [D], DoRA's m
    columns: jax.Array | None = None  # [D], |E + A diag(scale) B|: of the whole table, so that `expand` sets it

    def embed(self, ids: jax.Array, h: jax.Array, site: Site) -> jax.Array:
        """h + s A[ids] B, of DoRA times m by its norm; ids `[B, T]`, h `[B, T, D]`."""
        h_new = h + matmul(self.a[ids] * self.scale, self.b)
        if self.magnitude is not None:
            if self.columns is None:
                raise UserError("a DoRA of the embedding in trained form: bring it to site form by Method.expand first")
            h_new = h_new * (self.magnitude / self.columns)
        return h_new.astype(h.dtype)


def init(ctx: Context, cfg: Any, key: jax.Array) -> dict:
    """Adapters of `cfg.rank`, `cfg.alpha`, `cfg.dropout` for `cfg.targets` in `cfg.layers` (all where empty).

    `cfg.rank_pattern` and `cfg.alpha_pattern` are `target:number,...` for some of the targets.

    Raises:
      UserError: a rank below 1 or above a matrix's smaller side, a dropout outside [0, 1), a target or pattern that
        matches nothing, variants that exclude each other.
    """
    linear = hooked(ctx, "linear")
    widths = [linear[f"layers/attn/{name}"][1] for name in "qkv"]
    known = {"embed": hooked(ctx, "embed")["embed"], **linear}  # an encoder looks its tokens up in the same table
    if ctx.cfg.encoder is None:
        known[QKV] = (ctx.cfg.hidden_size, sum(widths))
    sites = match_sites(known, cfg.targets)
    if QKV in sites and any(f"layers/attn/{name}" in sites for name in "qkv"):
        raise UserError("method.targets: qkv beside one of q, k, v would adapt it twice; take either")
    if cfg.dora and cfg.pissa:
        raise UserError("method.dora and method.pissa exclude each other; take one")
    if not 0 <= cfg.dropout < 1:
        raise UserError(f"method.dropout={cfg.dropout}: give 0 or more, below 1")
    if cfg.dropout and sites.keys() == {"embed"}:
        raise UserError(f"method.dropout={cfg.dropout}: the embedding's LoRA has no input to drop; leave it at 0")
    if cfg.dropout and cfg.pissa:
        raise UserError("method.dropout and method.pissa exclude each other; take one")
    ranks = by_pattern("method.rank_pattern", cfg.rank_pattern, sites, cfg.rank, whole=True)
    alphas = by_pattern("method.alpha_pattern", cfg.alpha_pattern, sites, cfg.alpha)
    flat, adapters = tree.flatten(ctx.params), {}
    if min(alphas.values()) <= 0:
        raise UserError(f"method.alpha={min(alphas.values()):g}: give more than 0")
    for path, shape in sites.items():
        rank, most, rows = int(ranks[path]), min(shape), ctx.rows(path)
        if not 1 <= rank <= most:
            raise UserError(f"method.rank={rank}: {path} is {shape[0]} x {shape[1]}; give 1..{most}")
        s = alphas[path] / (rank**0.5 if cfg.rslora else rank)
        if path == "embed" and cfg.pissa:
            raise UserError("method.pissa: the embedding takes plain LoRA or dora; leave embed out of method.targets")
        for span in layer_spans(cfg.layers, rows) if layered(path) else [(0, rows)]:
            key, sub = jax.random.split(key)
            lead = (span[1] - span[0],) if layered(path) else ()
            kernel = None
            if cfg.dora or cfg.pissa:
                kernel = _kernel(flat, path)
                kernel = kernel[slice(*span)] if lead else kernel
            adapters[in_rows(path, span, rows)] = _new(path, shape, lead, rank, s, kernel, cfg, sub)
    return place(adapters, "lora")


def _kernel(flat: dict[str, jax.Array], path: str) -> jax.Array:
    """The kernel of a site, fp32; of `qkv`, the embedding and a tied head what stands for one."""
    names = [path.removesuffix("qkv") + name for name in "qkv"] if path == QKV else [path]
    if path == "embed" or (path == "head" and "head/kernel" not in flat):
        table = flat[TABLE].astype(jnp.float32)
        return table if path == "embed" else table.T
    return jnp.concatenate([flat[f"{name}/kernel"].astype(jnp.float32) for name in names], -1)


def _new(
    path: str,
    shape: tuple[int, ...],
    lead: tuple[int, ...],
    rank: int,
    s: float,
    kernel: jax.Array | None,  # for dora and pissa
    cfg: Any,
    key: jax.Array,
) -> Any:
    size_in, size_out = shape
    scale = jnp.full((*lead, rank), s)
    if path == "embed":
        lora: Any = LoRAEmbedding(jnp.zeros((size_in, rank)), jax.random.normal(key, (rank, size_out)), scale)
        return lora if kernel is None else lora.replace(magnitude=lora.norm(kernel))
    bound = size_in**-0.5
    a = jax.random.uniform(key, (*lead, size_in, rank), minval=-bound, maxval=bound)
    lora = LoRA(
        a=a,
        b=jnp.zeros((*lead, rank, size_out)),
        scale=scale,
        rate=jnp.full(lead, cfg.dropout) if cfg.dropout else None,
    )
    if kernel is None:
        return lora
    if cfg.dora:
        return lora.replace(magnitude=lora.norm(kernel))
    u, values, v = jnp.linalg.svd(kernel, full_matrices=False)
    root = jnp.sqrt(values[..., :rank] / s)
    a, b = u[..., :rank] * root[..., None, :], v[..., :rank, :] * root[..., :, None]
    start = (jnp.copy(a), jnp.copy(b))  # buffers of their own: a train step is given those of what trains
    return lora.replace(a=a, b=b, start=start)


def labels(variables: Any, cfg: Any) -> Any:
    """A, B and DoRA's m train; the base, scales, rates and PiSSA's start do not."""
    rules = [(r"^adapters/.*/lora/a$", "lora_a"), (r"^adapters/.*/lora/b$", "lora_b")]
    return tree.label(variables, [*rules, (r"^adapters/.*/lora/magnitude$", "lora_m"), ("", tree.FREEZE)])


def expand(adapters: Any, params: Any) -> Any:
    """`qkv` as three adapters that share A; PiSSA's start as further, negative rank; the norms of DoRA's embedding."""

    def site_form(found: Found) -> dict[str, Any]:
        lora = found.adapter
        if isinstance(lora, LoRAEmbedding):
            if lora.magnitude is not None:
                norm = lora.norm(params["embed"]["tokens"]["embedding"])
                lora = found.adapter.replace(columns=jax.lax.stop_gradient(norm))
            return {found.path: lora} | ({f"encoder/{found.path}": lora} if "encoder" in params else {})
        if lora.start is not None:
            a0, b0 = (jax.lax.stop_gradient(x) for x in lora.start)
            a, b = jnp.concatenate([lora.a, a0], -1), jnp.concatenate([lora.b, b0], -2)
            lora = lora.replace(a=a, b=b, scale=jnp.concatenate([lora.scale, -lora.scale], -1), start=None)
        if found.site != QKV:
            return {found.path: lora}
        kernels = [_projection(params, name).shape[-1] for name in "qkv"]
        edges = [kernels[0], kernels[0] + kernels[1]]
        bs = jnp.split(lora.b, edges, -1)
        ms = [None] * 3 if lora.magnitude is None else jnp.split(lora.magnitude, edges, -1)
        at = found.path.removesuffix("qkv/lora")
        return {f"{at}{name}/lora": lora.replace(b=b, magnitude=m) for name, b, m in zip("qkv", bs, ms)}

    return replace(adapters, (LoRA, LoRAEmbedding), site_form)


def _projection(params: Any, name: str) -> jax.Array:
    return next(x for path, x in tree.flatten(params["layers"]).items() if path.endswith(f"attn/{name}/kernel"))


def merge(params: Any, adapters: Any, model: Config) -> Any:
    """W + s A B at every site (DoRA: m (W + s A B) / |W + s A B|), in fp32, then in the kernel's dtype.

    Raises:
      UserError: an adapter on a tied head or on the embedding of one: its matrix does two things, of which one changes.
    """
    params = canonical(params)
    flat = tree.flatten(params)

    def merged(lora: LoRA | LoRAEmbedding, w: jax.Array) -> jax.Array:
        new = w + lora.delta()
        return new if lora.magnitude is None else new * (lora.magnitude / lora.norm(w))[..., None, :]

    for found in find(expand(adapters, params), (LoRA, LoRAEmbedding)):
        if found.site == "encoder/embed":
            continue  # the decoder's table, changed once
        lora = found.adapter
        if model.head_is_embedding and found.site in ("embed", "head"):
            raise UserError(
                f"cannot merge the LoRA at {found.site}: the embedding and the head are one matrix (tied), and only"
                " one of the two is adapted; export the adapter"
            )
        name = TABLE if isinstance(lora, LoRAEmbedding) else f"{found.site}/kernel"
        change(flat, name, found.rows, lambda w, x=lora: merged(x, w))
    return tree.unflatten(flat)


def combine(adapters: list[Any], weights: list[float]) -> Any:
    """The weighted sum of LoRAs of one base, exactly: ranks side by side, scales times weights.

    Args:
      adapters: trees in site form, with LoRAs at the same sites.
    Raises:
      UserError: DoRA, or adapters at different sites.
    """
    found = [{f.path: f.adapter for f in find(one, object)} for one in adapters]
    sites: Sites = dict.fromkeys(found[0], ())
    if not sites or not all(isinstance(x, LoRA | LoRAEmbedding) for one in found for x in one.values()):
        raise UserError("only LoRAs have a weighted sum: combine runs of method=lora alone")
    if any(set(one) != set(sites) for one in found) or len(weights) != len(adapters):
        raise UserError("LoRAs to combine must sit at the same sites, with a weight each")
    if any(getattr(x, "magnitude", None) is not None for one in found for x in one.values()):
        raise UserError("DoRA's norms do not add up: merge the adapters into the base one after another instead")

    def together(path: str) -> Any:
        each = [one[path] for one in found]
        return each[0].replace(
            a=jnp.concatenate([x.a for x in each], -1),
            b=jnp.concatenate([x.b for x in each], -2),
            scale=jnp.concatenate([x.scale * w for x, w in zip(each, weights)], -1),
        )

    return tree.unflatten({path: together(path) for path in sites})


METHOD = Method(init=init, labels=labels, merge=merge, expand=expand, pads=True, paper="Hu et al. 2021")
