"""What a fine-tuning method is, and how it names the sites that it changes."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from ftjax import tree
from ftjax.errors import UserError

Tree = Any
ALIASES = {
    "attention": r"attn/[^/]+",
    "mlp": r"ffn/[^/]+",
    "all_linear": r"layers/.+",
}


class Context(NamedTuple):
    """What a method may look at when it makes its adapters."""

    params: Tree  # arrays or abstract shapes
    sites: Mapping[str, Mapping[str, tuple[int, ...]]]  # site path -> {hook: shape}
    num_layers: int


class Method(NamedTuple):
    """A fine-tuning method: one file each, listed in `ftjax.methods`.

    init: (context, cfg, key) -> adapters, trained form.
    labels: (variables, cfg) -> one label per leaf: `freeze`, or the name of an optimizer group.
    expand: (adapters, params) -> adapters as the sites see them; inside the loss, and once before decoding or export.
    merge: (params, adapters) -> plain params that give the same outputs; raises UserError where there are none.
    """

    init: Callable[[Context, Any, jax.Array], dict]
    labels: Callable[[Tree, Any], Tree]
    merge: Callable[[Tree, Tree], Tree]
    expand: Callable[[Tree, Tree], Tree] = lambda adapters, params: adapters


def no_adapters(ctx: Context, cfg: Any, key: jax.Array) -> dict:
    """For methods that train what the model already has."""
    return {}


def match_sites(ctx: Context, hook: str, targets: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """{path: shape} of the sites of `hook` that the targets name.

    A target is an alias (`attention`, `mlp`, `all_linear`) or a regular expression for the end of a path, from a `/`
    on: `q` and `attn/(q|v)` both match `layers/attn/q`.

    Raises:
      UserError: a target that is no pattern or matches no site; the message lists the sites.
    """
    known = {path: hooks[hook] for path, hooks in ctx.sites.items() if hook in hooks}
    matched: set[str] = set()
    for target in targets:
        try:
            pattern = re.compile(rf"(?:.*/)?(?:{ALIASES.get(target, target)})")
        except re.error as error:
            raise UserError(f"method.targets: {target!r} is no regular expression ({error})") from None
        found = {path for path in known if pattern.fullmatch(path)}
        if not found:
            raise UserError(
                f"method.targets: {target!r} matches no site; there are {', '.join(known)}"
                f" (or the aliases {', '.join(ALIASES)})"
            )
        matched |= found
    if not matched:
        raise UserError(f"method.targets is empty; name some of {', '.join(known)}")
    return {path: shape for path, shape in known.items() if path in matched}


def stacked(ctx: Context, path: str) -> tuple[int, ...]:
    """The leading shape of what sits at `path`: `(L,)` inside the layer stack."""
    return (ctx.num_layers,) if path.startswith("layers/") else ()


def place(adapters: Mapping[str, Any], name: str) -> dict:
    """Nested adapters from {site path: object} of the method `name`; the root's path is empty."""
    return tree.unflatten({f"{path}/{name}".lstrip("/"): adapter for path, adapter in adapters.items()})
