"""The top k layers (and the task's head) train, as in the FT-Top2 rows of Li & Liang 2021 and Hu et al. 2021.

Below them nothing runs backward. Trainable parameters: those of k layers; the norm after the last layer is not of it.
"""

import re
from typing import Any

from ftjax import tree
from ftjax.methods.base import Context, Method, no_adapters, positive


def init(ctx: Context, cfg: Any, key: Any) -> dict:
    """No adapters; UserError where `cfg.count` is not 1..L."""
    positive("count", cfg.count, ctx.cfg.num_layers)
    return no_adapters(ctx, cfg, key)


def labels(variables: Any, cfg: Any) -> Any:
    """`backbone` for the parameters of the stack's last rows."""
    ends = [re.match(r"params/layers/(\d+):\d+/", path) for path in tree.flatten(variables)]
    first = max((int(m[1]) for m in ends if m), default=0)

    def of(path: str, _: Any) -> str:
        cut = re.match(r"params/layers/(?:(\d+):\d+/)?", path)
        return "backbone" if cut and int(cut[1] or 0) == first else tree.FREEZE

    return tree.map_paths(of, variables)


METHOD = Method(
    init=init,
    labels=labels,
    merge=lambda params, adapters: params,
    cuts=lambda cfg, rows: (rows - cfg.count,),
    paper="Li & Liang 2021 (FT-Top2)",
)
