"""Imported models give the numbers of transformers, and go back to it bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers as hf
from safetensors.numpy import load_file

import ftjax
from ftjax.hub import tokenizer
from ftjax.tree import flatten

NAMES = [
    "gpt2", "gpt2-inner", "gpt2-class", "gpt2-bare", "llama", "llama-tied", "llama-bias", "llama-class", "bert-mlm",
    "bert-class", "bert-bare",
]  # fmt: skip

GRADIENTS = {
    (True, "learned"): {"embed/tokens/embedding": "wte.weight", "layers/attn/v/kernel": "c_attn.weight"},
    (True, "rotary"): {"layers/attn/k/bias": "k_proj.bias", "layers/ffn/gate/kernel": "gate_proj.weight"},
    (False, "learned"): {"embed/types/embedding": "token_type", "transform/norm/scale": "transform.LayerNorm.weight"},
}


def theirs(model, ids, mask):
    """logits (None of a bare model) and hidden states of the torch model."""
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    extra = {} if model.config.model_type == "bert" else {"position_ids": torch.from_numpy(positions)}
    with torch.no_grad():
        out = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), output_hidden_states=True, **extra)
    return None if out.get("logits") is None else out.logits.numpy(), np.stack([h.numpy() for h in out.hidden_states])


def ours(model, params, ids, mask):
    run = jax.jit(lambda p, i, m: model.apply({"params": p}, i, m, output_hidden_states=True))
    out = run(params, ids, mask)
    return None if out.logits is None else np.asarray(out.logits), np.asarray(out.hidden_states)


def close(mine, reference, tolerance=1e-5):
    error = np.abs(mine - reference).max() / np.abs(reference).max()
    assert error <= tolerance, error


@pytest.fixture(params=NAMES, scope="module")
def name(request):
    """One model's tests after another: a second load of it finds the shapes of its parameters known."""
    return request.param


def test_logits_and_hidden_states(saved, batch, name):
    torch_model, folder = saved(name)
    model, params = ftjax.load(folder)
    for side in ("right",) if name.startswith("bert") else ("right", "left"):
        ids, mask = batch(side)
        (logits, hidden), (their_logits, their_hidden) = ours(model, params, ids, mask), theirs(torch_model, ids, mask)
        real = mask.astype(bool)
        close(hidden[:, real], their_hidden[:, real])
        if their_logits is None:
            assert logits is None
        elif their_logits.ndim == 2:
            close(logits, their_logits)
        else:
            close(logits[real], their_logits[real])


def test_export(saved, batch, name, tmp_path):
    torch_model, folder = saved(name)
    model, params = ftjax.load(folder)
    ftjax.save(tmp_path, model, params, extra={k: getattr(torch_model.config, k) for k in ("pad_token_id",)})
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    dropped = {"pooler.dense.weight", "pooler.dense.bias"} if name == "bert-bare" else set()
    assert set(before) - set(after) == dropped and set(after) <= set(before)
    assert all(before[k].tobytes() == after[k].tobytes() and before[k].dtype == after[k].dtype for k in after)

    auto = {"lm": hf.AutoModelForCausalLM, "mlm": hf.AutoModelForMaskedLM, "none": hf.AutoModel} | {
        "classification": hf.AutoModelForSequenceClassification
    }
    again = auto[model.cfg.head].from_pretrained(tmp_path).eval()
    assert type(again) is type(torch_model)
    ids, mask = batch("right")
    for x, y in zip(theirs(torch_model, ids, mask), theirs(again, ids, mask)):
        assert (x is None and y is None) or np.array_equal(x, y)
    reread, params_again = ftjax.load(tmp_path)
    assert reread == model
    assert jax.tree.all(jax.tree.map(np.array_equal, params, params_again))


@pytest.mark.parametrize("name, variant", [
    ("gpt2", {}), ("gpt2", {"scan_unroll": -1}), ("llama-bias", {"remat": True}), ("bert-mlm", {}),
])  # fmt: skip
def test_gradients(saved, batch, name, variant):
    """Those of a mean loss over real tokens, whether layers are scanned, unrolled or recomputed."""
    torch_model, folder = saved(name)
    model, params = ftjax.load(folder, embed_dropout=0.0, attention_dropout=0.0, hidden_dropout=0.0, **variant)
    ids, mask = batch("right")
    labels = np.where(mask, np.roll(ids, -1, 1), -100)
    torch_model.zero_grad()
    logits = torch_model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(labels).flatten()).backward()
    reference = {k: p.grad.numpy() for k, p in torch_model.named_parameters() if p.grad is not None}

    def loss(p):
        logits = model.apply({"params": p}, ids, mask, training=True, rngs={"dropout": jax.random.key(0)}).logits
        each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        return (each * (labels >= 0)).sum() / (labels >= 0).sum()

    grads = flatten(jax.jit(jax.grad(loss))(params))
    for path, pattern in GRADIENTS[model.cfg.causal, model.cfg.positions].items():
        found = [g for k, g in reference.items() if pattern in k]
        if "c_attn" in pattern:
            found = [g[:, -model.cfg.hidden_size :] for g in found]
        elif path.endswith("kernel"):
            found = [g.T for g in found]
        close(np.asarray(grads[path]), np.stack(found) if path.startswith("layers/") else found[0], 1e-4)


def test_minilm(shared):
    """A trained BERT whose file is fp16, without a prefix and with a position_ids buffer."""
    folder = shared("all-MiniLM-L6-v2")
    model, params = ftjax.load(folder)
    assert params["layers"]["ffn"]["up"]["kernel"].dtype == jnp.float32
    tok = tokenizer(folder, model.cfg.vocab_size)
    text = tok(["A plane is taking off.", "An aeroplane leaves the ground, slowly."], padding=True, return_tensors="np")
    reference = hf.BertModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids, mask = text["input_ids"], text["attention_mask"]
    hidden, expected = ours(model, params, ids, mask)[1], theirs(reference, ids, mask)[1]
    close(hidden[:, mask.astype(bool)], expected[:, mask.astype(bool)])


def test_stories(shared):
    folder = shared("stories260K")
    model, params = ftjax.load(folder)
    ids = np.array(tokenizer(folder, model.cfg.vocab_size)("Once upon a time, there was a dog.")["input_ids"])[None]
    mask = np.ones_like(ids)
    reference = hf.LlamaForCausalLM.from_pretrained(folder).eval()
    for mine, expected in zip(ours(model, params, ids, mask), theirs(reference, ids, mask)):
        close(mine, expected)
