import functools

import jax
import numpy as np
import pytest

from ftjax.objectives.classification import classification

SEGMENTS = {
    "right": np.array([[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0], [0] * 6]),
    "left": np.array([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1], [0] * 6]),
}
ENDS = {"right": [(0, 3), (0, 0)], "left": [(2, 5), (5, 5)]}


@functools.cache
def pool(model):
    return jax.jit(lambda params, h, s: model.apply({"params": params}, h, s, method="pool"))


@pytest.mark.parametrize("side", SEGMENTS)
@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_pooling(make, pooling, side):
    made = make("gpt2", head="classification", pooling=pooling)
    hidden = np.random.default_rng(0).standard_normal((3, 6, 16)).astype(np.float32)
    pooled = np.asarray(pool(made.model)(made.params, hidden, SEGMENTS[side]))
    for row, (first, last) in enumerate(ENDS[side]):
        part = {"first": hidden[row, first], "last": hidden[row, last], "mean": hidden[row, first : last + 1].mean(0)}
        np.testing.assert_allclose(pooled[row], part[pooling], rtol=1e-6, atol=1e-6)
    assert np.isfinite(pooled).all()


@pytest.mark.parametrize("name, pooling", [  # what is pooled and how does not know of each other
    ("gpt2", "first"), ("gpt2", "last"), ("gpt2", "mean"), ("llama", "last"), ("bert", "first"),
])  # fmt: skip
def test_padding_and_empty_rows_change_nothing(make, examples, lay, name, pooling):
    made = make(name, head="classification", pooling=pooling, num_layers=1)
    run, some = jax.jit(classification(made.model, label_smoothing=0.1).loss), examples(5, 3)
    variables = {"params": made.params, "adapters": {}}

    def loss(rows, labels, side):
        batch = lay(rows, 8, side)[0]
        del batch["label_positions"]
        return jax.device_get(run(variables, {**batch, "labels": np.array(labels)}, None))

    rows = [[e] for e in some]
    plain = loss([*rows, rows[0]], [0, 2, 0], "right")
    np.testing.assert_allclose(plain.weight, 3)
    for side in ("left", "right"):
        short = loss([*rows, []], [0, 2, -100], side)
        one = loss([rows[0], [], []], [0, -100, -100], side)
        np.testing.assert_allclose(short.loss + one.loss, plain.loss, rtol=1e-5)
        assert short.weight == 2 and short.metrics["accuracy"][1] == 2
    empty = loss([[], [], []], [-100] * 3, "right")
    assert empty.loss == 0 and empty.weight == 0


def test_the_loss_is_the_head_loss_of_the_features(make, shape, examples, lay):
    """One program, in which equal operations are one: equal bits."""
    made = make(shape, head="classification", classifier_dropout=0.5, num_layers=1)
    objective = classification(made.model)
    batch = lay([[e] for e in examples(5, 3)], 8)[0] | {"labels": np.array([1, 2])}
    del batch["label_positions"]

    @jax.jit
    def all_of(variables, batch, key):
        features = {"features": objective.features(variables, batch), "labels": batch["labels"]}
        losses = [
            (objective.loss(variables, batch, k).loss, objective.head.loss(variables, features, k).loss)
            for k in (None, key)
        ]
        logits = made.model.apply(variables, batch["input_ids"], batch["segment_ids"]).logits
        return losses, (objective.outputs(variables, batch)["logits"], logits)

    losses, (logits, expected) = all_of({"params": made.params, "adapters": {}}, batch, jax.random.key(0))
    for whole, split in losses:
        np.testing.assert_array_equal(whole, split)
    assert losses[0][0] != losses[1][0]
    np.testing.assert_array_equal(logits, expected)
