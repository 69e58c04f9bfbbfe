"""Cached decoding is the full forward pass, token for token."""

from pathlib import Path

import flax.struct
import jax
import numpy as np
import pytest

import ftjax
from ftjax.decode import batches
from ftjax.decode.batches import bucket, continue_batches, generate_batches
from ftjax.decode.beam import beam_search
from ftjax.decode.generate import continuations
from ftjax.decode.loop import advance, start
from ftjax.decode.text import Stops
from ftjax.errors import UserError
from ftjax.hub import tokenizer
from ftjax.methods.batched import batched
from ftjax.models.transformer import Transformer, abstract
from ftjax.nn.config import Config
from ftjax.tree import map_paths

STORIES = Path(__file__).parents[2].parent / "shared" / "models" / "stories260K"
BASE = Config(
    vocab_size=40, hidden_size=24, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=6, ffn_size=32, max_positions=32
)
LLAMA = BASE.replace(positions="rotary", norm="rmsnorm", gated=True, activation="silu", tied_head=False)
VARIANTS = {
    "mha, learned positions": BASE,
    "gqa, wide heads, unrolled": LLAMA.replace(num_kv_heads=2, head_dim=8, scan_unroll=-1),
    "mqa, learned positions": BASE.replace(num_kv_heads=1),
}
T, NEW = 6, 8


def spell(tokens):
    """A letter a token."""
    return "".join(chr(ord("A") + t) for t in tokens)


@flax.struct.dataclass
class Prefix:
    """Two trained keys and values a layer, `[L, P, K, hd]`."""

    k: jax.Array
    v: jax.Array

    def keys_values(self, site):
        return self.k, self.v


@flax.struct.dataclass
class Shift:
    by: int = flax.struct.field(pytree_node=False)

    def positions(self, positions, site):
        return positions + self.by


def make(cfg):
    rng, model = np.random.default_rng(0), Transformer(cfg)
    spread = {"bias": 0.1, "scale": 0.1}

    def draw(path, x):
        leaf = path.rsplit("/", 1)[-1]
        return np.float32(rng.normal(leaf == "scale", spread.get(leaf, 0.7), x.shape))

    return model, map_paths(draw, abstract(model))


def padded_prompts(side):
    ids = np.random.default_rng(1).integers(3, 40, (3, T))
    lengths, column = np.array([6, 3, 1])[:, None], np.arange(T)
    mask = (column < lengths if side == "right" else column >= T - lengths).astype(np.int32)
    rows = [row[:n] for row, n in zip(ids, lengths[:, 0])]
    padded = np.zeros_like(ids)
    padded[mask.astype(bool)] = np.concatenate(rows)
    return padded, mask, rows


def assert_greedy(model, params, out, mask, adapters=None):
    """Each new token is the likeliest after one uncached pass over everything before it."""
    seen = np.concatenate([mask, np.ones((len(out), NEW), np.int32)], 1)
    variables = {"params": params, **({"adapters": adapters} if adapters else {})}
    logits = np.asarray(jax.jit(model.apply)(variables, out, seen).logits)
    for row, (tokens, real) in enumerate(zip(np.asarray(out), mask)):
        before = [int(np.flatnonzero(real)[-1]), *range(T, T + NEW - 1)]
        assert (logits[row, before].argmax(-1) == tokens[T:]).all()


@pytest.mark.parametrize("cfg", VARIANTS.values(), ids=VARIANTS)
def test_cached_is_the_full_forward_pass(cfg):
    model, params = make(cfg)
    outs = {}
    for side in ("left", "right"):
        ids, mask, _ = padded_prompts(side)
        outs[side] = np.asarray(ftjax.generate(model, params, ids, mask, max_new_tokens=NEW))
        assert (outs[side][:, :T] == ids).all()
        assert_greedy(model, params, outs[side], mask)
    assert (outs["left"][:, T:] == outs["right"][:, T:]).all()
    assert len(np.unique(outs["left"][:, T:])) > 8  # no model that says one thing whatever came before


def test_a_prompt_alone_and_eos():
    model, params = make(BASE)
    ids, mask, rows = padded_prompts("left")
    out = np.asarray(ftjax.generate(model, params, ids, mask, max_new_tokens=NEW))
    wide = np.pad(rows[1], (37, 0))[None]  # more columns than the model has positions
    alone = ftjax.generate(model, params, wide, np.arange(40)[None] >= 37, max_new_tokens=NEW)
    assert (np.asarray(alone)[0, 40:] == out[1, T:]).all()
    eos = int(out[0, T + 2])
    stopped = np.asarray(ftjax.generate(model, params, ids, mask, max_new_tokens=NEW, eos_token_id=np.array([eos, 39])))
    for before, after in zip(out[:, T:], stopped[:, T:]):
        end = next((i for i, token in enumerate(before) if token in (eos, 39)), NEW)
        assert (after[: end + 1] == before[: end + 1]).all() and (after[end + 1 :] == 0).all()


def test_adapters():
    cfg = LLAMA.replace(num_kv_heads=2, positions="learned")
    model, params = make(cfg)
    rng = np.random.default_rng(2)
    k, v = (rng.normal(size=(2, 2, 2, 6)).astype(np.float32) for _ in "kv")
    adapters = {"layers": {"attn": {"prefix": Prefix(k, v)}}, "prefix": Shift(2)}
    ids, mask, _ = padded_prompts("left")
    out = ftjax.generate(model, params, ids, mask, adapters=adapters, max_new_tokens=NEW)
    assert_greedy(model, params, out, mask, adapters)
    assert (out != ftjax.generate(model, params, ids, mask, max_new_tokens=NEW)).any()
    with pytest.raises(UserError, match="has 6 tokens; with max_new_tokens=26 there is room for 4"):
        ftjax.generate(model, params, ids, mask, adapters=adapters, max_new_tokens=26)


@pytest.mark.parametrize(("twins", "options"), [
    ("llama", {}), ("gpt2", dict(repetition_penalty=1.8, no_repeat_ngram_size=2)),
    ("llama", dict(min_new_tokens=5, repetition_penalty=0.8)),
], indirect=["twins"])  # fmt: skip
def test_transformers_generates_the_same(options, twins, prompts, their_answer):
    torch_model, model, params = twins
    theirs, _ = their_answer(torch_model, eos_token_id=[2, 11], **options)
    ours = continuations(model, params, *prompts, max_new_tokens=NEW, eos_token_id=(2, 11), pad_token_id=3, **options)
    assert (ours.tokens[:, 0] == theirs).all()


def test_scores_are_log_probabilities():
    model, params = make(BASE)
    ids, mask, _ = padded_prompts("left")
    found = continuations(model, params, ids, mask, max_new_tokens=NEW, eos_token_id=(7, 9), repetition_penalty=1.5)
    out = np.concatenate([ids, found.tokens[:, 0]], 1)
    logits = jax.jit(model.apply)({"params": params}, out, np.concatenate([mask, np.ones((3, NEW), int)], 1)).logits
    logprobs = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits))[:, T - 1 : -1], found.tokens[:, 0, :, None], 2)
    real = np.arange(NEW) < found.lengths
    np.testing.assert_allclose(found.scores[:, 0], (logprobs[..., 0] * real).sum(1), rtol=1e-5)


def test_several_draws():
    model, params = make(LLAMA)
    ids, mask, rows = padded_prompts("left")
    options = dict(max_new_tokens=NEW, do_sample=True, temperature=3.0, eos_token_id=2)
    three = continuations(model, params, ids, mask, num_return_sequences=3, seed=4, **options)
    assert three.tokens.shape == (3, 3, NEW) and three.scores.shape == three.lengths.shape == (3, 3)
    assert len(np.unique(three.tokens.reshape(9, NEW), axis=0)) == 9
    alone = continuations(
        model, params, rows[1][None], num_return_sequences=3, seed=4, example_ids=[1], **options
    )  # of (seed, example, number) alone
    assert (alone.tokens[0] == three.tokens[1]).all()
    first = continuations(model, params, ids, mask, seed=4, **options)
    assert (first.tokens[:, 0] == three.tokens[:, 0]).all()
    assert (first.tokens != continuations(model, params, ids, mask, seed=5, **options).tokens).any()
    flat = ftjax.generate(model, params, ids, mask, num_return_sequences=3, seed=4, **options)
    assert (flat[:, :T] == np.repeat(ids, 3, 0)).all() and (flat[:, T:] == three.tokens.reshape(9, NEW)).all()


def test_each_example_has_its_adapter():
    model, params = make(LLAMA.replace(num_kv_heads=2))
    rng = np.random.default_rng(2)
    both = [
        {"layers": {"attn": {"prefix": Prefix(*(rng.normal(0, 5, (2, 2, 2, 6)).astype(np.float32) for _ in "kv"))}}}
        for _ in range(2)
    ]
    ids, mask, _ = padded_prompts("left")
    options = dict(max_new_tokens=NEW, num_beams=2, num_return_sequences=2)
    mixed = continuations(model, params, ids, mask, adapters=batched(both, [1, 0, 1]), **options)
    for number, rows in ((1, [0, 2]), (0, [1])):
        one = continuations(model, params, ids, mask, adapters=both[number], **options)
        assert (mixed.tokens[rows] == one.tokens[rows]).all()
    assert (one.tokens[0] != mixed.tokens[0]).any()


def test_one_compilation_a_shape():
    model, params = make(BASE)
    ids, mask, _ = padded_prompts("left")
    functions = (beam_search, start, advance)

    def compilations(rows, **options):
        before = [f._cache_size() for f in functions]
        ftjax.generate(model, params, ids[:, rows], mask[:, rows], max_new_tokens=5, eos_token_id=39, **options)
        return [f._cache_size() - n for f, n in zip(functions, before)]

    assert compilations(slice(0, 6), num_beams=2) == [1, 0, 0]
    assert compilations(slice(0, 6), num_beams=2) == [0, 0, 0]
    assert compilations(slice(0, 6), do_sample=True) == [0, 1, 1]
    assert compilations(slice(0, 6), do_sample=True, seed=3) == [0, 0, 0]
    assert compilations(slice(2, 6), do_sample=True) == [0, 1, 1]


def test_batches_and_seeds(monkeypatch):
    model, params = make(BASE.replace(max_positions=26))  # fewer than the bucket of 17 has columns
    texts = [list(map(int, row)) for n in (1, 3, 2, 5, 17) for row in np.random.default_rng(n).integers(3, 40, (1, n))]
    options = {"max_new_tokens": 8, "do_sample": True, "top_p": 0.9, "seed": 3, "eos_token_id": np.int64(2)}
    prompts = dict(enumerate(texts))
    drawn = generate_batches(model, params, prompts, batch_size=4, **options)
    few = {i: prompts[i] for i in (2, 0, 3, 1)}
    assert generate_batches(model, params, few, batch_size=2, **options) == {i: drawn[i] for i in few}
    assert drawn != generate_batches(model, params, prompts, batch_size=4, **options | {"seed": 4})
    together = [drawn[i] for i in range(len(texts))]
    assert all(2 not in tokens and len(tokens) <= 8 for tokens in together)
    laid, lay = [], batches.lay
    monkeypatch.setattr(batches, "lay", lambda prompts, rows: laid.append([*map(len, prompts)]) or lay(prompts, rows))
    mixed = [(i, texts[i]) for i in (4, 0, 1, 2, 3)]
    for window, shapes in ((8, [[1, 2, 3, 5], [17]]), (1, [[1, 2, 3, 17], [5]])):
        monkeypatch.setattr(batches, "WINDOW", window)
        answered = list(continue_batches(model, params, mixed, batch_size=4, **options))
        assert [i for i, _ in answered] == [4, 0, 1, 2, 3] and laid[-2:] == shapes
        assert all(found[0].tokens == together[i] for i, found in answered)
    numbered = list(enumerate(texts))[1:4]
    several = dict(continue_batches(model, params, numbered, batch_size=3, num_return_sequences=2, **options))
    assert [several[i][0].tokens for i in range(1, 4)] == together[1:4] and {len(x) for x in several.values()} == {2}
    stop = Stops([spell(together[0][-2:])], spell)  # completed by the first one's last token
    stopped = dict(continue_batches(model, params, list(enumerate(texts[:4])), batch_size=4, stops=stop, **options))
    assert [stopped[i][0].tokens for i in range(4)] == together[:4] and {len(tokens) for tokens in together[:4]} == {8}
    assert [stopped[i][0].ended for i in range(4)] == [True, False, False, False]
    assert [bucket(n) for n in (1, 16, 17, 32, 33)] == [16, 16, 32, 32, 64]
    assert [bucket(n, largest=20) for n in (1, 16, 17, 20)] == [16, 16, 20, 20] and bucket(9, largest=9) == 9
    with pytest.raises(UserError, match="without a token: 1"):
        generate_batches(model, params, {0: [3], 1: []}, batch_size=2, max_new_tokens=2)


@pytest.mark.parametrize("match, cfg, change", [
    ("has 6 tokens; with max_new_tokens=27 there is room for 5", BASE, {"max_new_tokens": 27}),
    ("leaves no room", BASE, {"max_new_tokens": 32}),
    ("max_new_tokens=0", BASE, {"max_new_tokens": 0}),
    ("row 1 of the prompts", BASE, {"attention_mask": [[1] * 6, [0] * 6, [1] * 6]}),
    ("must be \\[B, T\\]", BASE, {"attention_mask": [[1] * 6]}),
    ("head='none'", BASE.replace(head="none"), {}),
    ("causal", BASE.replace(causal=False), {}),
    ("need do_sample", BASE, {"top_k": 3}),
    ("temperature=0", BASE, {"do_sample": True, "temperature": 0.0}),
    ("top_p=0", BASE, {"do_sample": True, "top_p": 0.0}),
    ("min_p=2", BASE, {"do_sample": True, "min_p": 2}),
    ("repetition_penalty=0", BASE, {"repetition_penalty": 0}),
    ("no_repeat_ngram_size=-1", BASE, {"no_repeat_ngram_size": -1}),
    ("min_new_tokens=3 must be in \\[0, max_new_tokens=2\\]", BASE, {"min_new_tokens": 3}),
    ("min_new_tokens=1 needs an eos", BASE, {"min_new_tokens": 1}),
    ("num_return_sequences=2 needs", BASE, {"num_return_sequences": 2}),
    ("num_return_sequences=3 is over num_beams=2", BASE, {"num_return_sequences": 3, "num_beams": 2}),
    ("num_beams=0", BASE, {"num_beams": 0}),
    ("sample or search", BASE, {"num_beams": 2, "do_sample": True}),
    ("length_penalty, early_stopping need num_beams", BASE, {"length_penalty": 0.8, "early_stopping": True}),
    ("early_stopping='always'", BASE, {"num_beams": 2, "early_stopping": "always"}),
    ("not for beam_rule='lora'", BASE, {"beam_rule": "lora", "early_stopping": "never"}),
    ("early_stopping=1", BASE, {"num_beams": 2, "early_stopping": 1}),
    ("seed=2147483648", BASE, {"seed": 2**31}),
    ("eos_token_id=40, -1: the model's tokens are 0 to 39", BASE, {"eos_token_id": [3, 40, -1]}),
    ("pad_token_id=40", BASE, {"pad_token_id": 40}),
    ("beam_rule='fair'", BASE, {"beam_rule": "fair"}),
    ("decoder_start_token_id=5", BASE, {"decoder_start_token_id": 5}),
])  # fmt: skip
def test_errors(match, cfg, change):
    with pytest.raises(UserError, match=match):
        ftjax.generate(Transformer(cfg), {}, padded_prompts("left")[0], **{"max_new_tokens": 2, **change})


@pytest.mark.skipif(not STORIES.is_dir(), reason="stories260K is not in shared/models beside the repository")
def test_the_story():
    model, params = ftjax.load(STORIES)
    out = ftjax.generate(model, params, [[1]], max_new_tokens=64, eos_token_id=2)
    text = tokenizer(STORIES).decode(np.asarray(out)[0], skip_special_tokens=True)
    assert text.strip().startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
        "One day, she saw a big, red ball."
    )
