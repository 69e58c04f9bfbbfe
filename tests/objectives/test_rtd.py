"""ELECTRA: the generator, its samples, and the model that finds them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sklearn.metrics
import torch

from ftjax import tree
from ftjax.errors import UserError
from ftjax.models.transformer import Transformer
from ftjax.objectives import rtd
from ftjax.objectives.rtd import detection, generator_params, replaced_tokens, with_generator

B, T = 3, 8
SLOTS, CHOSEN = np.array([[1, 5], [0, 2], [6, 3]]), np.array([[1, 1], [1, 0], [0, 0]], bool)
SAMPLES = np.array([[7, 8], [9, 3], [2, 1]])


@pytest.fixture(scope="module")
def pair(theirs, make):
    """(torch's discriminator, ours, the generator, variables of both)."""
    torch_model, model, variables = theirs("ElectraForPreTraining", embedding_size=10)
    cfg = make("bert").cfg.replace(
        hidden_size=8, num_heads=1, num_kv_heads=1, ffn_size=12, embed_size=10, num_layers=1, max_positions=32
    )
    generator = Transformer(cfg)
    params = with_generator(variables["params"], generator, jax.random.key(0))
    return torch_model, model, generator, {"params": params, "adapters": {}}


@pytest.fixture
def batch(full):
    batch = full(B, T)[1]
    batch["segment_ids"] = (np.arange(T) < np.array([[8], [5], [7]])).astype(np.int32)
    return {name: jnp.asarray(x) for name, x in batch.items()}


@pytest.fixture
def fixed(monkeypatch):
    """Fixes which tokens of rows that are not empty are chosen; fixed(samples) also what the generator writes."""

    def mask(key, ids, segments):
        chosen = CHOSEN & (segments != 0).any(1, keepdims=True)
        return ids, jnp.asarray(SLOTS), jnp.where(chosen, jnp.take_along_axis(ids, SLOTS, 1), -100)

    monkeypatch.setattr(rtd, "masking", lambda *args, **kwargs: mask)

    def write(samples):
        nll = jnp.float32(2.5)
        monkeypatch.setattr(rtd, "_sampled", lambda *args: (nll, jnp.asarray(samples)))

    return write


@functools.cache
def programs(model, generator):
    """Detection, and the generator's samples and logits, compiled once for all tests."""
    own = lambda params: {"params": generator_params(params)}  # noqa: E731
    return (
        jax.jit(lambda *args: detection(model, *args, None)),
        jax.jit(lambda params, *args: rtd._sampled(generator, own(params), *args), static_argnums=4),
        jax.jit(lambda params, hidden: generator.apply(own(params), hidden, method="logits")),
    )


def build(pair, **options):
    return replaced_tokens(pair[1], pair[2], mask_id=4, special_ids=(), **options)


@pytest.fixture(scope="module")
def run(pair):
    """run(variables, weight, batch, key) -> the loss and its gradient."""
    loss = lambda v, weight, batch, key: build(pair, weight=weight, rate=0.5).loss(v, batch, key).loss  # noqa: E731
    return jax.jit(jax.value_and_grad(loss))


def test_detection_is_that_of_transformers(pair, batch):
    torch_model, model, generator, variables = pair
    fake = np.random.default_rng(0).random((B, T)) < 0.3
    real = np.asarray(batch["segment_ids"]) != 0
    with torch.no_grad():
        out = torch_model(
            torch.tensor(np.asarray(batch["input_ids"])).long(), attention_mask=torch.tensor(real).long(),
            labels=torch.tensor(fake).long(),
        )  # fmt: skip
    each, right = jax.device_get(programs(model, generator)[0](variables, batch, fake))
    np.testing.assert_allclose(each.sum() / real.sum(), out.loss, rtol=1e-5)
    np.testing.assert_array_equal(right, real & ((out.logits.numpy() > 0) == fake))
    assert not each[~real].any()


def test_loss_by_hand(pair, batch, fixed):
    """A sample that is the original token is no fake; a row counts as its chosen tokens do."""
    _, model, generator, variables = pair
    samples = SAMPLES.copy()
    samples[0, 0] = batch["input_ids"][0, 1]
    fixed(samples)
    sums = jax.device_get(jax.jit(build(pair).loss)(variables, batch, None))
    shown = np.asarray(batch["input_ids"]).copy()
    shown[0, 5], shown[1, 0] = 8, 9
    fake = shown != np.asarray(batch["input_ids"])
    each, right = jax.device_get(programs(model, generator)[0](variables, batch | {"input_ids": shown}, fake))
    means = each.sum(1) / [8, 5, 7]
    np.testing.assert_allclose(sums.loss, 2.5 + 50 * means @ [2, 1, 0], rtol=1e-5)
    assert sums.weight == 3 and fake.sum() == 2
    assert sums.metrics["replaced"] == (2, 20) and sums.metrics["accuracy"] == (right.sum(), 20)
    assert sums.metrics["generator_nll"] == (2.5, 3)
    real = np.asarray(batch["segment_ids"]) != 0
    guess = np.where(right, fake, ~fake)[real].astype(int)
    theirs = sklearn.metrics.precision_recall_fscore_support(fake[real], guess, average="binary", zero_division=0)
    for name, value in zip(("precision", "recall", "f1"), theirs):
        total, count = sums.metrics[name]
        np.testing.assert_allclose(total / max(count, 1), value, rtol=1e-5)


@pytest.mark.parametrize("score", [-9.0, 9.0])
def test_a_detector_that_says_one_thing(pair, batch, fixed, monkeypatch, score):
    fixed(SAMPLES.copy())
    monkeypatch.setattr(rtd, "scores", lambda model, variables, hidden, key: jnp.full(hidden.shape[:2], score))
    metrics = jax.device_get(jax.jit(build(pair).loss)(pair[3], batch, None).metrics)
    names = ("precision", "recall", "f1", "replaced")
    values = {name: float(metrics[name][0] / max(metrics[name][1], 1)) for name in names}
    share = values["replaced"] if score > 0 else 0
    assert share > 0 or score < 0
    assert values["precision"] == pytest.approx(share) and values["recall"] == float(score > 0)
    assert values["f1"] == pytest.approx(2 * share / (1 + share))


def test_rows_add_up(pair, batch, fixed, monkeypatch):
    fixed(SAMPLES)
    monkeypatch.setattr(rtd, "_sampled", lambda g, v, h, y, key, chunk: (3.0 * (y >= 0).sum(), jnp.asarray(SAMPLES)))
    loss = jax.jit(build(pair).loss)
    whole, parts = loss(pair[3], batch, None), []
    for row in range(B):
        alone = (np.arange(B) == row)[:, None]
        parts.append(loss(pair[3], batch | {"segment_ids": np.where(alone, batch["segment_ids"], 0)}, None))
    jax.tree.map(lambda x, *rest: np.testing.assert_allclose(x, sum(rest), rtol=1e-5), whole, *parts)


@pytest.mark.parametrize("chunk", [2, 6, 100])
def test_samples_and_their_nll(pair, chunk):
    _, model, generator, variables = pair
    _, sampled, logits = programs(model, generator)
    hidden = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    labels = np.array([[3, 9, -100, 4, 1], [-100, 2, 2, 0, 49]])
    nll, samples = jax.device_get(sampled(variables["params"], hidden, labels, jax.random.key(0), chunk))
    log_p = scipy.special.log_softmax(logits(variables["params"], hidden), -1)
    picked = np.take_along_axis(log_p, np.maximum(labels, 0)[..., None], -1)[..., 0]
    np.testing.assert_allclose(nll, -np.where(labels >= 0, picked, 0).sum(), rtol=1e-5)
    assert samples.shape == labels.shape and (samples >= 0).all() and (samples < 50).all()
    assert len(np.unique(samples)) > 5  # places do not share their draw
    _, whole = sampled(variables["params"], hidden, labels, jax.random.key(0), 100)
    np.testing.assert_array_equal(samples, whole)


def test_samples_follow_the_softmax(pair):
    _, model, generator, variables = pair
    _, sampled, logits = programs(model, generator)
    params = tree.map_paths(
        lambda path, x: np.asarray(x) * 8 if path == "embed/tokens/embedding" else x, variables["params"]
    )
    h = np.tile(np.random.default_rng(1).standard_normal(8).astype(np.float32), (4, 1000, 1))
    _, samples = sampled(params, h, np.full((4, 1000), -100), jax.random.key(0), 1000)
    p = scipy.special.softmax(logits(params, h[:2, :5])[0, 0])
    times = np.bincount(np.asarray(samples).ravel(), minlength=50)
    assert p.max() > 0.05
    np.testing.assert_allclose(times / 4000, p, atol=4.5 * np.sqrt(p.max() / 4000))


def test_no_gradient_through_the_samples(pair, batch, run):
    """The generator's own parameters learn from its words alone, the shared tables from both sides."""
    found = {weight: run(pair[3], weight, batch, jax.random.key(1))[1] for weight in (0.0, 50.0)}
    grads = {weight: grad["params"] for weight, grad in jax.device_get(found).items()}
    own, found = tree.flatten(grads[0.0]["generator"]), tree.flatten(grads[50.0]["generator"])
    for path, g in own.items():
        np.testing.assert_allclose(found[path], g, rtol=1e-5, atol=1e-6, err_msg=path)
        assert "embed/t" in path or "bias" in path or g.any(), path
    for name in ("tokens", "positions"):
        a, b = (grads[w]["embed"][name]["embedding"] for w in (0.0, 50.0))
        assert a.any() and not np.allclose(a, b)
    assert not grads[0.0]["classifier"]["kernel"].any()
    assert grads[50.0]["classifier"]["kernel"].any()


def test_the_generator_has_no_tables_of_its_own(pair):
    _, _, generator, variables = pair
    params = variables["params"]
    assert not {"tokens", "positions"} & set(params["generator"]["embed"])
    whole = generator_params(params)
    assert whole["embed"]["tokens"] is params["embed"]["tokens"]
    assert set(tree.flatten(whole)) == set(tree.flatten(jax.eval_shape(lambda: generator.init(
        jax.random.key(0), jnp.zeros((1, 1), int)))["params"]))  # fmt: skip
    again = with_generator({"embed": params["embed"]}, generator, jax.random.key(0))["generator"]
    jax.tree.map(np.testing.assert_array_equal, again, params["generator"])


def test_85_of_100_are_masked(pair, monkeypatch):
    seen = {}
    monkeypatch.setattr(rtd, "masking", lambda *args, **shares: seen.update(shares))
    build(pair)
    assert seen == {"masked": 0.85, "random": 0.0}


def test_draws_are_of_the_key_and_evaluation_repeats(pair, batch, run):
    a, again, b = (run(pair[3], 50.0, batch, jax.random.key(seed))[0] for seed in (1, 1, 2))
    assert a == again != b
    loss = jax.jit(build(pair, rate=0.5).loss)
    assert loss(pair[3], batch, None).loss == loss(pair[3], batch, None).loss


def test_empty_rows_give_zero(pair, batch, run):
    empty = batch | {"segment_ids": np.zeros((B, T), np.int32)}
    value, grads = jax.device_get(run(pair[3], 50.0, empty, jax.random.key(0)))  # evaluation: test_rows_add_up
    assert value == 0 and all(not g.any() for g in jax.tree.leaves(grads))


def test_pairs_that_do_not_fit(pair):
    _, model, generator, _ = pair
    with pytest.raises(UserError, match="got 'mlm' and 'mlm'"):
        replaced_tokens(generator, generator, mask_id=4, special_ids=())
    wide = Transformer(generator.cfg.replace(embed_size=12))
    with pytest.raises(UserError, match="embed_width must be 10, is 12"):
        replaced_tokens(model, wide, mask_id=4, special_ids=())
