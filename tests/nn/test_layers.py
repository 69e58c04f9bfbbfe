"""A stack whole or cut, scanned or not, gives the same values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftjax import tree
from ftjax.methods.base import place
from ftjax.methods.lora import LoRA
from ftjax.nn.layers import cut, run_layers, uncut

L = 5
BOUNDARIES = st.lists(st.integers(0, L), max_size=3)
STACK = {
    "w": np.linspace(0.5, 1.5, L * 3, dtype=np.float32).reshape(L, 3),
    "b": np.linspace(-1, 1, L, dtype=np.float32),
}
MORE = {"site": {"a": np.linspace(0.5, 1, L, dtype=np.float32)}}


def block(x, held, place, row, trees):
    """Something in which every row's place matters; adapters act where they are."""
    y = jnp.tanh(x * trees["params"]["w"] + trees["params"]["b"] + 0.01 * row)
    if trees["adapters"]:
        y = y + trees["adapters"]["site"]["a"] * x
    return y, held, y.sum()


def loss(params, adapters, **options):
    x, _, sums = run_layers(block, {"params": params, "adapters": adapters}, jnp.ones(3), rows=L, **options)
    return jnp.sum(x**2), sums


whole_loss = jax.jit(loss)


@given(BOUNDARIES)
def test_uncut_inverts_cut(boundaries):
    pieces = cut(STACK, L, boundaries)
    whole = uncut(pieces)
    assert all(map(np.array_equal, jax.tree.leaves(whole), jax.tree.leaves(STACK)))
    assert (set(boundaries) <= {0, L}) == (pieces is STACK)


def test_a_cut_outside_the_stack_is_refused():
    with pytest.raises(ValueError, match="outside a stack of 5"):
        cut(STACK, L, [6])


@functools.partial(jax.jit, static_argnums=range(2, 6))
def gradient(params, adapters, mine, theirs, unroll, remat):
    """((loss, sums), gradients put together again) of the stacks cut at `mine` and `theirs`."""
    grad = jax.value_and_grad(functools.partial(loss, unroll=unroll, remat=remat), argnums=(0, 1), has_aux=True)
    value, pieces = grad(cut(params, L, mine), cut(adapters, L, theirs))
    return value, [uncut(p) for p in pieces]


@settings(max_examples=8)
@given(BOUNDARIES, BOUNDARIES, st.sampled_from([-1, 1, 2, L]), st.booleans())
def test_cut_stacks_give_the_values_and_gradients_of_the_whole_one(mine, theirs, unroll, remat):
    (value, sums), grads = gradient(STACK, MORE, (), (), -1, False)
    (other, others), pieces = gradient(STACK, MORE, tuple(mine), tuple(theirs), unroll, remat)
    np.testing.assert_allclose(other, value, rtol=1e-6)
    np.testing.assert_allclose(others, sums, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(pieces), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@settings(max_examples=5)
@given(st.integers(0, L - 1), st.integers(1, L), st.sampled_from([-1, 1]))
def test_adapters_of_some_rows_act_there_alone(start, size, unroll):
    rows = slice(start, min(start + size, L))
    some = {f"{rows.start}:{rows.stop}": jax.tree.map(lambda x: x[rows], MORE)}
    masked = jax.tree.map(lambda x: np.where((np.arange(L) >= rows.start) & (np.arange(L) < rows.stop), x, 0), MORE)
    found = jax.jit(functools.partial(loss, unroll=unroll))(STACK, some)[0]
    np.testing.assert_allclose(found, whole_loss(STACK, masked)[0], rtol=1e-6)


LAYERS = {"gpt2": 3, "llama": 2, "bert": 2}  # of three two at a time leave one


@pytest.fixture(scope="module")
def reference(make, lora):
    made = {}

    def get(name):
        if name not in made:
            made[name] = forward(make(name, num_layers=LAYERS[name]), lora(LAYERS[name]))
        return made[name]

    return get


@pytest.fixture(scope="module")
def lora(randomised):
    """lora(layers) -> adapters of so many."""

    def get(n):
        like = LoRA(*(jax.ShapeDtypeStruct((n, *size), np.float32) for size in ((16, 2), (2, 24), (2,))), None)
        return place({"layers/ffn/up": randomised(like)}, "lora")

    return get


def forward(made, adapters):
    """(hidden, gradients of something of it)."""
    ids = np.random.default_rng(0).integers(0, 50, (2, 6))

    def f(variables):
        out = made.model.apply(variables, ids, training=True, rngs={"dropout": jax.random.key(0)}, method="hidden")
        return jnp.sum(jnp.sin(3 * out.last_hidden)), out.last_hidden

    (_, hidden), grads = jax.jit(jax.value_and_grad(f, has_aux=True))({"params": made.params, "adapters": adapters})
    return hidden, grads


MODES = [("gpt2", 1, False), ("gpt2", 2, False), ("gpt2", -1, True), ("llama", 1, True), ("bert", 1, True)]


@pytest.mark.parametrize(("name", "unroll", "remat"), MODES)
def test_a_model_scanned_unrolled_and_rematerialised(make, lora, reference, close, name, unroll, remat):
    made = make(name, num_layers=LAYERS[name], scan_unroll=unroll, remat=remat)
    close(forward(made, lora(LAYERS[name])), reference(name), rtol=1e-4, atol=5e-5)


def test_a_model_with_parameters_and_adapters_cut_differently(make, lora, reference, close):
    made, adapters = make("gpt2", num_layers=3, scan_unroll=1), lora(3)
    layers, held = jax.device_get((made.params["layers"], adapters["layers"]))
    params = {**made.params, "layers": cut(layers, 3, [2])}
    hidden, grads = forward(made._replace(params=params), {"layers": cut(held, 3, [1])})
    assert any("/layers/0:2/" in path for path in tree.flatten(grads))
    whole = {name: {**grads[name], "layers": jax.jit(uncut)(grads[name]["layers"])} for name in grads}
    close((hidden, whole), reference("gpt2"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("boundaries", [(), (2,)])
@pytest.mark.parametrize("unroll", [1, -1])
def test_what_is_held_is_changed_row_by_row(boundaries, unroll):
    """As one stack that each row finds its place in, and as a list of the rows' own."""
    params = cut(STACK, L, boundaries)

    def add(x, held, place, row, trees):
        mine = held if place is None else held[place]
        new = mine + x.sum() * (row + 1)
        return x * trees["params"]["w"][0], new if place is None else held.at[place].set(new), new

    @jax.jit
    def run(start):
        options = dict(rows=L, unroll=unroll)
        _, stacked, seen = run_layers(add, {"params": params}, jnp.ones(3), held=start, **options)
        _, listed, _ = run_layers(add, {"params": params}, jnp.ones(3), held=list(start), **options)
        return stacked, jnp.stack(listed), seen

    by_hand, x = [], 3.0
    for i, w in enumerate(np.asarray(STACK["w"])[:, 0]):
        by_hand.append(i + x * (i + 1))
        x *= w
    for found in run(np.arange(L, dtype=np.float32)):
        np.testing.assert_allclose(found, by_hand, rtol=1e-5)
