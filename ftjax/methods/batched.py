"""Several adapters on one base: in one batch, each example with its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from ftjax import tree
from ftjax.errors import UserError
from ftjax.nn.layers import layered

ROWWISE = {  # how many leading arguments of a hook have one row an example
    "input": 1, "linear": 2, "output": 1, "activation": 1, "sublayer": 2, "keys_values": 0, "attend": 2, "embed": 2,
    "positions": 1,
}  # fmt: skip


@flax.struct.dataclass
class PerExample:
    """N adapter objects as one: example b is given to number `index[b]`. For inference; dropout is not per example."""

    each: Any  # an adapter object whose leaves lead with N
    index: jax.Array  # int [B]

    def __getattr__(self, hook: str) -> Any:
        if hook not in ROWWISE or not hasattr(type(self.each), hook):
            raise AttributeError(hook)

        def act(*args: Any) -> Any:
            rows, rest = args[: ROWWISE[hook]], args[ROWWISE[hook] :]

            def one(adapter: Any, *row: jax.Array) -> Any:
                out = getattr(adapter, hook)(*(x[None] for x in row), *rest)
                return jax.tree.map(lambda x: x[0], out) if row else out

            # What all examples share, as DeBERTa's table of positions, leads with 1.
            rows = tuple(jnp.broadcast_to(x, (len(self.index), *x.shape[1:])) for x in rows)
            return jax.vmap(one)(jax.tree.map(lambda x: x[self.index], self.each), *rows)

        return act


def batched(adapters: Sequence[Any], index: Any) -> Any:
    """One `adapters` collection of several, in site form and of the same structure.

    Args:
      adapters: N trees.
      index: int `[B]`, which of them each example of a batch takes.
    Raises:
      UserError: adapters of different methods, sites or sizes, or an index that none has.
    """
    index = jnp.asarray(index, jnp.int32)
    shapes = [jax.tree.map(jnp.shape, one) for one in adapters]
    if any(other != shapes[0] for other in shapes[1:]):
        raise UserError("adapters of one batch must be of one method, with the same sites and sizes")
    if not 0 <= int(index.min()) <= int(index.max()) < len(adapters):
        raise UserError(f"the adapters' index runs from {index.min()} to {index.max()}, there are {len(adapters)}")

    def join(path: Any, *each: Any) -> PerExample:
        axis = int(layered(tree.path_name(path)))  # behind the layers, which the scan takes off
        together = jax.tree.map(lambda *xs: jnp.stack(xs, axis), *each)
        if not axis:
            return PerExample(together, index)
        rows = jax.tree.leaves(together)[0].shape[0]
        return PerExample(together, jnp.broadcast_to(index, (rows, *index.shape)))

    return jax.tree_util.tree_map_with_path(join, *adapters, is_leaf=lambda x: not isinstance(x, Mapping))
