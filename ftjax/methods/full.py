"""Full fine-tuning: every parameter of the base trains."""

import jax

from ftjax.methods.base import Method, no_adapters

METHOD = Method(
    init=no_adapters,
    labels=lambda variables, cfg: jax.tree.map(lambda _: "backbone", variables),
    merge=lambda params, adapters: params,
    paper="Devlin et al. 2018",
)
