import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.optimizer import OPTIMIZERS
from ftjax import tree
from ftjax.errors import UserError
from ftjax.train.optimizer import make_optimizer, schedule

VALUES = {
    "a": {"kernel": jnp.linspace(-1, 1, 6).reshape(2, 3), "bias": jnp.linspace(1, 2, 3)},
    "b": {"kernel": jnp.linspace(0.5, 1, 3), "bias": jnp.ones(2)},
    "c": jnp.ones(2),
}
LABELS = {"a": {"kernel": "adapter", "bias": "adapter"}, "b": {"kernel": "head", "bias": "head"}, "c": tree.FREEZE}
GRADS = jax.tree.map(lambda x: 0.1 * x + 0.3, VALUES)


def split(values):
    return tree.split(values, LABELS)[0]


def apply(cfg, steps=1, grads=GRADS, **options):
    """Trainable leaves after some steps with the same gradient."""
    tx, _ = make_optimizer(cfg, split(LABELS), 10, 5)
    params, state = split(VALUES), None
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(split(grads), state, params)
        params = optax.apply_updates(params, updates)
    return tree.flatten(params)


RATES = {  # (fields, steps, steps per epoch): {step: rate}
    "constant": (dict(schedule="constant"), 10, 5, {0: 1, 9: 1}),
    "linear": (dict(schedule="linear"), 10, 5, {0: 1, 4: 0.6, 9: 0.1}),
    "warm-up steps": (dict(schedule="linear", warmup=4), 12, 5, {0: 0, 1: 0.25, 3: 0.75, 4: 1, 8: 0.5, 11: 0.125}),
    "warm-up share": (dict(schedule="linear", warmup=0.2), 10, 5, {0: 0, 1: 0.5, 2: 1, 6: 0.5}),
    "cosine": (dict(schedule="cosine"), 8, 5, {0: 1, 2: 0.5 + 0.5**1.5, 4: 0.5, 6: 0.5 - 0.5**1.5}),
    "cosine by epoch": (dict(schedule="cosine", schedule_by="epoch"), 10, 5, {0: 1, 4: 1, 5: 0.5, 9: 0.5}),
    "linear by epoch": (dict(schedule="linear", schedule_by="epoch"), 11, 5, {4: 1, 5: 2 / 3, 10: 1 / 3}),
    "slanted": (dict(schedule="slanted_triangular"), 100, 5, {0: 1 / 32, 5: 16.5 / 32, 10: 1, 55: 16.5 / 32}),
}


@pytest.mark.parametrize("case", RATES)
def test_schedules_by_hand(optimizer_config, case):
    fields, steps, per_epoch, rates = RATES[case]
    rate = schedule(optimizer_config(learning_rate=1e-5, **fields), steps, per_epoch)
    for step, value in rates.items():
        np.testing.assert_allclose(rate(step), 1e-5 * value, rtol=1e-5, atol=1e-12, err_msg=str(step))
        np.testing.assert_allclose(jax.jit(rate)(jnp.int32(step)), rate(step), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(schedule="cosin"), "'cosin' is unknown; there are constant, linear, cosine"),
        (dict(schedule_by="day"), "give step or epoch"),
        (dict(warmup=10), "leaves nothing of 10 steps"),
        (dict(schedule="slanted_triangular", warmup=2), "set optimizer.warmup=0"),
        (dict(name="lion"), "'lion' is unknown; there are adamw"),
        (dict(group_rates="haed:10"), "label 'haed'; there are adapter, head"),
        (dict(group_rates="head=10"), "write group:factor"),
        (dict(moment_dtype="fp32"), "optimizer.moment_dtype='fp32'"),
        (dict(learning_rate=-1e-3), r"optimizer.learning_rate=-0.001: give 0 or more"),
        (dict(clip=-1.0), r"optimizer.clip=-1.0: give 0 \(none\) or more"),
        (dict(clip=float("inf")), r"optimizer.clip=inf: give 0 \(none\)"),
        (dict(warmup=-0.1), "optimizer.warmup=-0.1: give 0 or more"),
        (dict(weight_decay=-0.1), "optimizer.weight_decay=-0.1: give 0 or more"),
        (dict(eps=0.0), "optimizer.eps=0.0: give a number above 0"),
        (dict(b1=1.5), "optimizer.b1=1.5: give 0 or more, below 1"),
        (dict(b2=float("nan")), "optimizer.b2=nan: give 0 or more, below 1"),
        (dict(layer_decay=0.0), "optimizer.layer_decay=0.0: give a factor above 0"),
        (dict(group_rates="head:-1"), "optimizer.group_rates='head:-1': give factors of 0 or more"),
        (dict(no_decay="(bias"), r"optimizer.no_decay='\(bias' is no regular expression"),
    ],
)
def test_what_a_user_can_get_wrong(optimizer_config, fields, message):
    cfg = optimizer_config()
    cfg.update(fields)
    with pytest.raises(UserError, match=message):
        make_optimizer(cfg, split(LABELS), 10, 5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_the_configs_moves_every_leaf_against_its_gradient(optimizer_config, name):
    after, before = apply(optimizer_config(name), steps=2), tree.flatten(split(VALUES))
    assert after.keys() == before.keys()
    assert all((after[path] < before[path]).all() for path in before)


def test_adam_with_and_without_bias_correction_by_hand(optimizer_config):
    g, p = (tree.flatten(split(x)) for x in (GRADS, VALUES))
    for correct in (True, False):
        after = apply(optimizer_config(learning_rate=0.1, bias_correction=correct), steps=2)
        for path in p:
            x, m, v = np.array(p[path]), 0.0, 0.0
            for t in (1, 2):
                m, v = 0.9 * m + 0.1 * g[path], 0.999 * v + 0.001 * g[path] ** 2
                by = (1 - 0.9**t, 1 - 0.999**t) if correct else (1, 1)
                x = x - 0.1 * (m / by[0]) / (np.sqrt(v / by[1]) + 1e-8)
            np.testing.assert_allclose(after[path], x, rtol=1e-5, atol=1e-5)


def test_group_rates_are_factors_on_the_rate(optimizer_config):
    before = tree.flatten(split(VALUES))
    plain, tenfold = (apply(optimizer_config("sgd", group_rates=rates)) for rates in ("", "head:10"))
    for path in before:
        factor = 10 if path.startswith("b") else 1
        np.testing.assert_allclose(before[path] - tenfold[path], factor * (before[path] - plain[path]), rtol=1e-3)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_leaves_biases_alone(optimizer_config, name):
    cfg = optimizer_config(name, learning_rate=0.1, weight_decay=0.5)
    after, before = apply(cfg, grads=jax.tree.map(jnp.zeros_like, GRADS)), tree.flatten(split(VALUES))
    for path in before:
        np.testing.assert_allclose(after[path], before[path] * (1 if path.endswith("bias") else 0.95), rtol=1e-5)


@pytest.mark.parametrize("clip", [0.01, 100.0])
def test_clipping_is_by_the_norm_of_what_trains(optimizer_config, clip):
    huge = {**GRADS, "c": jnp.full(2, 1e6)}  # frozen: must not count
    cfg = optimizer_config("sgd", learning_rate=1.0, clip=clip)
    moved = jax.tree.map(lambda a, b: a - b, apply(cfg, grads=huge), tree.flatten(split(VALUES)))
    norm = optax.tree.norm(split(GRADS))
    np.testing.assert_allclose(optax.tree.norm(moved), min(clip, norm), rtol=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_equal_multi_transform_with_set_to_zero_over_the_whole_tree(optimizer_config, name):
    cfg = optimizer_config(name, weight_decay=0.01, group_rates="head:3")
    tx, _ = make_optimizer(cfg, split(LABELS), 10, 5)
    parts = {}
    for group, factor in (("adapter", 1.0), ("head", 3.0)):
        only = optimizer_config(name, weight_decay=0.01, learning_rate=cfg.learning_rate * factor)
        parts[group] = make_optimizer(only, jax.tree.map(lambda _: "all", VALUES), 10, 5)[0]
    whole = optax.multi_transform({**parts, tree.FREEZE: optax.set_to_zero()}, LABELS)
    state, other = tx.init(split(VALUES)), whole.init(VALUES)
    for _ in range(2):
        mine, state = tx.update(split(GRADS), state, split(VALUES))
        theirs, other = whole.update(GRADS, other, VALUES)
        for path, x in tree.flatten(mine).items():
            np.testing.assert_allclose(x, tree.flatten(theirs)[path], rtol=1e-6, err_msg=path)
        assert not theirs["c"].any()


def test_rates_by_depth(optimizer_config):
    """Layer l of L is L - l below the head, whole and cut stacks alike; the embeddings and an encoder's layers, which
    may be more, are L + 1 below."""
    values = {
        "params": {
            "embed": {"tokens": jnp.zeros(2)},
            "layers": {"up": jnp.zeros((3, 2))},
            "classifier": {"kernel": jnp.zeros(2)},
            "encoder": {"layers": {"up": jnp.zeros((5, 2))}},
        },
        "adapters": {
            "layers": {"1:3": {"lora": jnp.zeros((2, 2))}},
            "embed": {"prompt": jnp.zeros(2)},
            "encoder": {"layers": {"lora": jnp.zeros((5, 2))}, "embed": {"prompt": jnp.zeros(2)}},
        },
    }
    cfg = optimizer_config("sgd", learning_rate=1.0, layer_decay=0.5, clip=0.0, schedule="constant")
    tx, _ = make_optimizer(cfg, jax.tree.map(lambda _: "all", values), 10, 5, rows=3)
    updates = tree.flatten(tx.update(jax.tree.map(jnp.ones_like, values), tx.init(values), values)[0])
    for path in ("params/embed/tokens", "params/encoder/layers/up", "adapters/encoder/layers/lora"):
        assert (updates[path] == -(0.5**4)).all()
    np.testing.assert_array_equal(updates["params/layers/up"][:, 0], [-(0.5**3), -(0.5**2), -0.5])
    np.testing.assert_array_equal(updates["adapters/layers/1:3/lora"][:, 0], [-(0.5**2), -0.5])
    for path in ("params/classifier/kernel", "adapters/embed/prompt", "adapters/encoder/embed/prompt"):
        assert (updates[path] == -1).all()


def test_gradual_unfreezing_starts_each_group_fresh_at_the_runs_own_rate(optimizer_config):
    """A group moves from its epoch on; its first step is Adam's first: the schedule's rate at that step."""
    labels = {"a": "head", "b": "depth_1", "c": "depth_2"}
    values = dict.fromkeys(labels, jnp.zeros(2))
    cfg = optimizer_config("adamw", learning_rate=0.1, schedule="linear", warmup=0.0, unfreeze_every=1.0, clip=0.0)
    tx, rate = make_optimizer(cfg, labels, 12, 3)
    state, moved = tx.init(values), []
    for step in range(8):
        updates, state = tx.update(jax.tree.map(lambda x, s=step: jnp.full_like(x, 1.0 + s), values), state, values)
        moved.append([float(updates[name][0]) for name in labels])
    for group, start in enumerate((0, 3, 6)):
        assert all(row[group] == 0 for row in moved[:start])
        np.testing.assert_allclose(moved[start][group], -rate(start), rtol=1e-5)
    with pytest.raises(UserError, match="unfreeze_every=1 is for method=gradual"):
        make_optimizer(cfg, LABELS, 12, 3)
    with pytest.raises(UserError, match="the last group would start at step 6 of 6; give less"):
        make_optimizer(cfg, labels, 6, 3)


def test_clipping_sees_only_the_groups_that_move(optimizer_config):
    labels, grads = {"a": "head", "b": "depth_1"}, {"a": jnp.full(4, 0.5), "b": jnp.full(4, 100.0)}
    cfg = optimizer_config("sgd", learning_rate=1.0, schedule="constant", momentum=0.0, unfreeze_every=1.0, clip=1.0)
    tx, _ = make_optimizer(cfg, labels, 12, 3)
    updates, _ = tx.update(grads, tx.init(grads), grads, grad_norm=jnp.float32(200.0))
    np.testing.assert_allclose(updates["a"], -0.5, rtol=1e-6)
    assert not updates["b"].any()
