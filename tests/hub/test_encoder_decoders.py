"""T5, BART and mBART give the numbers of transformers, and go back to it bit for bit."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers as hf
from safetensors.numpy import load_file, save_file

import ftjax
from ftjax.errors import UserError
from ftjax.models.transformer import empty_cache
from ftjax.tree import flatten

T5 = dict(
    vocab_size=40, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=3, num_heads=4,
    relative_attention_num_buckets=8, relative_attention_max_distance=10, dropout_rate=0.0,
)  # fmt: skip
GATED = T5 | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
BART = dict(
    vocab_size=40, d_model=24, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=32,
    decoder_attention_heads=3, decoder_ffn_dim=20, max_position_embeddings=16, dropout=0.0,
)  # fmt: skip
MODELS = {
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
    "t5-v1.1": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**GATED)),
    "t5-bare": lambda: hf.T5Model(hf.T5Config(**T5)),
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART)),
    "bart-bare": lambda: hf.BartModel(hf.BartConfig(**BART)),
    "mbart": lambda: hf.MBartForConditionalGeneration(hf.MBartConfig(**BART, scale_embedding=True)),
}
GRADIENTS = {
    "t5": {
        "embed/tokens/embedding": "shared.weight",
        "relative/bias/embedding": "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "encoder/relative/bias/embedding": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "encoder/final_norm/scale": "encoder.final_layer_norm",
    },
    "bart": {
        "embed/tokens/embedding": "shared.weight",
        "embed/positions/embedding": "decoder.embed_positions",
        "encoder/embed/positions/embedding": "encoder.embed_positions",
        "encoder/embed/norm/scale": "encoder.layernorm_embedding.weight",
    },
}
RNG = np.random.default_rng(0)
IDS, TARGETS = RNG.integers(3, 40, (3, 12)), RNG.integers(3, 40, (3, 9))
MASK = (np.arange(12) < np.array([12, 4, 2])[:, None]).astype(np.int64)
TARGET_MASK = (np.arange(9) < np.array([9, 5, 3])[:, None]).astype(np.int64)
REAL = TARGET_MASK.astype(bool)
SOURCE = {"encoder_input_ids": IDS, "encoder_attention_mask": MASK}


@pytest.fixture(scope="module")
def saved(saver):
    return saver(MODELS)


def theirs(model):
    ids, mask, targets, target_mask = map(torch.from_numpy, (IDS, MASK, TARGETS, TARGET_MASK))
    return model(
        input_ids=ids, attention_mask=mask, decoder_input_ids=targets, decoder_attention_mask=target_mask,
        output_hidden_states=True,
    )  # fmt: skip


def close(mine, reference, tolerance=1e-5):
    error = np.abs(mine - reference).max() / np.abs(reference).max()
    assert error <= tolerance, error


@pytest.mark.parametrize("name", MODELS)
def test_numbers_and_export(saved, name, tmp_path):
    torch_model, folder = saved(name)
    model, params = ftjax.load(folder)
    run = functools.partial(model.apply, output_hidden_states=True)
    out = jax.jit(run)({"params": params}, TARGETS, TARGET_MASK, **SOURCE)
    encoded = jax.jit(functools.partial(run, method="encode"))({"params": params}, IDS, MASK)
    with torch.no_grad():
        reference = theirs(torch_model)
    close(np.asarray(out.hidden_states)[:, REAL], np.stack(reference.decoder_hidden_states)[:, REAL])
    real = MASK.astype(bool)
    close(np.asarray(encoded.hidden_states)[:, real], np.stack(reference.encoder_hidden_states)[:, real])
    if model.cfg.head == "lm":
        close(np.asarray(out.logits)[REAL], reference.logits.numpy()[REAL])

    ftjax.save(tmp_path, model, params)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert set(before) == set(after) and all(before[k].tobytes() == after[k].tobytes() for k in after)
    again = type(torch_model).from_pretrained(tmp_path).eval()
    key = "logits" if model.cfg.head == "lm" else "last_hidden_state"
    with torch.no_grad():
        assert torch.equal(theirs(again)[key], reference[key])
    assert ftjax.load(tmp_path)[0] == model


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(saved, name):
    torch_model, folder = saved(name)
    model, params = ftjax.load(folder)
    labels = np.where(TARGET_MASK, np.roll(TARGETS, -1, 1), -100)
    torch_model.zero_grad()
    logits = theirs(torch_model).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(labels).flatten()).backward()
    reference = {k: p.grad.numpy() for k, p in torch_model.named_parameters() if p.grad is not None}

    def loss(p):
        logits = model.apply({"params": p}, TARGETS, TARGET_MASK, **SOURCE).logits
        each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        return (each * (labels >= 0)).sum() / (labels >= 0).sum()

    grads = flatten(jax.jit(jax.grad(loss))(params))
    for path, pattern in GRADIENTS[name].items():
        close(np.asarray(grads[path]), next(g for k, g in reference.items() if pattern in k), 1e-4)
    module = "EncDecAttention.v.weight" if name == "t5" else "encoder_attn.v_proj.weight"
    found = np.stack([g.T for k, g in reference.items() if module in k])
    close(np.asarray(grads["layers/cross/v/kernel"]), found, 1e-4)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_cached_decoding_is_the_full_forward(saved, name):
    _, folder = saved(name)
    model, params = ftjax.load(folder)
    apply = functools.partial(jax.jit(functools.partial(model.apply, method="hidden")), {"params": params})
    whole = apply(TARGETS, **SOURCE).last_hidden
    cache = apply(TARGETS[:, :1], **SOURCE, cache=empty_cache(model.cfg, 3, 9, 12)).cache
    for i in range(1, 9):
        out = apply(TARGETS[:, i : i + 1], position_ids=jnp.full((3, 1), i), cache=cache)
        cache = out.cache
        np.testing.assert_allclose(out.last_hidden[:, 0], whole[:, i], rtol=1e-4, atol=1e-5)


def test_a_v11_file_with_a_head_of_its_own(saved, tmp_path):
    """As Google's are: tie_word_embeddings false, and a lm_head that is no copy."""
    _, folder = saved("t5-v1.1")
    model, params = ftjax.load(folder)
    model = model.clone(cfg=model.cfg.replace(tied_head=False))  # transformers ties what it writes
    params = {**params, "head": {"kernel": jnp.asarray(RNG.normal(size=(24, 40)), jnp.float32)}}
    ftjax.save(tmp_path, model, params)
    reread, again = ftjax.load(tmp_path)
    assert not reread.cfg.tied_head and reread.cfg.head_scale == 1
    np.testing.assert_array_equal(again["head"]["kernel"], params["head"]["kernel"])
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({k: x for k, x in tensors.items() if k != "lm_head.weight"}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"missing: lm_head\.weight"):
        ftjax.load(tmp_path)


def test_unknown_options(saved, tmp_path):
    for name, option, value in (("t5", "feed_forward_proj", "gated-mish"), ("bart", "encoder_layerdrop", 0.1)):
        folder = shutil.copytree(saved(name)[1], tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {option: value}))
        with pytest.raises(UserError, match=option):
            ftjax.load(folder)
