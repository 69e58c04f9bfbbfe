"""The top k layers (and the task's head) train, as in the FT-Top2 rows of Li & Liang 2021 and Hu et al. 2021.

Below them nothing runs backward. Trainable parameters: those of k layers; the norm after the last layer is not of it.
"""

from typing import Any

from ftjax import tree
from ftjax.methods.base import Context, Method, no_adapters, positive
from ftjax.nn.layers import span

STACK = "params/layers/"  # of an encoder-decoder, the decoder's: the encoder is below it


def init(ctx: Context, cfg: Any, key: Any) -> dict:
    """No adapters; UserError where `cfg.count` is not 1..L."""
    positive("count", cfg.count, ctx.cfg.rows)
    return no_adapters(ctx, cfg, key)


def labels(variables: Any, cfg: Any) -> Any:
    """`backbone` for the parameters of the stack's last rows."""
    rows = max(span(path, 0)[1] for path in tree.flatten(variables) if path.startswith(STACK))

    def of(path: str, _: Any) -> str:
        return "backbone" if path.startswith(STACK) and span(path, 0)[0] >= rows - cfg.count else tree.FREEZE

    return tree.map_paths(of, variables)


METHOD = Method(
    init=init,
    labels=labels,
    merge=lambda params, adapters, model: params,
    cuts=lambda cfg, rows: (rows - cfg.count,),
    paper="Li & Liang 2021 (FT-Top2)",
)
