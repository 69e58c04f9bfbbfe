"""Fine-tuning methods: one file each, and their composition."""

import re
from collections.abc import Collection
from typing import Any

import jax

from ftjax import tree
from ftjax.errors import UserError
from ftjax.methods import (
    adapter,
    bitfit,
    full,
    gradual,
    head,
    ia3,
    llama_adapter,
    lora,
    p_tuning,
    prefix,
    prompt,
    top_layers,
)
from ftjax.methods.base import STARTS, Context, Method, Template, tokens
from ftjax.methods.batched import batched
from ftjax.methods.lora import combine
from ftjax.nn.config import Config
from ftjax.nn.layers import cut, parts

METHODS: dict[str, Method] = {  # where several are merged, it is in this order: what scales an output comes last
    "full": full.METHOD,
    "head": head.METHOD,
    "top_layers": top_layers.METHOD,
    "gradual": gradual.METHOD,
    "bitfit": bitfit.METHOD,
    "lora": lora.METHOD,
    "ia3": ia3.METHOD,
    "adapter": adapter.METHOD,
    "prompt": prompt.METHOD,
    "prefix": prefix.METHOD,
    "p_tuning": p_tuning.METHOD,
    "llama_adapter": llama_adapter.METHOD,
}
ALONE = (({"prompt", "p_tuning"}, "both place virtual tokens"),
         ({"full", "head", "top_layers", "gradual"}, "both say which of the base's weights train"))  # fmt: skip
FOR_CLASSES = ("classification", "tagging", "span")  # heads
TASK_HEAD = r"^params/(classifier|pair_classifier|pooler|transform)/"


def get(name: str) -> Method:
    """The method of that name, or the composition of several, `prefix+lora`.

    Raises:
      UserError: an unknown name, with what there is; one twice; two that both place virtual tokens.
    """
    names = name.split("+")
    for one in names:
        if one not in METHODS:
            raise UserError(f"method.name={name!r}: {one!r} is unknown; there are {', '.join(METHODS)}")
    if len(names) == 1:
        return METHODS[name]
    if len(set(names)) < len(names):
        raise UserError(f"method.name={name!r} names a method twice")
    for alone, what in ALONE:
        if len(alone & set(names)) > 1:
            raise UserError(f"method.name={name!r}: {' and '.join(sorted(alone & set(names)))} {what}; take one")
    return _composed(sorted(names, key=list(METHODS).index))


def _composed(names: list[str]) -> Method:
    chosen = {name: METHODS[name] for name in names}

    def init(ctx: Context, cfg: Any, key: jax.Array) -> dict:
        adapters: dict = {}
        for i, (name, method) in enumerate(chosen.items()):
            try:
                new = method.init(ctx, getattr(cfg, name), jax.random.fold_in(key, i))
            except UserError as error:
                raise UserError(re.sub(r"method\.(?!name\b)", f"method.{name}.", str(error))) from None
            adapters = tree.merge(adapters, new)
        return adapters

    def labels(variables: Any, cfg: Any) -> Any:
        each = [method.labels(variables, getattr(cfg, name)) for name, method in chosen.items()]
        return jax.tree.map(lambda *found: next((x for x in found if x != tree.FREEZE), tree.FREEZE), *each)

    def merge(params: Any, adapters: Any, model: Config) -> Any:
        for method in chosen.values():
            params = method.merge(params, adapters, model)
        return params

    def expand(adapters: Any, params: Any) -> Any:
        for method in chosen.values():
            adapters = method.expand(adapters, params)
        return adapters

    def template(cfg: Any, model: Config) -> Template | None:
        found = (method.template(getattr(cfg, name), model) for name, method in chosen.items())
        return next((x for x in found if x is not None), None)

    return Method(
        init=init,
        labels=labels,
        merge=merge,
        expand=expand,
        cuts=lambda cfg, rows: tuple(
            edge for name, method in chosen.items() for edge in method.cuts(getattr(cfg, name), rows)
        ),
        template=template,
        at_start=max((method.at_start for method in chosen.values()), key=STARTS.index),
    )


def variables(method: Method, cfg: Any, params: Any, adapters: Any, rows: int) -> dict[str, Any]:
    """`{params, adapters}`, the stack of so many rows cut where trainability changes and where adapters begin or end:
    of a whole one, every step would copy the rows that it takes apart."""
    edges = [edge for ends, _ in parts(adapters.get("layers", {}), rows) for edge in ends]
    layers = cut(params["layers"], rows, (*method.cuts(cfg, rows), *edges))
    return {"params": {**params, "layers": layers}, "adapters": adapters}


def labels(method: Method, variables: Any, cfg: Any, model: Config, fresh: Collection[str] = ()) -> Any:
    """The method's labels, with a head that the task adds always trained, as group `head`: one for its classes, and
    what the base's checkpoint lacks. A base that is random by intent (model.init) lacks nothing.

    Args:
      fresh: paths in the parameters of what is newly initialised.
    Raises:
      UserError: nothing trains.
    """
    # The classifier, pooler and transform of a head of pre-training are the base's own.
    added = model.head in FOR_CLASSES or "pair_classifier" in variables["params"]

    def mine(path: str, name: str) -> str:
        new = path.removeprefix("params/") in fresh
        return "head" if new or (added and re.match(TASK_HEAD, path)) else name

    labels = tree.map_paths(mine, method.labels(variables, cfg))
    if set(tree.flatten(labels).values()) <= {tree.FREEZE}:
        raise UserError(
            f"method.name={cfg.name!r} trains nothing here: this task adds no head; take full or an adapter method"
        )
    return labels


def trainable_leaves(method: Method, cfg: Any, ctx: Context) -> tuple[Any, bool]:
    """(abstract parameters and adapters that train, whether the method merges), from shapes alone.

    Args:
      ctx: its params may be abstract, of a model without a task's head.
    Raises:
      UserError: the method does not apply to the model.
    """

    def made(params: Any) -> Any:
        adapters = method.init(ctx._replace(params=params), cfg, jax.random.key(0))
        return variables(method, cfg, params, adapters, ctx.cfg.rows)

    shapes = jax.eval_shape(made, ctx.params)
    try:
        jax.eval_shape(lambda both: method.merge(both["params"], both["adapters"], ctx.cfg), shapes)
    except UserError:
        merges = False
    else:
        merges = True
    return tree.split(shapes, method.labels(shapes, cfg))[0], merges


__all__ = [
    "METHODS",
    "Context",
    "Method",
    "Template",
    "batched",
    "combine",
    "get",
    "labels",
    "tokens",
    "trainable_leaves",
    "variables",
]
