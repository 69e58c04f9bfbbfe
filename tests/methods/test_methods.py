"""What holds for every method on every model shape."""

import re

import jax
import numpy as np
import optax
import pytest

from configs import method as configs
from ftjax import methods, tree
from ftjax.errors import UserError
from ftjax.models.transformer import sites
from ftjax.train.step import init_state
from tests.conftest import CONFIGS
from tests.methods.conftest import CASES

CHANGES_STEP_0 = ("prompt", "prefix", "p_tuning")  # methods that say so
NEAR = {"dora": 1e-6, "pissa": 1e-5, "houlsby": 0.1, "lin": 0.1, "pfeiffer": 0.1}  # not bit for bit: how near
NO_GRADIENT = r"attn/k/bias$"  # softmax does not see what is added to all keys alike
WAITS = r"/lora/a$|embed/lora/b$|/llama_adapter/prompts$"  # for B, A or the gate, which start at zero
LABELS = {"lora_a", "lora_b", "lora_m"}

method = pytest.mark.parametrize("method", CASES)
# A method is on every shape, its variants and compositions on one each, in turn.
ON_SHAPES = [(case, shape) for i, case in enumerate(CASES, 1) for n, shape in enumerate(CONFIGS)
             if case in (*methods.METHODS, "houlsby") or i % 3 == n]  # fmt: skip
PARTS = ("head", "top_layers", "gradual", "bitfit")  # each trains some of what "full" does: on one shape in turn
on_shapes = pytest.mark.parametrize(("method", "shape"), ON_SHAPES)


def logits(tuned, variables):
    adapters = tuned.method.expand(variables["adapters"], variables["params"])
    ids, segments = tuned.batch["input_ids"], tuned.batch["segment_ids"]
    return tuned.made.model.apply({**variables, "adapters": adapters}, ids, segments).logits


def unmergeable(method):
    return any(one in CASES[method][0] for one in ("prompt", "prefix", "p_tuning", "adapter"))


def test_every_method_has_a_config_of_its_name():
    assert set(methods.METHODS) == set(configs.METHODS) == set(configs.RATES)
    assert set(methods.METHODS) == {name for name, _ in CASES.values() if "+" not in name}


@on_shapes
def test_step_0_is_the_base_bit_for_bit(tune, shape, method):
    if method.startswith(CHANGES_STEP_0):
        pytest.skip("it says that it is not")
    tuned = tune(method, shape)
    base = logits(tuned, {**tuned.variables, "adapters": {}})
    near = NEAR.get(method.split()[0], 0.0)
    now = logits(tuned, tuned.variables)
    if near:
        np.testing.assert_allclose(now, base, rtol=0, atol=near)
    else:
        np.testing.assert_array_equal(now, base)


@pytest.mark.parametrize(
    ("method", "shape"),
    [(case, shape) for case, shape in ON_SHAPES if case not in PARTS or shape == [*CONFIGS][PARTS.index(case) % 3]],
)
def test_exactly_the_labelled_leaves_move(tune, shape, method):
    tuned = tune(method, shape)
    before = tree.flatten(jax.tree.map(np.array, tuned.variables))
    train, frozen = tree.split(tuned.variables, tuned.labels)
    wanted = {path for path, name in tree.flatten(tuned.labels).items() if name != tree.FREEZE}
    but = lambda pattern: {path for path in wanted if not re.search(pattern, path)}  # noqa: E731
    for waits in (WAITS, "$^"):  # at the second step none waits any more
        train, sums = tuned.descend(train, frozen, tuned.batch)
        assert np.isfinite(sums.loss)
        now = tree.flatten(tree.join(train, frozen))
        moved = {path for path, x in now.items() if not np.array_equal(x, before[path])}
        assert but(f"{NO_GRADIENT}|{waits}") <= moved <= wanted
        if but(NO_GRADIENT) <= moved:
            break
    else:
        raise AssertionError(but(NO_GRADIENT) - moved)
    if method in ("lora", "llama_adapter"):
        assert waits == "$^"


@method
def test_what_trains_shares_no_buffer_with_what_is_frozen(tune, method):
    """A train step is donated the one and keeps the other."""
    tuned = tune(method, "gpt2")
    train, frozen = (
        {x.unsafe_buffer_pointer() for x in jax.tree.leaves(part)} for part in tree.split(tuned.variables, tuned.labels)
    )
    assert not train & frozen


@method
def test_optimizer_leaves_are_the_trainable_leaves(tune, method):
    """That a step keeps their dtypes: test_precision.py."""
    tuned = tune(method, "gpt2")
    train, _ = tree.split(tuned.variables, tuned.labels)
    state = jax.eval_shape(lambda: init_state(train, optax.adam(1e-3)))
    moments = [x for x in jax.tree.leaves(state["opt"]) if x.ndim]
    assert sorted(x.shape for x in moments) == sorted(2 * [x.shape for x in jax.tree.leaves(train)])


@on_shapes
def test_merged_equals_unmerged(tune, shape, randomised, method):
    tuned = tune(method, shape)
    adapters = randomised(tuned.variables["adapters"])
    variables = {**tuned.variables, "adapters": adapters}
    if unmergeable(method):
        with pytest.raises(UserError, match="cannot merge"):
            tuned.method.merge(tuned.variables["params"], adapters, tuned.made.cfg)
        return
    merged = {"params": tuned.method.merge(tuned.variables["params"], adapters, tuned.made.cfg), "adapters": {}}
    np.testing.assert_allclose(logits(tuned, merged), logits(tuned, variables), rtol=1e-4, atol=1e-5)
    if adapters:
        assert np.abs(logits(tuned, merged) - logits(tuned, {**variables, "adapters": {}})).max() > 1e-2


@on_shapes
def test_a_head_that_the_task_adds_always_trains(tune, shape, method):
    labels = tree.flatten(tune(method, shape).labels)
    heads = {path for path in labels if "params/classifier" in path or "params/pooler" in path}
    assert heads and {labels[path] for path in heads} == {"head"}


def test_where_adapters_cut_the_stack_does_not_say_what_trains(make):
    """The top two of three layers, with adapters in one of them and in a lower one."""
    made, method, cfg = make("gpt2", num_layers=3), methods.get("lora+top_layers"), configs.get("lora+top_layers")
    cfg.update_from_flattened_dict({"lora.layers": (0, 2), "top_layers.count": 2})
    adapters = method.init(methods.Context(made.cfg, made.params, sites(made.model)), cfg, jax.random.key(0))
    labels = method.labels(methods.variables(method, cfg, made.params, adapters, 3), cfg)
    train = {path for path, label in tree.flatten(labels["params"]).items() if label == "backbone"}
    assert {path.split("/")[1] for path in train} == {"1:2", "2:3"}


def test_training_nothing_is_refused(tune):
    with pytest.raises(UserError, match="trains nothing"):
        tune("head", "gpt2", "lm")


def test_an_unknown_method_is_refused_with_what_there_is():
    with pytest.raises(UserError, match="'lorra' is unknown; there are full, head"):
        methods.get("lorra")
