"""Linear, Embed, Norm: the leaves of every model, with the hooks of `ftjax.nn.hooks`."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError

from ftjax.nn import kernels
from ftjax.nn.config import Config
from ftjax.nn.hooks import Site, acting

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}


def parameter(module: nn.Module, name: str, start: Any, shape: tuple[int, ...]) -> jax.Array:
    """What `module.param` gives. That one traces the initialiser at every pass, only to compare shapes: more than half
    of the time that it takes to trace a forward pass."""
    if not module.has_variable("params", name):
        return module.param(name, start, shape)
    value = module.get_variable("params", name)
    if value.shape != shape:
        raise ScopeParamShapeError(name, "/".join(module.path), value.shape, shape)
    return value


def matmul(x: jax.Array, kernel: jax.Array, out_dtype: Any = None) -> jax.Array:
    """`[..., in]` by `[in, out]`, flattened to one matrix: the gradient of the kernel is then a plain product too. Of
    more axes, XLA's CPU backend copies the transposed gradient first, and multiplies at 0.5 to 0.9 of the rate."""
    rows = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel, preferred_element_type=out_dtype or x.dtype)
    return rows.reshape(*x.shape[:-1], kernel.shape[-1])


FEW = 64  # rows


def few(rows: int) -> bool:
    """Whether a product of so many rows is faster by outputs: on CPUs, below `FEW`."""
    return rows < FEW and kernels.backend() == "cpu"


def matmul_by_outputs(x: jax.Array, table: jax.Array, out_dtype: Any = None) -> jax.Array:
    """`[..., in]` by `[out, in]`, flattened to one matrix. Below `FEW` rows XLA's CPU backend multiplies at two to
    three times the rate if the weights lead; the barrier keeps it from turning the product around."""
    rows, dtype = x.reshape(-1, x.shape[-1]), out_dtype or x.dtype
    if few(len(rows)):
        y = jax.lax.optimization_barrier(jnp.matmul(table, rows.T, preferred_element_type=dtype)).T
    else:
        y = jnp.matmul(rows, table.T, preferred_element_type=dtype)
    return y.reshape(*x.shape[:-1], len(table))


def by_outputs(params: Any) -> Any:
    """The same parameters, each Linear's `kernel [..., in, out]` as the `table [..., out, in]` that few rows read."""
    if not isinstance(params, Mapping):
        return params
    turned = {name: by_outputs(x) for name, x in params.items() if name != "kernel"}
    return turned | ({"table": params["kernel"].swapaxes(-1, -2)} if "kernel" in params else {})


class Linear(nn.Module):
    """y = x W + b over the last axis. A site of the `input`, `linear` and `output` hooks.

    Its parameters are `kernel` (or, from `by_outputs`, `table`) and `bias`. `table [out, in]`, where given, is shared
    with another module (a tied head), and `out_dtype` the dtype of the result.
    """

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32
    out_dtype: Any = None
    std: float = 0.02

    @nn.compact
    def __call__(self, x: jax.Array, training: bool = False, table: jax.Array | None = None) -> jax.Array:
        site, shape = Site(self, training), (x.shape[-1], self.features)
        table = self.get_variable("params", "table") if table is None else table
        kernel = parameter(self, "kernel", nn.initializers.normal(self.std), shape) if table is None else table.T
        x = x.astype(self.dtype)
        for adapter in acting(self, "input", shape[0]):
            x = adapter.input(x, site)
        product, weights = (matmul, kernel) if table is None else (matmul_by_outputs, table)
        y = product(x, weights.astype(self.dtype), self.out_dtype)
        for adapter in acting(self, "linear", *shape):
            y = adapter.linear(x, y, kernel, site)
        if self.use_bias:
            y = y + parameter(self, "bias", nn.initializers.zeros, (self.features,)).astype(y.dtype)
        for adapter in acting(self, "output", self.features):
            y = adapter.output(y, site)
        return y


class Embed(nn.Module):
    """A table `[rows, features]`; out-of-range ids clamp, and adapters of the `embed` hook replace their rows."""

    rows: int
    features: int
    dtype: Any = jnp.float32
    std: float = 0.02

    def setup(self):
        self.embedding = parameter(self, "embedding", nn.initializers.normal(self.std), (self.rows, self.features))

    def __call__(self, ids: jax.Array) -> jax.Array:
        return self.embedding[ids].astype(self.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """LayerNorm over the last axis (Ba et al. 2016), in fp32."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, -1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + eps)
    return (y * scale.astype(jnp.float32) + bias).astype(x.dtype)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """RMSNorm over the last axis (Zhang & Sennrich 2019), in fp32."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + eps)
    return (y * scale.astype(jnp.float32)).astype(x.dtype)


class Norm(nn.Module):
    """The model's norm, as the options `norm*` of its config say, over the last axis."""

    cfg: Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg, shape = self.cfg, x.shape[-1:]
        start = nn.initializers.zeros if cfg.norm_plus_one else nn.initializers.ones
        scale = parameter(self, "scale", start, shape)
        if cfg.norm_plus_one:
            scale = 1 + scale.astype(jnp.float32)
        if cfg.norm == "rmsnorm":
            return rms_norm(x, scale, cfg.norm_eps)
        bias = parameter(self, "bias", nn.initializers.zeros, shape) if cfg.norm_bias else jnp.zeros(shape)
        return layer_norm(x, scale, bias, cfg.norm_eps)
