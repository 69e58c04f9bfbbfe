"""Cached decoding is the full forward pass, token for token."""

from pathlib import Path

import flax.struct
import jax
import numpy as np
import pytest
import torch
import transformers as hf

import ftjax
from ftjax.decode.batches import bucket, generate_batches
from ftjax.errors import UserError
from ftjax.hub import tokenizer
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
    "gqa, rotary": LLAMA.replace(num_kv_heads=2),
}
T, NEW = 6, 8


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


def prompts(side):
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
        ids, mask, _ = prompts(side)
        outs[side] = np.asarray(ftjax.generate(model, params, ids, mask, max_new_tokens=NEW))
        assert (outs[side][:, :T] == ids).all()
        assert_greedy(model, params, outs[side], mask)
    assert (outs["left"][:, T:] == outs["right"][:, T:]).all()
    assert len(np.unique(outs["left"][:, T:])) > 8  # no model that says one thing whatever came before


def test_a_prompt_alone_and_eos():
    model, params = make(LLAMA)
    ids, mask, rows = prompts("left")
    out = np.asarray(ftjax.generate(model, params, ids, mask, max_new_tokens=NEW))
    alone = ftjax.generate(model, params, rows[1][None], max_new_tokens=NEW)
    assert (np.asarray(alone)[0, len(rows[1]) :] == out[1, T:]).all()
    eos = int(out[0, T + 2])
    stopped = np.asarray(ftjax.generate(model, params, ids, mask, max_new_tokens=NEW, eos_token_id=(eos, 39)))
    for before, after in zip(out[:, T:], stopped[:, T:]):
        end = next((i for i, token in enumerate(before) if token in (eos, 39)), NEW)
        assert (after[: end + 1] == before[: end + 1]).all() and (after[end + 1 :] == 0).all()


def test_adapters():
    cfg = LLAMA.replace(num_kv_heads=2, positions="learned")
    model, params = make(cfg)
    rng = np.random.default_rng(2)
    k, v = (rng.normal(size=(2, 2, 2, 6)).astype(np.float32) for _ in "kv")
    adapters = {"layers": {"attn": {"prefix": Prefix(k, v)}}, "prefix": Shift(2)}
    ids, mask, _ = prompts("left")
    out = ftjax.generate(model, params, ids, mask, adapters=adapters, max_new_tokens=NEW)
    assert_greedy(model, params, out, mask, adapters)
    assert (out != ftjax.generate(model, params, ids, mask, max_new_tokens=NEW)).any()
    with pytest.raises(UserError, match="need 34 positions, the model has 32"):
        ftjax.generate(model, params, ids, mask, adapters=adapters, max_new_tokens=26)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_transformers_generates_the_same(family, tmp_path):
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 40}
    torch.manual_seed(0)
    if family == "gpt2":
        torch_model = hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=24, n_layer=2, n_head=3, n_positions=32, **special))
    else:
        shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        torch_model = hf.LlamaForCausalLM(hf.LlamaConfig(**shape, head_dim=8, intermediate_size=32, **special))
    for p in torch_model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    torch_model.eval().save_pretrained(tmp_path)
    ids, mask, _ = prompts("left")
    theirs = torch_model.generate(
        torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), max_new_tokens=NEW, do_sample=False
    ).numpy()
    model, params = ftjax.load(tmp_path)
    ours = np.asarray(ftjax.generate(model, params, ids, mask, max_new_tokens=NEW, eos_token_id=2))
    assert (ours[:, : theirs.shape[1]] == theirs).all() and (ours[:, theirs.shape[1] :] == 0).all()


def test_batches_and_seeds():
    model, params = make(BASE)
    texts = [list(map(int, row)) for n in (1, 3, 2, 5, 17) for row in np.random.default_rng(n).integers(3, 40, (1, n))]
    options = {"max_new_tokens": 8, "do_sample": True, "top_p": 0.9, "seed": 3, "eos_token_id": 2}
    together = generate_batches(model, params, texts, batch_size=4, **options)
    assert together[:4] == generate_batches(model, params, texts[:4], batch_size=2, **options)
    assert together != generate_batches(model, params, texts, batch_size=4, **options | {"seed": 4})
    assert all(2 not in tokens and len(tokens) <= 8 for tokens in together)
    assert [bucket(n) for n in (1, 16, 17, 32, 33)] == [16, 16, 32, 32, 64]
    with pytest.raises(UserError, match="without a token: 1"):
        generate_batches(model, params, [[3], []], batch_size=2, max_new_tokens=2)


@pytest.mark.parametrize("match, cfg, change", [
    ("need 33 positions", BASE, {"max_new_tokens": 27}),
    ("max_new_tokens=0", BASE, {"max_new_tokens": 0}),
    ("row 1 of the prompts", BASE, {"attention_mask": [[1] * 6, [0] * 6, [1] * 6]}),
    ("must be \\[B, T\\]", BASE, {"attention_mask": [[1] * 6]}),
    ("head='none'", BASE.replace(head="none"), {}),
    ("causal", BASE.replace(causal=False), {}),
    ("need do_sample", BASE, {"top_k": 3}),
    ("temperature=0", BASE, {"do_sample": True, "temperature": 0.0}),
    ("top_p=0", BASE, {"do_sample": True, "top_p": 0.0}),
])  # fmt: skip
def test_errors(match, cfg, change):
    with pytest.raises(UserError, match=match):
        ftjax.generate(Transformer(cfg), {}, prompts("left")[0], **{"max_new_tokens": 2, **change})


@pytest.mark.skipif(not STORIES.is_dir(), reason="stories260K is not in shared/models beside the repository")
def test_the_story():
    model, params = ftjax.load(STORIES)
    out = ftjax.generate(model, params, [[1]], max_new_tokens=64, eos_token_id=2)
    text = tokenizer(STORIES).decode(np.asarray(out)[0], skip_special_tokens=True)
    assert text.strip().startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
        "One day, she saw a big, red ball."
    )
