"""BitFit: the bias terms alone train (Ben Zaken et al. 2021, https://arxiv.org/abs/2106.10199).

Trainable parameters: all biases, those of the norms included; with `norms`, the norms' scales as well.
"""

from typing import Any

from ftjax import tree
from ftjax.errors import UserError
from ftjax.methods.base import Context, Method, no_adapters


def init(ctx: Context, cfg: Any, key: Any) -> dict:
    """No adapters; UserError on a model without biases."""
    if not any(path.endswith("/bias") for path in tree.flatten(ctx.params["layers"])):
        raise UserError("method.name='bitfit': this model's layers have no biases; take another method")
    return no_adapters(ctx, cfg, key)


def labels(variables: Any, cfg: Any) -> Any:
    """`bias`, and `norm` for the norms' scales where they train."""
    scale = [(r"^params/.*norm/scale$", "norm")] if cfg.norms else []
    return tree.label(variables, [(r"^params/.*/bias$", "bias"), *scale, ("", tree.FREEZE)])


METHOD = Method(init=init, labels=labels, merge=lambda params, adapters, model: params, paper="Ben Zaken et al. 2021")
