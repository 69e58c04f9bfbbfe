"""Packing, padding and its side change neither losses nor gradients nor hidden states, with an adapter acting."""

import jax
import numpy as np
import pytest

from ftjax.methods.base import place
from ftjax.methods.lora import LoRA
from ftjax.objectives.lm import causal_lm


@pytest.fixture(scope="module")
def step(make, shape, randomised):
    """(batch) -> sums, gradients, hidden states; compiled once, for all layouts have one shape."""
    made, f32 = make(shape, scan_unroll=1), np.float32
    like = jax.ShapeDtypeStruct
    heads = made.cfg.num_heads * made.cfg.head_dim
    lora = LoRA(like((2, 16, 3), f32), like((2, 3, heads), f32), like((2, 3), f32), None)
    variables = {"params": made.params, "adapters": place({"layers/attn/q": randomised(lora)}, "lora")}
    objective = causal_lm(made.model, chunk=16)

    def loss(variables, batch):
        sums = objective.loss(variables, batch, None)
        return sums.loss, sums

    def run(batch):
        (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(variables, batch)
        out = made.model.apply(
            variables, batch["input_ids"], segment_ids=batch["segment_ids"], position_ids=batch["position_ids"],
            method="hidden",
        )  # fmt: skip
        return sums, grads, out.last_hidden

    return jax.jit(run)


LAYOUTS = {  # rows of example numbers, side
    "left": ([[0], [1], [2], [3]], "left"),
    "other rows": ([[3], [1], [0], [2]], "right"),
    "packed": ([[0, 1], [2, 3], [], []], "right"),
    "packed left": ([[], [3, 0], [], [2, 1]], "left"),
    "one row": ([[], [2, 0, 3, 1], [], []], "right"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_changes_nothing(step, examples, lay, close, layout):
    some, (rows, side) = examples(6, 3, 7, 4), LAYOUTS[layout]
    plain, where = lay([[example] for example in some], 20)
    batch, places = lay([[some[i] for i in row] for row in rows], 20, side)
    sums, grads, hidden = step(batch)
    sums_plain, grads_plain, hidden_plain = step(plain)
    order = [i for row in rows for i in row]
    for i, place_ in zip(order, places):
        np.testing.assert_allclose(hidden[place_], hidden_plain[where[i]], rtol=1e-4, atol=1e-5)
    assert sums.weight == sums_plain.weight == sum((e.labels != -100).sum() for e in some)
    close(sums, sums_plain)
    close(grads, grads_plain, rtol=1e-4, atol=2e-5)


def test_a_mask_is_the_segments_of_one_example(make, shape):
    made, ids = make(shape, num_layers=1), np.arange(14).reshape(2, 7)
    mask = np.array([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
    positions = np.array([[0, 0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 3, 3, 3]])
    apply, variables = jax.jit(made.model.apply), {"params": made.params}
    a = jax.device_get(apply(variables, ids, mask))
    b = jax.device_get(apply(variables, ids, segment_ids=mask, position_ids=positions))
    np.testing.assert_array_equal(a.logits[mask == 1], b.logits[mask == 1])
    assert a.hidden_states is None and a.attentions is None and a.cache is None
