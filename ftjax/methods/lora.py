"""LoRA: low-rank adaptation of linear layers (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

y = x W + (alpha / R) dropout(x) A B, with W frozen, A `[in, R]` and B `[R, out]` (eq. 3, in row convention). B starts
at zero, so step 0 is the base bit for bit; A starts as U(-1/sqrt(in), 1/sqrt(in)), as the authors' code does.
Trainable parameters: sum over sites of R (in + out).
"""

import flax.struct
import jax
import jax.numpy as jnp

from ftjax import tree
from ftjax.errors import UserError
from ftjax.methods.base import Context, Method, match_sites, place, stacked
from ftjax.nn.core import matmul
from ftjax.nn.hooks import Site


@flax.struct.dataclass
class LoRA:
    """One site's A and B. `scale` carries alpha / R by column, so that alpha, rank masks and gates are data."""

    a: jax.Array  # [in, R], or [L, in, R] in the stack
    b: jax.Array  # [R, out]
    scale: jax.Array  # [R]
    rate: jax.Array | None  # [], dropout on the input of A; None is no dropout

    def linear(self, x: jax.Array, y: jax.Array, kernel: jax.Array, site: Site) -> jax.Array:
        """y + (dropout(x) A * scale) B; x `[..., in]`, y `[..., out]`."""
        if self.rate is not None:
            x = site.dropout(x, self.rate)
        h = matmul(x, self.a.astype(x.dtype)) * self.scale.astype(x.dtype)
        return y + matmul(h, self.b.astype(x.dtype), y.dtype)

    def delta(self) -> jax.Array:
        """What is added to the kernel: A diag(scale) B, fp32, `[..., in, out]`."""
        a, b, scale = (x.astype(jnp.float32) for x in (self.a, self.b, self.scale))
        return (a * scale[..., None, :]) @ b


def init(ctx: Context, cfg, key: jax.Array) -> dict:
    """Adapters for `cfg.targets` with `cfg.rank`, `cfg.alpha`, `cfg.dropout`.

    Raises:
      UserError: a rank below 1 or above a matrix's smaller side, a dropout outside [0, 1), a target that
        matches nothing.
    """
    sites = match_sites(ctx, "linear", cfg.targets)
    if not 0 <= cfg.dropout < 1:
        raise UserError(f"method.dropout={cfg.dropout}: give 0 or more, below 1")
    adapters = {}
    for path, (size_in, size_out) in sites.items():
        if not 1 <= cfg.rank <= min(size_in, size_out):
            raise UserError(
                f"method.rank={cfg.rank}: {path} is {size_in} x {size_out}; give 1..{min(size_in, size_out)}"
            )
        lead = stacked(ctx, path)
        key, sub = jax.random.split(key)
        bound = size_in**-0.5
        adapters[path] = LoRA(
            a=jax.random.uniform(sub, (*lead, size_in, cfg.rank), minval=-bound, maxval=bound),
            b=jnp.zeros((*lead, cfg.rank, size_out)),
            scale=jnp.full((*lead, cfg.rank), cfg.alpha / cfg.rank),
            rate=jnp.full(lead, cfg.dropout) if cfg.dropout else None,
        )
    return place(adapters, "lora")


def labels(variables, cfg):
    """A and B train; the base, scales and rates do not."""
    return tree.label(variables, [(r"^adapters/.*/lora/[ab]$", "adapter"), ("", tree.FREEZE)])


def merge(params, adapters):
    """W + A diag(scale) B at every site, in fp32, then in the kernel's dtype.

    Raises:
      UserError: an adapter on a tied head, which has no kernel of its own.
    """
    flat = tree.flatten(params)
    found = jax.tree_util.tree_leaves_with_path(adapters, is_leaf=lambda x: isinstance(x, LoRA))
    for path, lora in found:
        site = tree.path_name(path).removesuffix("/lora")
        name = f"{site}/kernel"
        if name not in flat:
            raise UserError(
                f"cannot merge the LoRA at {site}: its kernel is tied to another weight; export the adapter"
            )
        flat[name] = (flat[name].astype(jnp.float32) + lora.delta()).astype(flat[name].dtype)
    return tree.unflatten(flat)


METHOD = Method(init=init, labels=labels, merge=merge)
