import copy
import functools
import re
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
import transformers as hf

import ftjax
from configs import method as configs
from ftjax import methods, tree
from ftjax.errors import UserError
from ftjax.methods.lora import LoRA, LoRAEmbedding
from ftjax.models.transformer import sites
from ftjax.train.step import init_state, make_step
from tests.methods.conftest import context_of

WRONG = {
    "a target that matches nothing": (dict(targets=("q", "kv")), "'kv' matches no site; there are .*layers/attn/q"),
    "part of a path": (dict(targets=("^attn/q",)), "'\\^attn/q' matches no site"),
    "part of a name": (dict(targets=("tn/q",)), "matches no site"),
    "a pattern that is none": (dict(targets=("attn/(q",)), "method.targets"),
    "no target": (dict(targets=()), "targets is empty"),
    "a rank over the smaller side": (dict(rank=17, targets=("up",)), "method.rank=17: layers/ffn/up is 16 x 24"),
    "no rank": (dict(rank=0), "method.rank=0"),
    "all dropped": (dict(dropout=1.0), "method.dropout=1"),
    "a dropout of nothing": (dict(dropout=0.1, targets=("embed",)), "method.dropout=0.1: the embedding's LoRA has no"),
    "a dropout beside pissa": (dict(dropout=0.1, pissa=True), "method.dropout and method.pissa exclude each other"),
    "pissa of the embedding": (dict(pissa=True, targets=("embed",)), "method.pissa: the embedding takes .* or dora"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_user_can_get_wrong(tune, case):
    fields, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        tune("lora", "gpt2", **fields)


TARGETS = {
    ("q",): {"layers/attn/q"},
    ("attn/(q|v)",): {"layers/attn/q", "layers/attn/v"},
    ("attention",): {f"layers/attn/{x}" for x in "qkvo"},
    ("mlp",): {"layers/ffn/up", "layers/ffn/gate", "layers/ffn/down"},
    ("all_linear",): {f"layers/attn/{x}" for x in "qkvo"} | {f"layers/ffn/{x}" for x in ("up", "gate", "down")},
    ("v", "^layers/ffn/down"): {"layers/attn/v", "layers/ffn/down"},
}


@pytest.mark.parametrize("targets", TARGETS)
def test_targets_and_shapes(tune, targets):
    adapters = tree.flatten(tune("lora", "llama", targets=targets, rank=3).variables["adapters"])
    assert {path.rsplit("/", 2)[0] for path in adapters} == TARGETS[targets]
    if targets == ("q",):
        shapes = {path: x.shape for path, x in adapters.items()}
        assert shapes == {"layers/attn/q/lora/a": (2, 16, 3), "layers/attn/q/lora/b": (2, 3, 24),
                          "layers/attn/q/lora/scale": (2, 3)}  # fmt: skip


def test_init_is_the_papers(tune):
    lora = tune("lora", "gpt2", targets=("q",), rank=16, alpha=4.0).variables["adapters"]["layers"]["attn"]["q"]["lora"]
    assert not lora.b.any() and (lora.scale == 4 / 16).all()
    a = np.asarray(lora.a)
    assert np.abs(a).max() <= 16**-0.5 and abs(a.std() - 16**-0.5 / 3**0.5) < 0.02
    assert not np.array_equal(a[0], a[1])


def test_forward_by_hand(randomised):
    lora = randomised(LoRA(jnp.ones((5, 2)), jnp.ones((2, 3)), jnp.ones(2), None))
    x, kernel = np.random.default_rng(0).standard_normal((4, 5)), np.ones((5, 3))
    hand = x @ kernel + x @ lora.a @ np.diag(lora.scale) @ lora.b
    np.testing.assert_allclose(lora.linear(jnp.asarray(x), jnp.asarray(x @ kernel), kernel, None), hand, rtol=1e-5)
    np.testing.assert_allclose(x @ (kernel + lora.delta()), hand, rtol=1e-5)


def test_merge_is_in_fp32_and_keeps_the_kernels_dtype(tune, randomised):
    tuned = tune("lora", "gpt2", targets=("up",))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tuned.variables["params"])
    adapters = randomised(tuned.variables["adapters"])
    merged = tuned.method.merge(half, adapters, tuned.made.cfg)["layers"]["ffn"]["up"]["kernel"]
    delta = adapters["layers"]["ffn"]["up"]["lora"].delta()
    whole = (half["layers"]["ffn"]["up"]["kernel"].astype(jnp.float32) + delta).astype(jnp.bfloat16)
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_array_equal(merged, whole)


def test_a_tied_head_cannot_be_merged_an_untied_one_can(tune, randomised):
    tied, untied = (tune("lora", name, "lm", targets=("head",)) for name in ("gpt2", "llama"))
    with pytest.raises(UserError, match="LoRA at head: the embedding and the head are one matrix"):
        tied.method.merge(tied.variables["params"], tied.variables["adapters"], tied.made.cfg)
    adapters = randomised(untied.variables["adapters"])
    merged = untied.method.merge(untied.variables["params"], adapters, untied.made.cfg)
    live = untied.logits({**untied.variables, "adapters": adapters}, untied.batch)
    now = untied.logits({"params": merged, "adapters": {}}, untied.batch)
    np.testing.assert_allclose(now, live, rtol=1e-4, atol=1e-5)


def test_dropout_acts_on_the_input_of_a_in_training_alone(tune, randomised):
    tuned, plain = (tune("lora", "gpt2", "lm", targets=("q",), dropout=rate) for rate in (0.5, 0.0))
    adapters = randomised(plain.variables["adapters"])
    with_rate = tree.map_paths(
        lambda p, x: x if p.endswith("rate") else tree.flatten(adapters)[p], tuned.variables["adapters"]
    )
    run = jax.jit(tuned.loss)
    loss = lambda adapters, key: float(run({**tuned.variables, "adapters": adapters}, tuned.batch, key).loss)  # noqa: E731
    assert loss(with_rate, None) == loss(adapters, None)
    key = jax.random.key(0)
    assert loss(adapters, key) == loss(adapters, None) != loss(with_rate, key)
    assert not any(path.endswith("rate") for path, name in tree.flatten(tuned.labels).items() if name != tree.FREEZE)


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_pissa_at_full_rank_is_the_base(tune, shape):
    tuned = tune("lora", shape, pissa=True, rank=16, targets=("q", "up"), alpha=8.0)
    layers = tuned.variables["adapters"]["layers"]
    for site in ("attn/q", "ffn/up"):
        lora = tree.flatten(layers)
        a, b, scale = (lora[f"{site}/lora/{name}"] for name in ("a", "b", "scale"))
        kernel = tree.flatten(tuned.made.params)[f"layers/{site}/kernel"]
        np.testing.assert_allclose((a * scale[:, None]) @ b, kernel, rtol=1e-4, atol=1e-5)


def test_adam_sees_alpha_init_and_rates_only_in_one_combination(tune):
    """Schulman et al. 2025: under Adam whose epsilon counts for nothing, (alpha, init A, rate A, rate B) and
    (alpha / (p q), p init A, p rate A, q rate B) train alike; by powers of two, bit for bit."""

    start = tune("lora", "gpt2", "lm", rank=2)
    labels = tree.split(start.labels, start.labels)[0]

    def optimizer(p, q):
        adam = lambda rate: optax.chain(optax.scale_by_adam(eps=1e-30), optax.scale(-rate))  # noqa: E731
        rates = {"lora_a": p, "lora_b": q, "head": 1}
        return optax.multi_transform({name: adam(2**-6 * rate) for name, rate in rates.items()}, labels)

    @jax.jit
    def step(state, frozen, p, q):
        return make_step(start.loss, optimizer(p, q))(state, frozen, start.batch, jax.random.key(0))

    def trained(alpha, p, q):
        tuned = tune("lora", "gpt2", "lm", rank=2, alpha=alpha)
        times = lambda path, x: x * p if path.endswith("/lora/a") else x  # noqa: E731
        variables = {**tuned.variables, "adapters": tree.map_paths(times, tuned.variables["adapters"])}
        train, frozen = tree.split(variables, tuned.labels)
        state, losses = init_state(train, optimizer(p, q)), []
        for _ in range(3):
            state, metrics = step(state, frozen, float(p), float(q))
            losses.append(float(metrics["loss"]))
        return losses

    first = trained(8.0, 1, 1)
    assert first == trained(1.0, 2, 4) == trained(4.0, 4, 0.5)
    assert first != trained(8.0, 2, 1)


def test_dora_of_the_embedding_starts_at_the_base_and_trains_its_magnitude(tune, close):
    tuned = tune("lora", "llama", "lm", dora=True, targets=("embed",), rank=2)
    params, (lora,) = tuned.variables["params"], jax.tree.leaves(
        tuned.variables["adapters"], is_leaf=lambda x: isinstance(x, LoRAEmbedding)
    )  # fmt: skip
    np.testing.assert_allclose(lora.magnitude, np.linalg.norm(params["embed"]["tokens"]["embedding"], axis=0), 1e-6)
    base = tuned.loss({**tuned.variables, "adapters": {}}, tuned.batch, None)
    np.testing.assert_allclose(tuned.loss(tuned.variables, tuned.batch, None).loss, base.loss, rtol=1e-6)
    ids = tuned.batch["input_ids"]
    with pytest.raises(UserError, match="trained form"):
        tuned.made.model.apply(tuned.variables, ids)
    assert {name for name in jax.tree.leaves(tuned.labels) if name != tree.FREEZE} == {"lora_a", "lora_b", "lora_m"}


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_dora_of_the_embedding_merges_where_no_head_reads_it(tune, randomised, shape):
    tuned = tune("lora", shape, dora=True, targets=("embed", "q"), rank=2)  # a classifier on top
    adapters, params = randomised(tuned.variables["adapters"]), tuned.variables["params"]
    live = np.asarray(tuned.logits({"params": params, "adapters": adapters}, tuned.batch))
    merged, base = (
        np.asarray(tuned.logits({"params": each, "adapters": {}}, tuned.batch))
        for each in (tuned.method.merge(params, adapters, tuned.made.cfg), params)
    )
    np.testing.assert_allclose(merged, live, rtol=1e-4, atol=1e-5)
    assert np.abs(base - live).max() > 1e-2


@pytest.mark.parametrize(("shape", "fields"), [("gpt2", {}), ("bert", {"head": "pretraining", "pooler": "dense"})])
def test_an_embedding_that_a_head_reads_cannot_be_merged(make, shape, fields):
    """Nor where there is a classifier beside it."""
    made, method, cfg = make(shape, **fields), methods.get("lora"), configs.get("lora")
    cfg.update(targets=("embed",), dora=shape == "gpt2")
    adapters = method.init(context_of(made, ()), cfg, jax.random.key(0))
    with pytest.raises(UserError, match="LoRA at embed: the embedding and the head are one matrix"):
        method.merge(made.params, adapters, made.cfg)


class Pair(NamedTuple):
    """A GPT-2 with PEFT's DoRA of its embedding, random, and ours of the same numbers."""

    theirs: Any
    model: Any
    params: Any
    method: Any
    adapters: Any  # in trained form
    ids: np.ndarray


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    @functools.cache
    def make(head):
        sizes = dict(n_embd=16, n_layer=1, n_head=2, n_positions=16, vocab_size=40, bos_token_id=1, eos_token_id=2)
        torch.manual_seed(0)
        kind = {"lm": hf.GPT2LMHeadModel, "classification": hf.GPT2ForSequenceClassification}[head]
        base = kind(hf.GPT2Config(**sizes, pad_token_id=0, num_labels=3)).eval()
        for p in base.parameters():
            torch.nn.init.normal_(p, std=0.3)
        folder = tmp_path_factory.mktemp(head)
        base.save_pretrained(folder)
        options = dict(r=2, lora_alpha=6, use_dora=True, target_modules=["wte"], fan_in_fan_out=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, of tied weights
            theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**options)).eval()
        found = {}
        for name, p in theirs.named_parameters():
            if p.requires_grad:
                p.data = 0.3 * torch.randn_like(p) + 0.1
                found[re.sub(r".*(lora_\w+)\..*", r"\1", name)] = jnp.asarray(p.detach().numpy().T)
        model, params = ftjax.load(folder, scan_unroll=-1)
        cfg, method = configs.get("lora"), methods.get("lora")
        cfg.update(rank=2, alpha=6.0, dora=True, targets=("embed",))
        adapters = method.init(methods.Context(model.cfg, params, sites(model)), cfg, jax.random.key(0))
        mine = dict(a="lora_embedding_A", b="lora_embedding_B", magnitude="lora_magnitude_vector")
        mine = {name: found.pop(key) for name, key in mine.items()}
        assert not found
        adapters["embed"]["lora"] = adapters["embed"]["lora"].replace(**mine)
        return Pair(theirs, model, params, method, adapters, np.random.default_rng(1).integers(3, 40, (2, 8)))

    return make


def in_torch(pair, model):
    ids = torch.tensor(pair.ids)
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.mark.parametrize("head", ["lm", "classification"])
def test_dora_of_the_embedding_is_pefts(pair, head):
    """The logits and the gradients; of a tied head, which reads the table as it was in both."""
    pair = pair(head)

    def total(adapters):
        adapters = pair.method.expand(adapters, pair.params)
        logits = pair.model.apply({"params": pair.params, "adapters": adapters}, pair.ids).logits
        return jnp.sum(logits**2), logits

    grads, logits = jax.jit(jax.grad(total, has_aux=True))(pair.adapters)
    theirs = in_torch(pair, pair.theirs)
    pair.theirs.zero_grad()
    (theirs**2).sum().backward()
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(logits, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
    mine = {name: getattr(grads["embed"]["lora"], name) for name in ("a", "b", "magnitude")}
    for (name, g), key in zip(mine.items(), ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")):
        (other,) = (p.grad.numpy().T for n, p in pair.theirs.named_parameters() if key in n)
        np.testing.assert_allclose(g, other, rtol=0, atol=1e-4 * np.abs(other).max(), err_msg=name)


def test_merged_dora_of_the_embedding_is_pefts_where_no_head_reads_it(pair):
    pair = pair("classification")
    merged = pair.method.merge(pair.params, pair.adapters, pair.model.cfg)
    theirs = copy.deepcopy(pair.theirs).merge_and_unload()
    table = theirs.transformer.wte.weight.detach().numpy()
    np.testing.assert_allclose(merged["embed"]["tokens"]["embedding"], table, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "fields"), [("llama", {"embed_scale": 4.0}), ("t5", {"tied_head": False}), ("gpt2", {"head": "none"})]
)
def test_the_embedding_of_other_shapes_merges(make, randomised, shape, fields):
    """One that is scaled after the lookup, one that an encoder and a decoder look up, one without any head."""
    made, method, cfg = make(shape, **fields), methods.get("lora"), configs.get("lora")
    cfg.update(rank=2, targets=("embed",))
    adapters = randomised(method.init(context_of(made, ()), cfg, jax.random.key(0)))
    ids = jnp.asarray([[3, 9, 4, 1]])
    inputs = {"encoder_input_ids": ids + 1} if made.cfg.encoder else {}
    run = jax.jit(
        lambda params, adapters: made.model.apply({"params": params, "adapters": adapters}, ids, **inputs).last_hidden
    )
    live = run(made.params, method.expand(adapters, made.params))
    np.testing.assert_allclose(run(method.merge(made.params, adapters, made.cfg), {}), live, rtol=1e-4, atol=1e-5)
    assert np.abs(live - run(made.params, {})).max() > 1e-2
