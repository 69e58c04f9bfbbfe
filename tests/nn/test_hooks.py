"""Each hook of ftjax.nn.hooks: bit-identical where it does nothing, and doing what its line in the table says."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax import tree
from ftjax.errors import UserError
from ftjax.methods.base import place
from ftjax.methods.batched import batched
from ftjax.models.transformer import empty_cache, sites
from ftjax.nn.hooks import HOOKS

L, IDS = 2, np.random.default_rng(0).integers(0, 50, (2, 7))
RAMP = jnp.linspace(-1, 1, 16)
MASK = np.array([[1] * 7, [1] * 5 + [0] * 2])


@flax.struct.dataclass
class Scaling:
    """Adds `s` times what is there: s = 0 is nothing, s = 1 doubles."""

    s: jax.Array


@flax.struct.dataclass
class Kernel(Scaling):
    def linear(self, x, y, kernel, site):
        return y + self.s * (x @ kernel)


@flax.struct.dataclass
class Result(Scaling):
    def output(self, y, site):
        return y + self.s * y


@flax.struct.dataclass
class Add(Scaling):
    def output(self, y, site):
        return y + self.s


@flax.struct.dataclass
class Fixed(Scaling):
    def linear(self, x, y, kernel, site):
        return jnp.broadcast_to(self.s @ kernel, y.shape)


@flax.struct.dataclass
class Activation(Scaling):
    def activation(self, h, site):
        return h + self.s * h


@flax.struct.dataclass
class Sublayer(Scaling):
    def sublayer(self, x, h, site):
        assert x.shape == h.shape
        return h + self.s * h


@flax.struct.dataclass
class Table(Scaling):
    def embed(self, ids, h, site):
        return h + self.s * (ids == 3)[..., None] * RAMP


@flax.struct.dataclass
class Shift:
    by: int = flax.struct.field(pytree_node=False)

    def positions(self, positions, site):
        return positions + self.by


@flax.struct.dataclass
class Prefix:
    k: jax.Array  # [L, P, K, hd]
    v: jax.Array

    def keys_values(self, site):
        return self.k, self.v


@flax.struct.dataclass
class Attending:
    k: jax.Array
    v: jax.Array
    s: jax.Array

    def attend(self, q, out, attention, site):
        return out + self.s * (attention(q, self.k, self.v) - out), None


def rows(s):
    return jnp.full((L,), s, jnp.float32)


def run(made, adapters=None, params=None, **options):
    variables = {"params": params or made.params, "adapters": adapters or {}}
    return made.model.apply(variables, IDS, **{"attention_mask": MASK, "output_hidden_states": True} | options)


def doubled(made, pattern):
    """The parameters, those whose path holds `pattern` times two."""
    return tree.map_paths(lambda path, x: 2 * x if pattern in path else x, made.params)


DOUBLING = {  # (adapter, site, what doubles in the parameters)
    "linear": (Kernel, "layers/attn/q", "attn/q/kernel"),
    "output": (Result, "layers/attn/v", "attn/v/"),
    "activation": (Activation, "layers/ffn", "ffn/down/kernel"),
    "sublayer": (Sublayer, "layers/attn", "attn/o/"),
    "sublayer of the ffn": (Sublayer, "layers/ffn", "ffn/down/"),
}


@pytest.mark.parametrize("hook", DOUBLING)
def test_hooks_that_scale_a_layer(make, shape, close, hook):
    made = make(shape)
    adapter, site, pattern = DOUBLING[hook]
    base = run(made)
    close(run(made, place({site: adapter(rows(0.0))}, "toy")), base, bits=True)
    out = run(made, place({site: adapter(rows(1.0))}, "toy"))
    close(out, run(made, params=doubled(made, pattern)))
    assert np.abs(out.logits - base.logits).max() > 1e-2
    one = adapter(jnp.array([0.0, 1.0]))  # acts in its own row of the stack alone
    hidden = run(made, place({site: one}, "toy")).hidden_states
    np.testing.assert_array_equal(hidden[:2], base.hidden_states[:2])
    assert np.abs(hidden[2] - base.hidden_states[2]).max() > 1e-3


def test_embed(make, shape, close):
    made = make(shape)
    base = run(made)
    close(run(made, place({"embed": Table(jnp.zeros(()))}, "toy")), base, bits=True)
    table = made.params["embed"]["tokens"]["embedding"]
    params = {**made.params, "embed": {**made.params["embed"], "tokens": {"embedding": table.at[3].add(RAMP)}}}
    out = run(made, place({"embed": Table(jnp.ones(()))}, "toy"))
    close(out.hidden_states, run(made, params=params).hidden_states)
    assert np.abs(out.hidden_states - base.hidden_states).max() > 1e-2


def test_positions_are_shifted_once_at_the_root(make, shape, close):
    made = make(shape)
    close(run(made, place({"": Shift(0)}, "toy")), run(made), bits=True)
    positions = np.maximum(np.cumsum(MASK, 1) - 1, 0)
    shifted = run(made, place({"": Shift(4)}, "toy"))
    close(shifted, run(made, position_ids=positions + 4), bits=True)
    moved = np.abs(shifted.logits - run(made).logits).max()
    assert moved < 1e-4 if made.cfg.positions == "rotary" else moved > 1e-2  # rotary sees differences only


def test_no_position_is_moved_past_the_table(make):
    made, moved = make("gpt2"), lambda by: place({"": Shift(by)}, "toy")
    run(made, moved(25))
    for adapters in (moved(26), batched([moved(26), moved(26)], [1, 0])):
        with pytest.raises(UserError, match="7 tokens and the 26 of its adapters are over the model's 32 positions"):
            jax.jit(lambda adapters: run(made, adapters))(adapters)


def test_keys_values_of_no_length_are_nothing(make, shape, close):
    made = make(shape)
    nothing = jnp.zeros((L, 0, made.cfg.num_kv_heads, made.cfg.head_dim))
    close(run(made, place({"layers/attn": Prefix(nothing, nothing)}, "toy")), run(made), bits=True)


def prefixed(made, length=2):
    size = (L, length, made.cfg.num_kv_heads, made.cfg.head_dim)
    k, v = np.random.default_rng(1).standard_normal((2, *size)).astype(np.float32)
    return place({"layers/attn": Prefix(jnp.asarray(k), jnp.asarray(v))}, "toy")


@functools.cache
def packed_run(model):
    return jax.jit(
        lambda variables, batch: model.apply(
            variables, batch["input_ids"], segment_ids=batch["segment_ids"], position_ids=batch["position_ids"],
            output_attentions=True,
        )
    )  # fmt: skip


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_real_query_of_every_packed_segment_sees_the_prefix(make, shape, examples, lay, side):
    made, some = make(shape, scan_unroll=1), examples(4, 3, 5)
    adapters = prefixed(made)

    def hidden(rows_, adapters):
        batch, where = lay(rows_, 14, side)
        out = jax.device_get(packed_run(made.model)({"params": made.params, "adapters": adapters}, batch))
        assert np.isfinite(out.logits).all()
        return [out.last_hidden[part] for part in where], out.attentions, np.asarray(batch["segment_ids"])

    packed, probs, segments = hidden([some, [], []], adapters)
    alone, *_ = hidden([[example] for example in some], adapters)
    plain, *_ = hidden([[example] for example in some], {})
    for a, b, c in zip(packed, alone, plain):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert (np.abs(a - c).max(-1) > 1e-3).all()  # each token of each segment
    real = segments[0] != 0
    seen = probs[:, 0, :, :, :2]  # [L, H, T, P]
    assert (seen[:, :, real] > 0).all()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_prefix_of_cached_keys_is_those_tokens(make, name):
    """Tokens seen before, their keys and values given as a prefix, positions shifted: prefix tuning's definition."""
    made, before = make(name, scan_unroll=1), jnp.array([[4, 9, 1]])
    variables = {"params": made.params}
    apply = jax.jit(made.model.apply)
    cache = apply(variables, before, cache=empty_cache(made.cfg, 1, 3)).cache
    keys, values = cache.kv
    k, v = keys[:, 0].transpose(0, 3, 1, 2), values[:, 0].swapaxes(1, 2)
    adapters = place({"layers/attn": Prefix(k, v), "": Shift(3)}, "toy")
    whole = apply(variables, jnp.concatenate([before, IDS[:1]], 1)).logits[:, 3:]
    out = apply({**variables, "adapters": adapters}, IDS[:1]).logits
    np.testing.assert_allclose(out, whole, rtol=1e-4, atol=1e-5)


def test_attend_sees_queries_and_result_and_attends_to_keys_of_its_own(make, shape, close):
    made, size = make(shape), (L, 1, make(shape).cfg.num_kv_heads, make(shape).cfg.head_dim)
    k, v = map(jnp.asarray, np.random.default_rng(2).standard_normal((2, *size)).astype(np.float32))
    close(run(made, place({"layers/attn": Attending(k, v, rows(0.0))}, "toy")), run(made), bits=True)
    probed = run(made, place({"layers/attn": Attending(k, v, rows(1.0))}, "toy"))

    # Over one key attention is that key's value, each kv head's shared by its group of heads.
    cfg = made.cfg
    attended = np.repeat(v[:, 0], cfg.num_heads // cfg.num_kv_heads, axis=1).reshape(L, -1)

    close(probed, run(made, place({"layers/attn/o": Fixed(jnp.asarray(attended))}, "toy")), rtol=1e-4, atol=1e-5)


def test_adapters_of_one_site_act_in_the_order_of_their_names(make):
    made = make("gpt2", head="classification")
    add, double = Add(jnp.ones(())), Result(jnp.ones(()))
    logits = lambda here: run(made, {"classifier": here}).logits  # noqa: E731
    base = logits({})
    np.testing.assert_allclose(logits({"a": add, "b": double}), (base + 1) * 2, rtol=1e-6)
    np.testing.assert_allclose(logits({"b": add, "a": double}), base * 2 + 1, rtol=1e-6)


def test_sites_lists_every_hook_with_its_shape(make, shape):
    cfg = make(shape).cfg
    found = sites(make(shape).model)
    assert {hook for hooks in found.values() for hook in hooks} == set(HOOKS)
    assert found[""] == {"positions": ()}
    assert found["embed"] == {"embed": (50, 16)}
    assert found["layers/attn/k"] == {"input": (16,), "linear": (16, cfg.num_kv_heads * cfg.head_dim),
                                      "output": (cfg.num_kv_heads * cfg.head_dim,)}  # fmt: skip
    assert found["layers/attn"]["keys_values"] == (cfg.num_kv_heads, cfg.head_dim)
    assert found["layers/ffn"] == {"activation": (24,), "sublayer": (16,)}
    assert ("layers/ffn/gate" in found) == cfg.gated
    assert "head" in found
