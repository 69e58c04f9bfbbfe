"""Padding, packing, micro-batches, scanning and cached decoding change nothing, with every method active."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import method as configs
from ftjax import methods, tree
from ftjax.data.encoded import Encoded
from ftjax.data.loader import Loader
from ftjax.decode.loop import for_steps
from ftjax.errors import UserError
from ftjax.models.transformer import Transformer, abstract, empty_cache, sites
from ftjax.objectives.lm import causal_lm
from ftjax.train.build import with_expand
from ftjax.train.step import init_state, make_step
from tests.conftest import CONFIGS
from tests.methods.conftest import CASES, LENGTH, wrapped

ACTIVE = [case for case in CASES if case not in ("full", "head", "top_layers", "gradual", "bitfit")]
EVERYWHERE = ("lora qkv", "pfeiffer", "prompt", "prefix", "llama_adapter")  # on every shape, the others on one
TEXTS = (6, 3, 5)


def active(tuned, randomised):
    """Variables with every adapter far from its start, in site form."""
    adapters = randomised(tuned.variables["adapters"])
    expanded = tuned.method.expand(adapters, tuned.variables["params"])
    return {**tuned.variables, "adapters": expanded}


@pytest.mark.parametrize(
    ("case", "shape"),
    [(case, shape) for case in ACTIVE for shape in CONFIGS if shape == "gpt2" or case in EVERYWHERE],
)
def test_padding_and_packing_do_not_change_the_loss(tune, case, shape, randomised, examples, lay):
    tuned = tune(case, shape, "lm")
    variables, loss = active(tuned, randomised), causal_lm(tuned.made.model).loss
    texts = [wrapped(e, tuned.around) for e in examples(*TEXTS)]
    total = loss(variables, lay([[e] for e in texts], LENGTH)[0], None)
    for rows in ([[e] for e in texts], [texts[:2], texts[2:], []])[case not in EVERYWHERE :]:
        other = loss(variables, lay(rows, LENGTH, "left")[0], None)
        np.testing.assert_allclose(other.loss, total.loss, rtol=2e-5)
        assert other.weight == total.weight


@pytest.mark.parametrize(
    ("case", "shape"), list(zip([*EVERYWHERE, "p_tuning"], ["gpt2", "llama", "llama", "gpt2", "llama", "gpt2"]))
)
def test_prompts_laid_once_change_no_loss(tune, case, shape, randomised, examples):
    tuned = tune(case, shape, "lm")
    variables, outputs = active(tuned, randomised), jax.jit(causal_lm(tuned.made.model).outputs)
    long, short = examples(7, 6)
    ends = [e.tokens[-4:] for e in examples(8, 9, 10, 11, seed=1)]
    texts = [e._replace(tokens=np.r_[e.tokens[:-4], end], labels=np.r_[[-100] * (len(e.tokens) - 4), end])
             for e, end in zip((long, short, long, long), ends)]  # fmt: skip
    texts = [wrapped(e, tuned.around) for e in texts]
    tokens, labels = (np.concatenate([getattr(e, name) for e in texts]) for name in ("tokens", "labels"))
    encoded = Encoded("next", tokens, np.cumsum([0, *(len(e.tokens) for e in texts)]), labels, np.arange(4), 0)
    found = {}
    for shared in (1, 3):
        loader = Loader(encoded, "packed", 9, shuffle=False, row_length=48, shared_prompts=shared, prefetch=0)
        [batch] = loader
        order = np.argsort(batch["example"].ravel(), kind="stable")[-len(texts) * 4 :]
        found[shared] = np.asarray(outputs(variables, batch)["nll"]).ravel()[order]
    assert batch["segment_ids"].min() == -1
    np.testing.assert_allclose(found[3], found[1], rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["lora qkv", "prefix", "p_tuning"])
def test_gradients_do_not_see_padding_packing_or_micro_batches(tune, case, randomised, examples, lay, close):
    tuned = tune(case, "llama", "lm")
    adapters = randomised(tuned.variables["adapters"])
    train, frozen = tree.split({**tuned.variables, "adapters": adapters}, tuned.labels)
    texts = [wrapped(e, tuned.around) for e in examples(*TEXTS)]
    one = [[e] for e in texts]
    reference, _ = tuned.descend(train, frozen, lay(one, LENGTH)[0])
    for rows in (one, [texts[:2], texts[2:], []]):
        close(tuned.descend(train, frozen, lay(rows, LENGTH, "left")[0])[0], reference, 1e-4, 1e-5)
    tx = optax.sgd(1.0)
    step = jax.jit(make_step(tuned.loss, tx, micro_batches=3))
    state, _ = step(init_state(train, tx), frozen, lay(one, LENGTH)[0], jax.random.key(0))
    close(state["train"], reference, 1e-4, 1e-5)


@pytest.mark.parametrize("case", ["prefix+lora+ia3", "llama_adapter+top_layers"])
def test_scanned_unrolled_and_rematerialised_alike(tune, case, randomised, close):
    tuned = tune(case, "gpt2", "lm")
    adapters = randomised(tuned.variables["adapters"])
    train, frozen = tree.split({**tuned.variables, "adapters": adapters}, tuned.labels)

    def gradient(**options):
        objective = causal_lm(Transformer(tuned.made.cfg.replace(**options)))

        def loss(train):
            variables = tree.join(train, frozen)
            expanded = tuned.method.expand(variables["adapters"], variables["params"])
            return objective.loss({**variables, "adapters": expanded}, tuned.batch, jax.random.key(0)).loss

        return jax.jit(jax.grad(loss))(train)

    reference = gradient(scan_unroll=-1)
    close(gradient(scan_unroll=1), reference, 1e-4, 1e-5)
    close(gradient(scan_unroll=1, remat=True), reference, 1e-4, 1e-5)


DECODED = ["pfeiffer", "prompt", "llama_adapter of peft", "prefix+lora+ia3", "dora qkv"]


@pytest.mark.parametrize(("case", "name"), list(zip(DECODED, ["gpt2", "llama", "llama", "gpt2", "llama"])))
def test_cached_decoding_is_the_full_forward(tune, case, name, randomised):
    tuned = tune(case, name, "lm")
    model, variables = tuned.made.model, active(tuned, randomised)
    rng = np.random.default_rng(0)
    rows = [list(rng.integers(0, 50, n)) for n in (4, 2)]
    rows = [tuned.around.prompt(row) if tuned.around else row for row in rows]
    rest = rng.integers(0, 50, (2, 2))
    width = 12
    ids, mask = np.zeros((2, width), int), np.zeros((2, width), int)
    for r, row in enumerate(rows):
        ids[r, width - len(row) :], mask[r, width - len(row) :] = row, 1
    apply = jax.jit(functools.partial(model.apply, method="hidden"))
    whole = apply(variables, np.concatenate([ids, rest], 1), np.concatenate([mask, np.ones_like(rest)], 1)).last_hidden
    whole = np.asarray(whole)
    out = apply(variables, ids, mask, cache=empty_cache(model.cfg, 2, width + 2))
    np.testing.assert_allclose(
        np.asarray(out.last_hidden)[mask != 0], whole[:, :width][mask != 0], rtol=1e-4, atol=1e-5
    )
    for i, read in enumerate((variables, for_steps(model, variables, 1, few=True))):
        out = apply(read, rest[:, i : i + 1], cache=out.cache)  # which knows the positions
        np.testing.assert_allclose(np.asarray(out.last_hidden)[:, 0], whole[:, width + i], rtol=1e-4, atol=1e-5)


def test_memory_falls_as_more_is_frozen(make):
    """A compiled step's arguments and temporaries, at sizes where matrices are most of them."""
    sizes = dict(hidden_size=128, ffn_size=512, num_layers=4, head_dim=64, scan_unroll=1)
    model = make("gpt2", **sizes).model
    ints = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    batch = dict.fromkeys(("input_ids", "segment_ids", "position_ids", "label_positions", "labels"), ints)

    def peak(name, **fields):
        method, cfg, params = methods.get(name), configs.get(name), abstract(model)
        cfg.update(fields)
        context = methods.Context(model.cfg, params, sites(model))
        adapters = jax.eval_shape(lambda key: method.init(context, cfg, key), jax.random.key(0))
        cut = lambda params, adapters: methods.variables(method, cfg, params, adapters, 4)  # noqa: E731
        variables = jax.eval_shape(cut, params, adapters)
        train, frozen = tree.split(variables, methods.labels(method, variables, cfg, model.cfg))
        tx = optax.adam(1e-3)
        state = jax.eval_shape(lambda: init_state(jax.tree.map(lambda x: jnp.zeros(x.shape), train), tx))
        step = jax.jit(make_step(with_expand(causal_lm(model), method).loss, tx), donate_argnums=0)
        memory = step.lower(state, frozen, batch, jax.random.key(0)).compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.argument_size_in_bytes

    lora = peak("lora")
    assert lora < 0.75 * peak("top_layers") < 0.75 * peak("full")
    assert max(peak("lora", layers=(2,)), peak("llama_adapter", count=3)) < lora


def test_adapters_are_switched_and_mixed_without_compiling_anew(tune, randomised, close):
    tuned = tune("lora", "gpt2", "lm", rank=2)  # on two layers
    ids, segments = tuned.batch["input_ids"], tuned.batch["segment_ids"]
    traced = []

    @jax.jit
    def run(adapters):
        traced.append(adapters)
        return tuned.made.model.apply({**tuned.variables, "adapters": adapters}, ids, segments).logits

    each = [randomised(tuned.variables["adapters"], seed) for seed in (1, 2)]
    alone = [run(one) for one in each]
    assert len(traced) == 1
    index = [1, 0, 1]
    mixed = run(methods.batched(each, index))
    for row, n in enumerate(index):
        np.testing.assert_allclose(mixed[row], alone[n][row], rtol=1e-4, atol=1e-5)
    merged = tuned.made.params
    for one in each:
        merged = tuned.method.merge(merged, jax.tree.map(lambda x: x, one), tuned.made.cfg)
    both = methods.combine(each, [1.0, 1.0])
    expected = tuned.made.model.apply({"params": merged}, ids, segments).logits
    np.testing.assert_allclose(run(both), expected, rtol=1e-3, atol=1e-4)


def test_only_loras_have_a_weighted_sum(tune):
    ia3 = tune("ia3", "gpt2").variables["adapters"]
    for adapters in (ia3, {}):
        with pytest.raises(UserError, match="only LoRAs have a weighted sum"):
            methods.combine([adapters, adapters], [0.5, 0.5])


@pytest.mark.parametrize("case", ["ia3 of peft", "pfeiffer", "prompt", "prefix of peft", "llama_adapter of peft"])
def test_each_example_takes_its_own_adapter(tune, case, randomised):
    tuned = tune(case, "llama", "lm")
    ids, segments = tuned.batch["input_ids"], tuned.batch["segment_ids"]
    params = tuned.variables["params"]
    run = jax.jit(
        lambda adapters: tuned.made.model.apply({"params": params, "adapters": adapters}, ids, segments).logits
    )
    each = [tuned.method.expand(randomised(tuned.variables["adapters"], seed), params) for seed in (1, 2)]
    mixed, alone = np.asarray(run(methods.batched(each, [1, 0, 1]))), [np.asarray(run(one)) for one in each]
    for row, n in enumerate((1, 0, 1)):
        np.testing.assert_allclose(mixed[row], alone[n][row], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="index runs from 0 to 2, there are 2"):
        methods.batched(each, [0, 2])
