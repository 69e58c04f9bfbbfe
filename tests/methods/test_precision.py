"""Computing in bf16, over parameters in fp32 or a frozen base in bf16: what trains, and its moments, stay fp32."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import method as configs
from ftjax import methods, tree
from ftjax.methods.ia3 import ScaledActivation, ScaledInput, ScaledOutput
from ftjax.methods.lora import LoRA
from ftjax.models.stack import Embeddings
from ftjax.models.transformer import Transformer
from ftjax.nn.attention import Attention
from ftjax.nn.block import FFN
from ftjax.nn.core import Linear, Norm
from ftjax.objectives.classification import classification
from ftjax.train.build import with_expand
from ftjax.train.step import init_state, make_step
from tests.methods.conftest import CASES, context_of

HALF = jnp.bfloat16
ELSEWHERE = [("lora qkv", "llama"), ("dora", "llama"), ("prefix", "llama"), ("llama_adapter", "llama"),
             ("ia3 of peft", "bert"), ("pfeiffer", "bert"), ("lin", "bert")]  # fmt: skip
STARTS = {  # from the base's own values
    "prompt vocab": ("prompt", dict(init="vocab", length=3)),
    "prompt classes": ("prompt", dict(init="classes", length=3)),
    "prefix words": ("prefix", dict(init="words", text="ab", length=2, definition="peft")),
    "prefix words, fitted": ("prefix", dict(init="words", text="ab", length=2, hidden=3)),
    "pissa": ("lora", dict(pissa=True, rank=2)),
    "dora": ("lora", dict(dora=True, rank=2, targets=("attention", "embed"))),
}
EVERYWHERE = [*((case, "gpt2") for case in CASES), *ELSEWHERE]
FP32 = [(case, "gpt2") for case in ("full", "dora", "p_tuning", "prefix+lora+ia3", "lora+gradual")]


def objective_of(tuned, dtype):
    """The classifier, computed in that dtype."""
    return with_expand(classification(Transformer(tuned.made.cfg.replace(dtype=dtype))), tuned.method)


def floats(values, dtype=jnp.floating):
    return {p: x.dtype for p, x in tree.flatten(values).items() if jnp.issubdtype(x.dtype, dtype)}


def halved(values):
    return jax.tree.map(lambda x: x.astype(HALF), values)


def with_half_base(tuned, adapters):
    """(trainable leaves, as the loop has them; the rest in bf16, but what belongs to the adapters)."""
    variables = {"params": halved(tuned.variables["params"]), "adapters": adapters}
    train, frozen = tree.split(variables, tuned.labels)
    return jax.tree.map(lambda x: x.astype(jnp.float32), train), frozen


@pytest.mark.parametrize(
    ("case", "shape", "base"), [(*one, "bfloat16") for one in EVERYWHERE] + [(*one, "float32") for one in FP32]
)
def test_what_trains_and_its_moments_stay_fp32(tune, case, shape, base):
    tuned = tune(case, shape)
    train, frozen = tree.split(tuned.variables, tuned.labels)
    if base == "bfloat16":
        train, frozen = with_half_base(tuned, tuned.variables["adapters"])
        assert case in ("full", "gradual", "lora+gradual") or HALF in floats(frozen).values()
    tx = optax.adam(1e-3)
    state, step = init_state(train, tx), make_step(objective_of(tuned, HALF).loss, tx)
    after, metrics = jax.eval_shape(step, state, frozen, tuned.batch, jax.random.key(0))
    kind = lambda values: jax.tree.map(lambda x: (x.shape, x.dtype), values)  # noqa: E731
    assert kind(after) == kind(state)
    assert set(floats([state, metrics["loss"]]).values()) == {np.dtype("float32")}


@pytest.mark.parametrize("case", ["llama_adapter+top_layers", "lora qkv", "dora", "houlsby", "prefix", "p_tuning"])
def test_loss_and_gradients_in_bf16_are_finite_and_near_fp32s(tune, case, randomised):
    """Near at a random point, where every part of an adapter counts; the gradients by their direction."""
    tuned = tune(case, "gpt2")
    adapters = randomised(tuned.variables["adapters"], scale=0.1)
    train, frozen = tree.split({**tuned.variables, "adapters": adapters}, tuned.labels)

    def direction_of(grads):
        flat = np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads)])
        return flat / np.linalg.norm(flat)

    def run(train, frozen):
        def total(train):
            sums = objective_of(tuned, HALF).loss(tree.join(train, frozen), tuned.batch, None)
            return sums.loss / sums.weight

        loss, grads = jax.jit(jax.value_and_grad(total))(train)
        return float(loss), direction_of(grads)

    after, sums = tuned.descend(train, frozen, tuned.batch)  # in fp32, compiled for other tests too
    loss = float(sums.loss) / float(sums.weight)
    grads = direction_of(jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), train, after))
    for other, direction in (run(train, frozen), run(*with_half_base(tuned, adapters))):
        assert np.isfinite(direction).all()
        assert loss != other == pytest.approx(loss, rel=0.03)
        assert grads @ direction > 0.98


@pytest.mark.parametrize(("case", "shape"), EVERYWHERE)
def test_no_hook_changes_the_compute_dtype(tune, case, shape):
    """What goes into and comes out of every module is bf16, with adapters in fp32 acting everywhere."""
    tuned = tune(case, shape)
    model, seen = Transformer(tuned.made.cfg.replace(dtype=HALF)), []

    def check(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(
            context.module, Linear | Norm | FFN | Attention | Embeddings
        ):
            first = out[0] if isinstance(out, tuple) else out
            outputs = [] if getattr(context.module, "out_dtype", None) else [first]
            inputs = [] if isinstance(context.module, Embeddings) else args[:1]
            seen.extend(
                (type(context.module).__name__, "/".join(context.module.path), x.dtype) for x in [*outputs, *inputs]
            )
        return out

    def run(variables):
        expanded = tuned.method.expand(variables["adapters"], variables["params"])
        with nn.intercept_methods(check):
            ids, segments = tuned.batch["input_ids"], tuned.batch["segment_ids"]
            return model.apply({**variables, "adapters": expanded}, ids, segments)

    out = jax.eval_shape(run, tuned.variables)
    assert len(seen) > 20
    assert [one for one in seen if one[-1] != HALF] == []
    assert (out.last_hidden.dtype, out.logits.dtype) == (HALF, jnp.float32)


def test_factors_near_one_act_in_bf16():
    """1.003, which in bf16 itself is 1."""
    x, scale = jnp.linspace(1, 2, 128).astype(HALF), jnp.full(128, 1.003)
    expected = (np.asarray(x, np.float32) * np.float32(1.003)).astype(HALF)
    assert (expected != x).mean() > 0.5
    one, zero = jnp.ones((1, 1), HALF), jnp.zeros((1, 128), HALF)
    for y in (
        ScaledOutput(scale).output(x, None),
        ScaledActivation(scale).activation(x, None),
        ScaledInput(scale).input(x, None),
        LoRA(x[None], jnp.eye(128), scale).linear(one, zero, None, None)[0],
    ):
        assert y.dtype == HALF
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("case", STARTS)
def test_adapters_that_start_from_a_bf16_base_are_fp32(make, case):
    name, fields = STARTS[case]
    made = make("gpt2", dtype=HALF)
    cfg = configs.get(name)
    cfg.update(fields)
    context = context_of(made._replace(params=halved(made.params)), ("no", "yes"))
    adapters = jax.eval_shape(functools.partial(methods.get(name).init, context, cfg), jax.random.key(0))
    assert set(floats(adapters).values()) == {np.dtype("float32")}
