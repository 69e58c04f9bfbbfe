"""A method on a model with a task, small."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from configs import method as configs
from ftjax import methods
from ftjax.models.transformer import sites
from ftjax.objectives.classification import classification
from ftjax.objectives.lm import causal_lm

SMALL = {"lora": dict(rank=2, alpha=6.0, targets=("all_linear",))}


class Tuned(NamedTuple):
    made: Any
    method: methods.Method
    cfg: Any
    variables: dict
    labels: Any
    loss: Any  # (variables, batch, key) -> Sums, adapters in trained form
    batch: dict


@pytest.fixture(scope="session")
def tune(make, examples, lay):
    """tune(method, shape, task, **fields of the method) -> Tuned, at step 0."""

    def build(name, shape, task="classification", **fields):
        made = make(shape, head=task if task == "classification" else make(shape).cfg.head)
        method, cfg = methods.get(name), configs.get(name)
        cfg.update(SMALL.get(name, {}) | fields)
        context = methods.Context(made.params, sites(made.model), made.cfg.num_layers)
        adapters = method.init(context, cfg, jax.random.key(1))
        variables = {"params": made.params, "adapters": adapters}
        batch, _ = lay([[e] for e in examples(6, 3, 4)], 8)
        if task == "classification":
            objective = classification(made.model)
            batch = {name: batch[name] for name in ("input_ids", "segment_ids", "position_ids")}
            batch["labels"] = jnp.array([2, 0, 1])
        else:
            objective = causal_lm(made.model)

        def loss(variables, batch, key):
            expanded = method.expand(variables["adapters"], variables["params"])
            return objective.loss({**variables, "adapters": expanded}, batch, key)

        return Tuned(made, method, cfg, variables, methods.labels(method, variables, cfg), loss, batch)

    return build
