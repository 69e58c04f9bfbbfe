"""Hooks: the closed list of places where an adapter may act on a forward pass.

An adapter is a small pytree object in the `adapters` collection, at the path of the site that it changes, in a dict
keyed by its method's name: `adapters/layers/attn/q/lora`. A site asks its own path for the objects that define one of
these methods and lets each act, in the order of their names:

| hook                                    | who passes it                                               |
|-----------------------------------------|-------------------------------------------------------------|
| `input(x, site) -> x`                   | every Linear, before its product                            |
| `linear(x, y, kernel, site) -> y`       | every Linear, before the bias; y = x @ kernel               |
| `output(y, site) -> y`                  | every Linear, after the bias                                |
| `activation(h, site) -> h`              | the FFN, before its down projection                         |
| `sublayer(x, h, site) -> h`             | attention and FFN, before the residual: their input, output |
| `keys_values(site) -> k, v`             | attention: `[P, K, hd]`, seen by every real query           |
| `attend(q, out, attention, site) -> out, beyond` | attention: rotated q, result before the output projection |
| `embed(ids, h, site) -> h`              | the token embedding, before positions                       |
| `positions(positions, site) -> positions`| each stack's root, once: moves them by a static number      |

`attention(q, k, v)` in `attend` is the plain one, over keys and values `[P, K, hd]`; `beyond`, where not None, is added
after the output projection.
"""

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

HOOKS = ("input", "linear", "output", "activation", "sublayer", "keys_values", "attend", "embed", "positions")
_prefix: ContextVar[str] = ContextVar("prefix", default="")
_record: ContextVar[dict | None] = ContextVar("record", default=None)


def dropout(key: jax.Array, x: jax.Array, rate: float | jax.Array) -> jax.Array:
    """Inverted dropout, divided in fp32. Sixteen random bits an element: half of threefry's work, a rate exact to
    2^-17."""
    keep = jax.random.bits(key, x.shape, jnp.uint16) >= jnp.asarray(rate * 65536, jnp.uint16)
    kept = x.astype(jnp.float32) / (1 - jnp.asarray(rate, jnp.float32))
    return jnp.where(keep, kept.astype(x.dtype), 0)


class Site(NamedTuple):
    """What a hook is told about the call: whether it trains, and a source of random bits of its own."""

    module: nn.Module
    training: bool

    def dropout(self, x: jax.Array, rate: float | jax.Array) -> jax.Array:
        """Dropout in training, the identity otherwise."""
        return dropout(self.module.make_rng("dropout"), x, rate) if self.training else x


def acting(module: nn.Module, hook: str, *shape: int) -> list[Any]:
    """The adapters at this module's path that define `hook`; tells a recording that the site is there."""
    record = _record.get()
    if record is not None:
        path = "/".join(filter(None, (_prefix.get(), *module.path)))
        record.setdefault(path, {})[hook] = shape
    here = module.variables.get("adapters", {})
    return [a for _, a in sorted(here.items()) if not isinstance(a, Mapping) and hasattr(a, hook)]


@contextlib.contextmanager
def under(prefix: str) -> Iterator[None]:
    """Paths of the sites inside are below `prefix` (the layer stack is applied as a module of its own)."""
    token = _prefix.set(prefix)
    try:
        yield
    finally:
        _prefix.reset(token)


@contextlib.contextmanager
def recording() -> Iterator[dict[str, dict[str, tuple[int, ...]]]]:
    """Collects {site path: {hook: shape}} of the forward passes traced inside."""
    record: dict[str, dict[str, tuple[int, ...]]] = {}
    token = _record.set(record)
    try:
        yield record
    finally:
        _record.reset(token)
