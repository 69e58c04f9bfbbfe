"""Every method on an encoder-decoder: what holds on one stack holds on two that see each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax import tree
from ftjax.errors import UserError
from ftjax.models.transformer import empty_cache
from ftjax.objectives.lm import causal_lm
from tests.methods.conftest import LENGTH, wrapped
from tests.methods.test_methods import CHANGES_STEP_0, NEAR, NO_GRADIENT

APPLIES = ["full", "top_layers", "gradual", "lora", "dora", "ia3", "houlsby", "pfeiffer", "prompt", "prefix",
           "prefix of peft", "p_tuning", "llama_adapter", "prefix+lora+ia3"]  # fmt: skip
MERGES = ["lora", "dora", "ia3"]


def laid(tuned, examples, lay, side="right", rows=((0,), (1,), (2,))):
    """A batch whose encoder reads other texts than its decoder writes, a row's in the same order."""
    sources = [wrapped(e, tuned.around) for e in examples(5, 7, 3, seed=1)]
    batch, _ = lay([[examples(6, 3, 4)[i] for i in row] for row in rows], LENGTH, side)
    source, _ = lay([[sources[i] for i in row] for row in rows], LENGTH, side)
    names = ("input_ids", "segment_ids", "position_ids")
    return batch | {f"encoder_{name}": source[name] for name in names}


@pytest.fixture
def tuned(tune, examples, lay, case):
    made = tune(case, "t5", "lm")
    return made._replace(batch=laid(made, examples, lay))


@pytest.fixture(scope="module")
def base(tune, examples, lay):
    """base(tuned) -> the logits of the model itself, its stacks whole, of a batch without virtual tokens."""
    batch, found = laid(tune("full", "t5", "lm"), examples, lay), {}
    inputs = {name: x for name, x in batch.items() if not name.startswith("label")}

    def get(tuned):
        made, layers = tuned.made, tuned.made.cfg.num_layers
        if layers not in found:
            found[layers] = np.asarray(jax.jit(made.model.apply)({"params": made.params}, **inputs).logits)
        return found[layers]

    return get


@pytest.mark.parametrize("case", [case for case in APPLIES if not case.startswith(CHANGES_STEP_0)])
def test_step_0_is_the_base(tuned, base, case):
    now = tuned.logits(tuned.variables, tuned.batch)
    np.testing.assert_allclose(now, base(tuned), rtol=0, atol=10 * NEAR.get(case, 0.0))


@pytest.mark.parametrize("case", [case for case in APPLIES if case != "gradual"])  # as full
def test_exactly_the_labelled_leaves_move(tuned, randomised, case):
    """From a random point: LoRA's A and the like would wait a step for what starts at zero."""
    variables = {**tuned.variables, "adapters": randomised(tuned.variables["adapters"], scale=0.2)}
    before = tree.flatten(jax.tree.map(np.array, variables))
    train, frozen = tree.split(variables, tuned.labels)
    wanted = {path for path, name in tree.flatten(tuned.labels).items() if name != tree.FREEZE}
    train, _ = tuned.descend(train, frozen, tuned.batch)
    moved = {path for path, x in tree.flatten(tree.join(train, frozen)).items() if not np.array_equal(x, before[path])}
    still = {path for path in wanted - moved if not path.endswith(NO_GRADIENT)}
    assert moved <= wanted and not still


@pytest.mark.parametrize("case", MERGES)
def test_merged_equals_unmerged(tuned, base, randomised, case):
    adapters = randomised(tuned.variables["adapters"], scale=0.2)
    merged = {"params": tuned.method.merge(tuned.variables["params"], adapters, tuned.made.cfg), "adapters": {}}
    now = np.asarray(tuned.logits({**tuned.variables, "adapters": adapters}, tuned.batch))
    np.testing.assert_allclose(tuned.logits(merged, tuned.batch), now, rtol=1e-3, atol=1e-4)
    assert np.abs(now - base(tuned)).max() > 1e-2


@pytest.mark.parametrize("case", ["houlsby", "prefix", "llama_adapter"])
def test_what_cannot_merge(tuned, case):
    with pytest.raises(UserError, match="cannot merge"):
        tuned.method.merge(tuned.variables["params"], tuned.variables["adapters"], tuned.made.cfg)


@pytest.mark.parametrize("case", ["full", "houlsby", "prompt", "prefix"])
def test_padding_and_packing_do_not_change_the_loss(tuned, randomised, examples, lay, case):
    adapters = randomised(tuned.variables["adapters"])
    variables = {**tuned.variables, "adapters": tuned.method.expand(adapters, tuned.variables["params"])}
    loss = jax.jit(causal_lm(tuned.made.model).loss)
    total = loss(variables, tuned.batch, None)
    other = loss(variables, laid(tuned, examples, lay, "left", ((0, 1), (2,), ())), None)
    np.testing.assert_allclose(other.loss, total.loss, rtol=2e-5)
    assert other.weight == total.weight


@pytest.mark.parametrize("case", ["prefix", "llama_adapter"])
def test_cached_decoding_is_the_full_forward(tuned, randomised, case):
    model, adapters = tuned.made.model, randomised(tuned.variables["adapters"])
    variables = {**tuned.variables, "adapters": tuned.method.expand(adapters, tuned.variables["params"])}
    ids, rng = tuned.batch["input_ids"], np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, 50, (3, 4)))
    segments = jnp.minimum(tuned.batch["encoder_segment_ids"], 1)
    source = {"encoder_input_ids": tuned.batch["encoder_input_ids"], "encoder_segment_ids": segments}
    apply = jax.jit(functools.partial(model.apply, method="hidden"))
    whole = apply(variables, ids, **source).last_hidden
    encode = jax.jit(functools.partial(model.apply, method="encode"))
    memory = encode(variables, source["encoder_input_ids"], segments).last_hidden
    cache = empty_cache(model.cfg, 3, 4, LENGTH)
    out = apply(variables, ids[:, :2], encoder_hidden=memory, encoder_segment_ids=segments, cache=cache)
    np.testing.assert_allclose(out.last_hidden, whole[:, :2], rtol=1e-4, atol=1e-5)
    for i in (2, 3):
        at = jnp.full((3, 1), i)
        out = apply(variables, ids[:, i : i + 1], position_ids=at, cache=out.cache)
        np.testing.assert_allclose(out.last_hidden[:, 0], whole[:, i], rtol=1e-4, atol=1e-5)


def test_missing_and_needless_encoder_inputs(make):
    t5, gpt2 = make("t5"), make("gpt2")
    ids = jnp.ones((1, 3), jnp.int32)
    with pytest.raises(UserError, match="needs encoder_input_ids"):
        t5.model.apply({"params": t5.params}, ids)
    with pytest.raises(UserError, match="has no encoder"):
        gpt2.model.apply({"params": gpt2.params}, ids, encoder_input_ids=ids)
