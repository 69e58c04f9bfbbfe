"""BERT's pre-training: the head with both parts, and its loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.numpy import load_file

import ftjax
from ftjax.errors import UserError
from ftjax.objectives import mlm
from ftjax.objectives.nsp import next_sentence

B, T = 3, 7


@pytest.fixture(scope="module")
def both(theirs):
    return theirs("BertForPreTraining")


@pytest.fixture
def pairs(full):
    """(torch's inputs, ours): rows of two texts."""
    ids, batch = full(B, T)
    types = np.broadcast_to((np.arange(T) >= 3).astype(np.int32), (B, T))
    return dict(input_ids=ids, token_type_ids=torch.tensor(types).long()), batch | {"token_type_ids": types}


@pytest.fixture
def masks(monkeypatch):
    """masks(slots, labels) fixes which words of rows that are not empty are predicted; nothing is shown otherwise than
    it is."""

    def fix(slots, labels):
        def fixed(key, ids, segments, **kwargs):
            return ids, jnp.asarray(slots), jnp.where((segments != 0).any(1, keepdims=True), labels, -100)

        monkeypatch.setattr(mlm, "mask_tokens", fixed)

    return fix


def test_logits_and_loss(both, pairs, masks):
    torch_model, model, variables = both
    inputs, batch = pairs
    slots, labels, next_labels = np.array([[1, 5], [0, 2], [6, 3]]), np.array([[7, 8], [9, 3], [2, 1]]), [0, 1, 1]
    whole = torch.full((B, T), -100)
    whole[np.arange(B)[:, None], slots] = torch.from_numpy(labels)
    with torch.no_grad():
        out = torch_model(**inputs, labels=whole, next_sentence_label=torch.tensor(next_labels))
    assert model.cfg.head == "pretraining"

    @jax.jit
    def both_logits(variables, batch):
        ours = model.apply(variables, batch["input_ids"], token_type_ids=batch["token_type_ids"])
        pooled = model.apply(variables, ours.last_hidden, batch["segment_ids"], method="pool")
        return ours.logits, model.apply(variables, pooled, method="classify")

    logits, relation = both_logits(variables, batch)
    np.testing.assert_allclose(logits, out.prediction_logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(relation, out.seq_relationship_logits, rtol=1e-4, atol=1e-5)

    masks(slots, labels)
    loss = jax.jit(next_sentence(model, mask_id=4, special_ids=()).loss)
    sums = jax.device_get(loss(variables, batch | {"labels": np.array(next_labels)}, None))
    np.testing.assert_allclose(sums.loss / sums.weight, out.loss, rtol=1e-5)
    hits = (out.seq_relationship_logits.argmax(1) == torch.tensor(next_labels)).sum().item()
    assert sums.weight == 6 and sums.metrics["next_accuracy"] == (hits, 3)
    nll = torch.nn.functional.cross_entropy(out.seq_relationship_logits, torch.tensor(next_labels), reduction="sum")
    np.testing.assert_allclose(sums.metrics["next_nll"][0], nll, rtol=1e-5)


def test_rows_add_up(both, pairs, masks):
    """Micro-batches and empty rows; each pair counts as its words do."""
    _, model, variables = both
    batch = pairs[1] | {"labels": np.array([0, 1, 1])}
    masks(np.array([[1, 5], [0, 2], [6, 3]]), np.array([[7, 8], [9, -100], [2, 1]]))
    loss = jax.jit(next_sentence(model, mask_id=4, special_ids=()).loss)
    parts, nll = [], []
    for row in (0, 1, 2):
        alone = np.arange(B) == row
        empty = {name: np.where(alone.reshape(-1, *[1] * (x.ndim - 1)), x, 0) for name, x in batch.items()}
        empty["labels"] = np.where(alone, batch["labels"], -100)
        parts.append(jax.device_get(loss(variables, empty, None)))
        nll.append([parts[-1].metrics[name][0] for name in ("nll", "next_nll")])
    whole = loss(variables, batch, None)
    jax.tree.map(lambda x, *rest: np.testing.assert_allclose(x, sum(rest), rtol=1e-5), whole, *parts)
    words, following = np.array(nll).T
    np.testing.assert_allclose(whole.loss, words.sum() + following @ [2, 1, 2], rtol=1e-5)


@pytest.fixture(scope="module")
def run(both):
    """run(variables, batch) -> the loss in training and its gradient."""
    loss = next_sentence(both[1], mask_id=4, special_ids=(0,)).loss
    return jax.jit(jax.value_and_grad(lambda v, batch: loss(v, batch, jax.random.key(0)).loss))


def test_empty_rows_give_zero(both, pairs, run):
    batch = {name: np.zeros((B, T), np.int32) for name in pairs[1]} | {"labels": np.full(B, -100)}
    value, grads = jax.device_get(run(both[2], batch))  # evaluation: test_rows_add_up
    assert value == 0 and all(not g.any() for g in jax.tree.leaves(grads))


def test_every_parameter_trains(both, pairs, run):
    grads = jax.device_get(run(both[2], pairs[1] | {"labels": np.array([0, 1, 1])})[1]["params"])
    for part in ("embed", "layers", "transform", "head", "pooler", "classifier"):
        assert (
            all(np.isfinite(g).all() for g in jax.tree.leaves(grads[part])) and jax.tree.leaves(grads[part])[-1].any()
        )


def test_export(both, tmp_path):
    torch_model, model, variables = both
    torch_model.save_pretrained(tmp_path / "theirs")
    ftjax.save(tmp_path / "ours", model, variables["params"])
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert set(before) == set(after) and all(before[k].tobytes() == after[k].tobytes() for k in before)
    assert hf.AutoConfig.from_pretrained(tmp_path / "ours").architectures == ["BertForPreTraining"]
    again, params = ftjax.load(tmp_path / "ours", scan_unroll=-1)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, params, variables["params"])


@pytest.mark.parametrize("head, parts", [
    ("mlm", {"transform", "head"}), ("none", set()), ("classification", {"pooler", "classifier"}),
])  # fmt: skip
def test_other_heads_of_such_a_file(both, tmp_path, head, parts):
    torch_model, _, variables = both
    torch_model.save_pretrained(tmp_path)
    params = ftjax.load(tmp_path, head=head, num_classes=3 if head == "classification" else 0)[1]
    assert set(params) == {"embed", "layers"} | parts
    for part in parts - {"classifier"}:
        jax.tree.map(np.testing.assert_array_equal, params[part], variables["params"][part])


def test_a_head_without_the_pair(make):
    with pytest.raises(UserError, match="needs head='pretraining', got head='mlm'"):
        next_sentence(make("bert").model, mask_id=4, special_ids=())
