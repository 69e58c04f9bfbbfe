"""A method on a model with a task, small."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import method as configs
from ftjax import methods, tree
from ftjax.data.around import Around
from ftjax.models.transformer import keys_values, sites
from ftjax.objectives.classification import classification
from ftjax.objectives.lm import causal_lm

CASES = {  # a name and fields for each kind of each method: all of it small
    "full": ("full", {}),
    "head": ("head", {}),
    "top_layers": ("top_layers", dict(count=1)),
    "gradual": ("gradual", {}),
    "bitfit": ("bitfit", dict(norms=True)),
    "lora": ("lora", dict(rank=2, alpha=6.0, targets=("all_linear",))),
    "lora qkv": ("lora", dict(rank=2, targets=("qkv", "embed"))),
    "lora of a layer": ("lora", dict(rank=2, layers=(1,), rank_pattern="q:3")),
    "dora": ("lora", dict(rank=2, dora=True, targets=("all_linear",))),
    "dora qkv": ("lora", dict(rank=2, dora=True, targets=("qkv",))),
    "pissa": ("lora", dict(rank=2, pissa=True, targets=("all_linear",))),
    "ia3": ("ia3", {}),
    "ia3 of peft": ("ia3", dict(definition="peft", layers=(0,))),
    "houlsby": ("adapter", dict(size=3)),
    "lin": ("adapter", dict(kind="lin", size=3)),
    "pfeiffer": ("adapter", dict(kind="pfeiffer", size=3)),
    "prompt": ("prompt", dict(length=3)),
    "prefix": ("prefix", dict(length=3, hidden=5)),
    "prefix of peft": ("prefix", dict(length=3, definition="peft")),
    "p_tuning": ("p_tuning", dict(template="{1}{text}ab{2}")),
    "p_tuning of peft": ("p_tuning", dict(definition="peft", template="{3}{text}", hidden=4)),
    "llama_adapter": ("llama_adapter", dict(length=3)),
    "llama_adapter of peft": ("llama_adapter", dict(length=3, count=1, definition="peft")),
    "prefix+lora+ia3": ("prefix+lora+ia3", {"prefix.length": 3, "lora.rank": 2, "lora.layers": (1,)}),
    "lora+ia3 of peft": ("ia3+lora", {"lora.rank": 2, "ia3.definition": "peft"}),
    "lora+gradual": ("lora+gradual", {"lora.rank": 2, "lora.dropout": 0.0}),
    "llama_adapter+top_layers": ("llama_adapter+top_layers", {"llama_adapter.count": 2, "top_layers.count": 1}),
}
SHALLOW = {  # on one layer, which is less to compile; what tells layers apart, and one case of each kind, has two
    "full", "head", "bitfit", "lora", "lora qkv", "dora", "pissa", "ia3", "lora+ia3 of peft", "houlsby", "lin",
    "prompt", "prefix", "p_tuning", "p_tuning of peft", "llama_adapter",
}  # fmt: skip
LENGTH = 20  # of every batch in these tests: what JAX has compiled for one, it runs for all
INAPPLICABLE = {("bitfit", "llama")}  # no biases


def context_of(made, classes):
    """What a method is told; a word's ids are its letters' places in the alphabet."""
    spell = lambda text: [ord(c) - ord("a") + 1 if c.isalpha() else 0 for c in text]  # noqa: E731
    look = functools.partial(keys_values, made.model, made.params)
    return methods.Context(made.cfg, made.params, sites(made.model), look, spell, 0, classes)


def around_of(template, context):
    """The template's pieces as ids, for texts without special tokens."""
    if template is None:
        return None
    ids = lambda pieces: [i for p in pieces for i in ([p] if isinstance(p, int) else context.encode(p))]  # noqa: E731
    return Around(tuple(ids(template.before)), tuple(ids(template.after)), False, frozenset(), frozenset())


def wrapped(example, around):
    """An example with the pieces around the part before its first label."""
    if around is None:
        return example
    start, end = around.edges(example.tokens, example.labels)
    at = [start] * len(around.before) + [end] * len(around.after)
    new = [*around.before, *around.after]
    return type(example)(np.insert(example.tokens, at, new), np.insert(example.labels, at, -100))


class Tuned(NamedTuple):
    made: Any
    context: methods.Context
    around: Any
    method: methods.Method
    cfg: Any
    variables: dict
    labels: Any
    loss: Any  # (variables, batch, key) -> Sums, adapters in trained form
    batch: dict
    logits: Any  # (variables, batch) -> logits, adapters in trained form
    descend: Any  # (train, frozen, batch) -> the trainable leaves after a step of gradient descent, Sums


@pytest.fixture(scope="session")
def tune(make, examples, lay):
    """tune(method, shape, task, **fields of the method) -> Tuned, at step 0: on two layers, of a `SHALLOW` case without
    fields of its own on one (and an encoder of two)."""

    @functools.cache
    def build(case, shape, task="classification", classes=("no", "maybe", "yes"), **fields):
        if (case, shape) in INAPPLICABLE:
            pytest.skip(f"{shape} has nothing for {case}")
        sizes = {"head": "classification"} if task == "classification" else {}
        if case in SHALLOW and not fields:
            sizes["num_layers"] = 1
            if shape == "t5":
                sizes["encoder"] = make(shape).cfg.encoder.replace(num_layers=2)
        made = make(shape, **sizes)
        name, small = CASES.get(case, (case.strip(), {}))
        method, cfg = methods.get(name), configs.get(name)
        cfg.update_from_flattened_dict(small | fields)
        context = context_of(made, classes)
        adapters = method.init(context, cfg, jax.random.key(1))
        variables = methods.variables(method, cfg, made.params, adapters, made.cfg.rows)
        around = around_of(method.template(cfg, made.cfg), context)
        batch, _ = lay([[wrapped(e, around)] for e in examples(6, 3, 4)], LENGTH)
        if task == "classification":
            objective = classification(made.model)
            batch = {name: batch[name] for name in ("input_ids", "segment_ids", "position_ids")}
            batch["labels"] = jnp.array([2, 0, 1])
        else:
            objective = causal_lm(made.model)

        def loss(variables, batch, key):
            expanded = method.expand(variables["adapters"], variables["params"])
            return objective.loss({**variables, "adapters": expanded}, batch, key)

        @jax.jit
        def logits(variables, batch):
            expanded = method.expand(variables["adapters"], variables["params"])
            inputs = {name: x for name, x in batch.items() if not name.startswith("label")}
            return made.model.apply({**variables, "adapters": expanded}, **inputs).logits

        @jax.jit  # eagerly, every inner jit of a gradient would be a program of its own, and new each time
        def descend(train, frozen, batch):
            def total(train):
                sums = loss(tree.join(train, frozen), batch, jax.random.key(0))
                return sums.loss / sums.weight, sums

            grads, sums = jax.grad(total, has_aux=True)(train)
            return jax.tree.map(lambda x, g: x - g, train, grads), sums

        labels = methods.labels(method, variables, cfg, made.cfg)
        return Tuned(made, context, around, method, cfg, variables, labels, loss, batch, logits, descend)

    return build
