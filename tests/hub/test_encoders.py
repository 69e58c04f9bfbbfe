"""RoBERTa, XLM-R, ELECTRA, ALBERT, DeBERTa and ModernBERT give the numbers of transformers, and go back to it."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers as hf
from safetensors.numpy import load_file, save_file

import ftjax
from configs import method as configs
from ftjax import methods
from ftjax.errors import UserError
from ftjax.hub import FAMILIES, names
from ftjax.hub.family import config_of, hf_config
from ftjax.methods import lora
from ftjax.models.transformer import sites
from ftjax.nn.positions import deberta_bucket
from ftjax.tree import flatten, unflatten

# Every option that a file may set differs from its default somewhere below.
SIZES = dict(vocab_size=41, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=28)
BERT = SIZES | dict(max_position_embeddings=16, layer_norm_eps=1e-3, type_vocab_size=3)
ROBERTA = BERT | dict(pad_token_id=1, max_position_embeddings=18, classifier_dropout=0.3)
ELECTRA = BERT | dict(embedding_size=10)
ALBERT = BERT | dict(embedding_size=10, hidden_act="relu", classifier_dropout_prob=0.2)
DEBERTA = BERT | dict(
    relative_attention=True, position_biased_input=False, share_att_key=True, norm_rel_ebd="layer_norm",
    pos_att_type="p2c|c2p", position_buckets=6, max_relative_positions=13, hidden_act="silu", pooler_hidden_act="relu",
    pooler_dropout=0.2, cls_dropout=0.3,
)  # fmt: skip
MODERN = SIZES | dict(
    max_position_embeddings=16, norm_eps=1e-3, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1,
    sep_token_id=2, local_attention=6, classifier_dropout=0.2,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    rope_parameters={"full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 900.0},
                     "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}},
)  # fmt: skip
BIASES = dict(norm_bias=True, attention_bias=True, mlp_bias=True, classifier_bias=True, decoder_bias=False)
HEADS = {
    "mlm": "ForMaskedLM",
    "rtd": "ForPreTraining",
    "class": "ForSequenceClassification",
    "tag": "ForTokenClassification",
    "span": "ForQuestionAnswering",
    "bare": "Model",
}


def family(name, config, options, *heads, suffix=""):
    def make(head):
        labels = 2 if head == "span" else 5
        return lambda: getattr(hf, name + HEADS[head])(config(**options, num_labels=labels))

    return {f"{name.lower()}{suffix}-{head}": make(head) for head in heads}


TWO = ("mlm", "class")
MODELS = {
    **family("Roberta", hf.RobertaConfig, ROBERTA, *TWO),
    **family("XLMRoberta", hf.XLMRobertaConfig, ROBERTA | dict(pad_token_id=2), *TWO),
    **family("Electra", hf.ElectraConfig, ELECTRA, *HEADS),
    **family("Electra", hf.ElectraConfig, ELECTRA | dict(embedding_size=24), "rtd", suffix="-square"),
    **family("Albert", hf.AlbertConfig, ALBERT, *TWO),
    **family("Albert", hf.AlbertConfig, ALBERT | dict(embedding_size=24), "mlm", suffix="-square"),
    **family("DebertaV2", hf.DebertaV2Config, DEBERTA, *TWO),
    **family(
        "DebertaV2", hf.DebertaV2Config, DEBERTA | dict(conv_kernel_size=5, conv_act="silu"), "mlm", suffix="-conv"
    ),
    **family("ModernBert", hf.ModernBertConfig, MODERN, *TWO),
    **family("ModernBert", hf.ModernBertConfig, MODERN | BIASES, "mlm", suffix="-biases"),
    **family("ModernBert", hf.ModernBertConfig, MODERN | dict(classifier_pooling="mean"), "class", suffix="-mean"),
}


@pytest.fixture(scope="module")
def saved(saver):
    return saver(MODELS)


def batch(side, padding=0):
    """ids, mask `[3, 12]`: beyond ModernBERT's window of 3 on each side and DeBERTa's 3 exact distances."""
    ids = np.random.default_rng(0).integers(3, 41, (3, 12))
    lengths = np.array([12, 7, 3])[:, None]
    column = np.arange(12)
    mask = column < lengths if side == "right" else column >= 12 - lengths
    return np.where(mask, ids, padding), mask.astype(np.int64)


def theirs(model, ids, mask, hidden=True):
    """Logits (None of a bare model) and hidden states. RoBERTa counts positions itself, DeBERTa's are relative."""
    extra = {}
    if model.config.model_type in ("electra", "albert", "modernbert"):
        extra = {"position_ids": torch.from_numpy(np.maximum(mask.cumsum(1) - 1, 0))}
    out = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), output_hidden_states=hidden, **extra)
    logits = out.get("logits")
    if "start_logits" in out:
        logits = torch.stack([out.start_logits, out.end_logits], -1)
    return logits, out.hidden_states


def numbers(model, ids, mask):
    with torch.no_grad():
        logits, hidden = theirs(model, ids, mask)
    return None if logits is None else logits.numpy(), np.stack([h.numpy() for h in hidden])


def close(mine, reference, tolerance=1e-5, floor=0.0):
    error = np.abs(mine - reference).max() / max(np.abs(reference).max(), floor)
    assert error <= tolerance, error


@pytest.fixture(params=MODELS, scope="module")
def name(request):
    """One model's tests after another: a second load of it finds the shapes of its parameters known."""
    return request.param


def test_logits_and_hidden_states(saved, name):
    torch_model, folder = saved(name)
    model, params = ftjax.load(folder, scan_unroll=-1)
    sides = [batch(side, torch_model.config.pad_token_id) for side in ("right", "left")]
    ids, mask = (np.concatenate(parts) for parts in zip(*sides))
    out = model.apply({"params": params}, ids, mask, output_hidden_states=True)
    logits, hidden = numbers(torch_model, ids, mask)
    real = mask.astype(bool)
    for rows in (slice(3), slice(3, 6)):
        close(np.asarray(out.hidden_states)[:, rows][:, real[rows]], hidden[:, rows][:, real[rows]])
        if logits is None:
            assert out.logits is None
        elif model.cfg.head != "classification":
            close(np.asarray(out.logits)[rows][real[rows]], logits[rows][real[rows]])
        elif rows == slice(3) or model.cfg.pooling == "mean":  # theirs takes column 0, padding or not
            close(np.asarray(out.logits)[rows], logits[rows])


def test_export(saved, name, tmp_path):
    torch_model, folder = saved(name)
    model, params = ftjax.load(folder, scan_unroll=-1)
    ftjax.save(tmp_path, model, params, extra={"pad_token_id": torch_model.config.pad_token_id})
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert set(after) <= set(before) and all("pooler" in key for key in set(before) - set(after))
    assert all(before[k].tobytes() == after[k].tobytes() and before[k].dtype == after[k].dtype for k in after)

    config = hf.AutoConfig.from_pretrained(tmp_path)
    assert type(config) is type(torch_model.config)
    again = getattr(hf, config.architectures[0]).from_pretrained(tmp_path).eval()
    assert type(again) is type(torch_model)
    ids, mask = batch("right", torch_model.config.pad_token_id)
    for x, y in zip(numbers(torch_model, ids, mask), numbers(again, ids, mask)):
        assert (x is None and y is None) or np.array_equal(x, y)
    reread, params_again = ftjax.load(tmp_path, scan_unroll=-1)
    assert reread == model
    assert jax.tree.all(jax.tree.map(np.array_equal, params, params_again))


@pytest.mark.parametrize("name", ["electra-mlm", "albert-mlm", "debertav2-conv-mlm", "modernbert-mlm"])
def test_packed_rows(saved, name):
    """Two examples in one row, or each in its own: neither sees the other, scanned layers included."""
    model, params = ftjax.load(saved(name)[1])
    ids = np.random.default_rng(1).integers(3, 41, (3, 12))
    segments, column = np.ones((3, 12), np.int32), np.arange(12)
    ids[1], ids[2, :5] = ids[0], ids[0, 7:]
    segments[0, 7:], segments[1, 7:], segments[2, 5:] = 2, 0, 0
    positions = np.where(segments == 2, column - 7, column)
    inputs = {"segment_ids": segments, "position_ids": positions}
    hidden = jax.jit(lambda p: model.apply({"params": p}, ids, **inputs).last_hidden)(params)
    close(hidden[0, :7], hidden[1, :7])
    close(hidden[0, 7:], hidden[2, :5])


@pytest.mark.parametrize("name", [
    "electra-rtd", "albert-mlm", "debertav2-conv-mlm", "debertav2-class", "modernbert-biases-mlm", "modernbert-class",
])  # fmt: skip
def test_gradients(saved, name):
    """Every parameter's, of a mean loss over rows or real tokens."""
    torch_model, folder = saved(name)
    model, params = ftjax.load(folder)
    ids, mask = batch("right", torch_model.config.pad_token_id)
    labels = np.where(mask, np.roll(ids, -1, 1) % 5, -100)
    labels = labels[:, 0] if model.cfg.head == "classification" else labels
    torch_model.zero_grad()
    logits = theirs(torch_model, ids, mask, hidden=False)[0]
    if model.cfg.head == "rtd":
        each = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, torch.from_numpy(labels == 0).float(), reduction="none"
        )
        each[torch.from_numpy(mask) != 0].mean().backward()
    else:
        flat = torch.from_numpy(labels).flatten()
        torch.nn.functional.cross_entropy(logits.flatten(0, -2), flat).backward()

    def loss(p):
        logits = model.apply({"params": p}, ids, mask).logits
        if model.cfg.head == "rtd":
            each = optax.sigmoid_binary_cross_entropy(logits, jnp.asarray(labels == 0, jnp.float32))
        else:
            each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        return (each * (labels >= 0)).sum() / (labels >= 0).sum()

    mine = names.write(FAMILIES[model.cfg.family], model, jax.jit(jax.grad(loss))(params))
    reference = {k: p.grad.numpy() for k, p in torch_model.named_parameters() if p.grad is not None}
    floor = 1e-3 * max(np.abs(g).max() for g in reference.values())  # a bias of keys has none but for rounding
    assert set(mine) == set(reference)
    for key, grad in reference.items():
        close(mine[key], grad, 1e-4, floor)


def test_buckets():
    """Of DeBERTa v3: the row of every distance."""
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    offset = np.arange(-700, 701)
    for buckets, distance in ((256, 512), (6, 13)):
        theirs = make_log_bucket_position(torch.from_numpy(offset), buckets, distance).long().numpy()
        mine = np.asarray(jax.jit(deberta_bucket, static_argnums=(1, 2))(jnp.asarray(offset), buckets, distance))
        np.testing.assert_array_equal(mine, np.clip(theirs + buckets, 0, 2 * buckets - 1))


def test_albert_adapter_of_shared_layers(saved):
    """One LoRA serves all layers, merges into their one kernel, and its gradient is of all layers, as the kernel's."""
    model, params = ftjax.load(saved("albert-class")[1], scan_unroll=-1)
    ids, mask = batch("right")
    options = configs.get("lora")
    options.update(rank=2, targets=("v", "up"))
    start = flatten(
        methods.get("lora").init(methods.Context(model.cfg, params, sites(model)), options, jax.random.key(0))
    )
    shapes = {"layers/attn/v": (24, 24), "layers/ffn/up": (24, 28)}
    assert {path: start[f"{path}/lora/b"].shape for path in shapes} == {k: (1, 2, n) for k, (_, n) in shapes.items()}
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) * 0.1, jnp.float32)  # noqa: E731
    adapters = {f"{path}/lora": lora.LoRA(start[f"{path}/lora/a"], draw(1, 2, n), jnp.ones((1, 2)))
                for path, (_, n) in shapes.items()}  # fmt: skip

    def loss(p, a):
        logits = model.apply({"params": p, "adapters": unflatten(a)}, ids, mask).logits
        return jnp.square(logits).mean(), logits

    kernels, whole = jax.jit(jax.grad(loss, has_aux=True))(lora.merge(params, unflatten(adapters), model.cfg), {})
    grads, logits = jax.jit(jax.grad(loss, 1, has_aux=True))(params, adapters)
    close(np.asarray(whole), np.asarray(logits))
    kernels = flatten(kernels)
    for path, shape in shapes.items():
        kernel, grad = np.asarray(kernels[f"{path}/kernel"]), grads[f"{path}/lora"]
        a, b = (np.asarray(getattr(adapters[f"{path}/lora"], name)) for name in "ab")
        assert kernel.shape == (1, *shape) and np.abs(kernel).max() > 0
        close(np.asarray(grad.a), kernel @ b.swapaxes(1, 2), 1e-4)
        close(np.asarray(grad.b), a.swapaxes(1, 2) @ kernel, 1e-4)


def test_old_keys_of_modernbert(saved):
    options = json.loads((saved("modernbert-mlm")[1] / "config.json").read_text())
    del options["layer_types"], options["rope_parameters"]
    old = options | dict(global_attn_every_n_layers=2, global_rope_theta=900.0, local_rope_theta=50.0)
    cfg = config_of(FAMILIES["modernbert"], old, "mlm")
    assert (cfg.global_layers, cfg.rope_theta, cfg.window_rope_theta, cfg.window) == ((0, 2), 900.0, 50.0, 4)
    assert config_of(FAMILIES["modernbert"], hf_config(FAMILIES["modernbert"], cfg), "mlm") == cfg
    theirs = hf.ModernBertConfig(**old)
    assert [i for i, kind in enumerate(theirs.layer_types) if kind == "full_attention"] == [0, 2]
    assert [theirs.rope_parameters[k]["rope_theta"] for k in ("full_attention", "sliding_attention")] == [900.0, 50.0]


@pytest.mark.parametrize("name, extra, head", [
    ("roberta-mlm", ["roberta.pooler.dense.weight", "roberta.embeddings.position_ids"], "mlm"),
    ("albert-mlm", ["sop_classifier.classifier.weight", "albert.pooler.bias"], "mlm"),
    ("debertav2-mlm", ["lm_predictions.lm_head.dense.weight", "mask_predictions.dense.bias"], "classification"),
    ("electra-rtd", ["generator_predictions.dense.weight"], "classification"),
    ("modernbert-mlm", [], "classification"),
])  # fmt: skip
def test_files_of_the_hub(saved, name, extra, head, tmp_path, caplog):
    """They hold more than one head needs, which a log says; another head starts anew but for what it shares."""
    caplog.set_level(logging.INFO, "ftjax")
    folder = saved(name)[1]
    tensors = load_file(folder / "model.safetensors") | {key: np.ones((2, 2), np.float32) for key in extra}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    _, params = ftjax.load(tmp_path, head=head, num_classes=4 if head == "classification" else 0)
    assert all((key in caplog.text) == ("position_ids" not in key) for key in extra)
    body = flatten(ftjax.load(folder)[1])
    assert all(
        np.array_equal(x, body[k]) for k, x in flatten(params).items() if k.startswith(("embed", "layers", "transf"))
    )
    assert head == "mlm" or params["classifier"]["kernel"].shape == (24, 4)
    assert ("transform" in params) == (head == "mlm" or name.startswith("modernbert"))


@pytest.mark.parametrize("name, key, value", [
    ("roberta-mlm", "hidden_act", "relu"),
    ("roberta-mlm", "pad_token_id", None),
    ("xlmroberta-mlm", "is_decoder", True),
    ("electra-rtd", "hidden_act", "gelu_new"),
    ("albert-mlm", "num_hidden_groups", 2),
    ("albert-mlm", "inner_group_num", 3),
    ("debertav2-mlm", "share_att_key", False),
    ("debertav2-mlm", "position_biased_input", None),
    ("debertav2-mlm", "pos_att_type", ["c2p"]),
    ("debertav2-mlm", "position_buckets", -1),
    ("debertav2-mlm", "conv_kernel_size", 3),
    ("debertav2-conv-mlm", "conv_act", "tanh"),
    ("debertav2-mlm", "attention_head_size", 8),
    ("modernbert-mlm", "classifier_activation", "silu"),
    ("modernbert-mlm", "classifier_pooling", "max"),
    ("modernbert-mlm", "layer_types", ["full_attention"]),
    ("modernbert-mlm", "rope_parameters", {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}),
])  # fmt: skip
def test_unsupported_options(saved, name, key, value):
    options = json.loads((saved(name)[1] / "config.json").read_text()) | {key: value}
    with pytest.raises(UserError, match="sliding_attention" if key == "rope_parameters" else key) as caught:
        config_of(FAMILIES[options["model_type"]], options, "rtd" if name == "electra-rtd" else "mlm")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, fields, what", [
    ("electra-rtd", {"embed_size": 24}, "hidden_size"),
    ("albert-mlm", {"embed_size": 0}, "embed_size > 0"),
    ("debertav2-mlm", {"attention_scale": 0.0}, "attention_scale"),
    ("modernbert-class", {"pooling": "last"}, "pooling='last'"),
    ("modernbert-mlm", {"qkv_bias": True}, "qkv_bias = out_bias"),
    ("albert-mlm", {"shared_layers": False}, "shared_layers=False"),
])  # fmt: skip
def test_what_a_format_cannot_say(saved, name, fields, what):
    cfg = ftjax.load(saved(name)[1])[0].cfg.replace(**fields)
    with pytest.raises(UserError, match=what):
        hf_config(FAMILIES[cfg.family], cfg)
