"""Gradual unfreezing: the head first, then a layer more at a time (Howard & Ruder 2018, ULMFiT, section 3.3).

The stack is cut into its rows, and each is an optimizer group of its own, `depth_1` (the top layer) to `depth_L`, then
`depth_{L+1}` (the embeddings and, of an encoder-decoder, the encoder); `optimizer.unfreeze_every` says after how many
epochs the next one starts to move. All gradients are computed from the start. With `optimizer.layer_decay=0.385`
(1 / 2.6) and the schedule `slanted_triangular` it is ULMFiT's recipe.
"""

import re
from typing import Any

from ftjax import tree
from ftjax.methods.base import Method, no_adapters
from ftjax.methods.top_layers import STACK
from ftjax.nn.layers import span


def labels(variables: Any, cfg: Any) -> Any:
    """Groups by depth below the head; what comes after the stack moves with the head."""
    rows = max(span(path, 1)[1] for path in tree.flatten(variables) if path.startswith(STACK))

    def of(path: str, _: Any) -> str:
        if not path.startswith("params/"):
            return tree.FREEZE
        if re.match("params/(embed|relative|conv|encoder)/", path):
            return f"depth_{rows + 1}"
        return f"depth_{rows - span(path, rows)[0]}" if path.startswith(STACK) else "head"

    return tree.map_paths(of, variables)


METHOD = Method(
    init=no_adapters,
    labels=labels,
    merge=lambda params, adapters, model: params,
    cuts=lambda cfg, rows: tuple(range(1, rows)),
    paper="Howard & Ruder 2018 (ULMFiT)",
)
