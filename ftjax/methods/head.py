"""Head-only training (the linear probe): the body is a fixed feature extractor."""

import jax

from ftjax.methods.base import Method, no_adapters
from ftjax.tree import FREEZE

METHOD = Method(
    init=no_adapters,
    labels=lambda variables, cfg: jax.tree.map(lambda _: FREEZE, variables),  # the task's head is always trained
    merge=lambda params, adapters, model: params,
    paper="linear probe",
)
