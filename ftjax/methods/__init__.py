"""Fine-tuning methods: one file each."""

import re
from typing import Any

from ftjax import tree
from ftjax.errors import UserError
from ftjax.methods import full, head, lora
from ftjax.methods.base import Context, Method

METHODS: dict[str, Method] = {
    "full": full.METHOD,
    "head": head.METHOD,
    "lora": lora.METHOD,
}
TASK_HEAD = r"^params/(classifier|pooler)/"


def get(name: str) -> Method:
    """The method of that name; UserError lists what there is."""
    if name not in METHODS:
        raise UserError(f"method.name={name!r} is unknown; there are {', '.join(METHODS)}")
    return METHODS[name]


def labels(method: Method, variables: Any, cfg: Any) -> Any:
    """The method's labels, with a head that the task adds always trained, as group `head`.

    Raises:
      UserError: nothing trains.
    """

    def mine(path: str, name: str) -> str:
        return "head" if re.match(TASK_HEAD, path) else name

    labels = tree.map_paths(mine, method.labels(variables, cfg))
    if set(tree.flatten(labels).values()) == {tree.FREEZE}:
        raise UserError(
            f"method.name={cfg.name!r} trains nothing here: this task adds no head; take full or an adapter method"
        )
    return labels


__all__ = ["METHODS", "Context", "Method", "get", "labels"]
