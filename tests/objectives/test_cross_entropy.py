from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ftjax import tree
from ftjax.methods.base import place
from ftjax.methods.lora import LoRA
from ftjax.objectives.cross_entropy import chunked, cross_entropy, places_at_a_time
from ftjax.objectives.lm import causal_lm, vocabulary_loss

B, M, D, V = 2, 7, 4, 11
RNG = np.random.default_rng(0)
HIDDEN = RNG.standard_normal((B, M, D)).astype(np.float32)
VARIABLES = {"w": RNG.standard_normal((D, V)).astype(np.float32), "b": RNG.standard_normal(V).astype(np.float32)}
NOTHING = dict.fromkeys(VARIABLES)
LABELS = arrays(np.int32, (B, M), elements=st.integers(-1, V - 1)).map(lambda y: np.where(y < 0, -100, y))


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


by_position = jax.jit(cross_entropy, static_argnums=(2, 3))


@given(LABELS, st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from([0.0, 0.01]))
def test_smoothing_and_z_loss_by_hand(labels, eps, z):
    logits = HIDDEN @ VARIABLES["w"]
    loss, nll = by_position(logits, labels, eps, z)
    log_p = log_softmax(logits)
    log_z = np.log(np.exp(logits.astype(float)).sum(-1))
    picked = -np.take_along_axis(log_p, np.maximum(labels, 0)[..., None], -1)[..., 0]
    hand = (1 - eps) * picked + eps * -log_p.mean(-1) + z * log_z**2
    np.testing.assert_allclose(nll, np.where(labels == -100, 0, picked), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loss, np.where(labels == -100, 0, hand), rtol=1e-4, atol=1e-5)


def of_chunk(variables, h, y, number=None):
    logits = h @ variables["w"] + variables["b"]
    loss, nll = cross_entropy(logits, y, 0.1, 0.01)
    return loss.sum(), {"nll": nll.sum()}


@jax.jit
def plain(train, frozen, hidden, labels):
    f = lambda t, h: of_chunk(tree.join(t, frozen), h, labels)  # noqa: E731
    return jax.value_and_grad(f, argnums=(0, 1), has_aux=True)(train, hidden)


@partial(jax.jit, static_argnums=4)
def by_chunks(train, frozen, hidden, labels, chunk):
    f = lambda t, h: chunked(of_chunk, tree.join(t, frozen), h, labels, chunk)  # noqa: E731
    return jax.value_and_grad(f, argnums=(0, 1), has_aux=True)(train, hidden)


@settings(max_examples=12)
@given(LABELS, st.integers(1, M + 1).map(lambda m: m * B), st.sampled_from(["w", "b", "wb"]))
def test_chunked_equals_whole_in_value_and_gradients(labels, chunk, trains):
    train = {name: x if name in trains else None for name, x in VARIABLES.items()}
    frozen = {name: None if name in trains else x for name, x in VARIABLES.items()}
    ours = by_chunks(train, frozen, HIDDEN, labels, chunk)
    for a, b in zip(*map(jax.tree.leaves, (ours, plain(train, frozen, HIDDEN, labels))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 5, 14, 99])
def test_chunks_without_a_gradient(chunk):
    labels = RNG.integers(0, V, (B, M))
    value, sums = jax.jit(lambda *args: chunked(of_chunk, *args, chunk))(VARIABLES, HIDDEN, labels)
    whole, its_sums = jax.jit(of_chunk)(VARIABLES, HIDDEN, labels)
    np.testing.assert_allclose((value, sums["nll"]), (whole, its_sums["nll"]), rtol=1e-5)


def test_the_gradient_scales_with_what_comes_after():
    labels = jnp.asarray(RNG.integers(0, V, (B, M)))
    grad = jax.jit(jax.grad(lambda h, c: (c * chunked(of_chunk, VARIABLES, h, labels, 4)[0]) ** 2))
    whole = jax.jit(jax.grad(lambda h, c: (c * of_chunk(VARIABLES, h, labels)[0]) ** 2))
    np.testing.assert_allclose(grad(HIDDEN, 0.1), whole(HIDDEN, 0.1), rtol=1e-4)


def test_all_masked_is_zero_and_not_nan():
    (value, sums), grads = jax.device_get(by_chunks(VARIABLES, NOTHING, HIDDEN, np.full((B, M), -100), 4))
    assert value == sums["nll"] == 0
    assert all(not g.any() for g in jax.tree.leaves(grads))


def every_shape(jaxpr):
    """Shapes of all values of a program, inner ones included."""
    for eqn in jaxpr.eqns:
        yield from (v.aval.shape for v in eqn.outvars)
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from every_shape(inner)


def head_gradient(made, trains_head, chunk, length=64):
    """(gradient of the vocabulary loss in hidden states and what trains, its arguments) on labels [2, length]."""
    hidden = jnp.ones((2, length, made.cfg.hidden_size))
    labels = jnp.ones((2, length), jnp.int32)
    labels_of = tree.label(made.params, [("head" if trains_head else "final_norm", "x"), ("", tree.FREEZE)])
    train, frozen = tree.split(made.params, labels_of)

    def loss(train, hidden):
        variables = {"params": tree.join(train, frozen)}
        return vocabulary_loss(made.model, variables, hidden, labels, None, 0.0, 0.0, chunk).loss

    return jax.grad(loss, argnums=(0, 1)), (train, hidden)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_neither_logits_nor_their_gradient_exist_whole(make, name):
    f, args = head_gradient(make(name), name == "llama", chunk=16)
    sizes = [int(np.prod(shape)) for shape in every_shape(jax.make_jaxpr(f)(*args).jaxpr)]
    assert 16 * 50 in sizes and max(sizes) < 2 * 64 * 50
    whole, args = head_gradient(make(name), name == "llama", chunk=128)
    assert max(int(np.prod(s)) for s in every_shape(jax.make_jaxpr(whole)(*args).jaxpr)) == 2 * 64 * 50


def flops(f, args):
    return jax.jit(f).lower(*args).compile().cost_analysis()["flops"]


def test_a_frozen_head_costs_no_gradient(make):
    product = 2 * 2 * 64 * 16 * 50
    made = make("llama")
    saved = flops(*head_gradient(made, True, 128)) - flops(*head_gradient(made, False, 128))
    assert 0.95 * product < saved < 1.25 * product  # one product with the vocabulary, and the sum over chunks


def test_the_sentence_reduction_divides_by_examples(make, examples, lay):
    made, some = make("gpt2", num_layers=1), examples(5, 3, 6)
    variables = {"params": made.params, "adapters": {}}
    token, sentence = (causal_lm(made.model, reduction=name) for name in ("token", "sentence"))
    both = jax.jit(lambda batch: (token.loss(variables, batch, None), sentence.loss(variables, batch, None)))
    for layout in ([some[:2], some[2:], []], [[e] for e in some]):
        by_token, by_sentence = both(lay(layout, 14)[0])
        assert by_sentence.weight == 3
        assert by_token.weight == sum((e.labels != -100).sum() for e in some)
        assert by_token.loss == by_sentence.loss
        assert by_sentence.metrics["nll"][1] == by_token.weight  # metrics stay per token
        np.testing.assert_allclose(by_token.metrics["nll"][0], by_token.loss, rtol=1e-6)


def test_an_adapter_on_the_head_trains_through_chunks(make, close, randomised):
    made = make("gpt2")
    lora = randomised(LoRA(jnp.ones((16, 2)), jnp.ones((2, 50)), jnp.ones(2)))
    hidden, labels = jnp.asarray(RNG.standard_normal((2, 7, 16)), jnp.float32), jnp.asarray(RNG.integers(0, 50, (2, 7)))

    @partial(jax.jit, static_argnums=1)
    def grad(adapters, chunk, key):
        def loss(adapters):
            variables = {"params": made.params, "adapters": adapters}
            return vocabulary_loss(made.model, variables, hidden, labels, key, 0.0, 0.0, chunk).loss

        return jax.grad(loss)(adapters)

    adapters, key = place({"head": lora.replace(rate=jnp.float32(0.5))}, "lora"), jax.random.key(1)
    close(grad(adapters, 6, key), grad(adapters, 100, key), rtol=1e-4)  # each place drops alike in both
    whole, plain = (tree.flatten(grad(adapters, 100, k))["head/lora/b"] for k in (key, None))
    assert not np.allclose(whole, plain, rtol=0.05)


@pytest.mark.parametrize("size", [1, 2])
def test_chunks_know_their_places(size):
    numbered = lambda variables, h, y, first: (jnp.float32(10) ** first, {})  # noqa: E731
    total = jax.jit(lambda h, y: chunked(numbered, VARIABLES, h, y, size * B)[0])(HIDDEN, np.zeros((B, M), int))
    assert total == sum(10**n for n in range(0, M, size))


def test_a_chunk_is_of_a_device():
    """Of 8 devices, 4 have rows of their own."""
    assert places_at_a_time(2048, 256) == 8
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))):
        assert places_at_a_time(2048, 256) == 32
        assert places_at_a_time(2048, 255) == 8  # which are whole on each
