"""Full fine-tuning: every parameter of the base trains."""

from ftjax import tree
from ftjax.methods.base import Method, no_adapters

METHOD = Method(
    init=no_adapters,
    labels=lambda variables, cfg: tree.label(variables, [("^params/", "backbone"), ("", tree.FREEZE)]),
    merge=lambda params, adapters, model: params,
    paper="Devlin et al. 2018",
)
