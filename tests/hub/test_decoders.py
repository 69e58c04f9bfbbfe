"""Decoders: the numbers of transformers beyond the window and under scaled rotations, and its files bit for bit."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers as hf
from safetensors.numpy import load_file

import ftjax
from ftjax.errors import UserError
from ftjax.hub import FAMILIES
from ftjax.hub.family import REQUIRED, config_of
from ftjax.models.transformer import empty_cache
from ftjax.tree import flatten

T, WINDOW = 12, 3
SPECIAL = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHAPE = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2} | {
    "head_dim": 10,
    "intermediate_size": 28,
    "max_position_embeddings": 32,
    **SPECIAL,
}
FULL, SLIDING = "full_attention", "sliding_attention"
PLAIN = {"rope_type": "default", "rope_theta": 20.0}
LINEAR = {"rope_type": "linear", "rope_theta": 50.0, "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 50.0, "factor": 8.0, "low_freq_factor": 0.2, "high_freq_factor": 2.0} | {
    "original_max_position_embeddings": 16  # turns of 2.5 to 0.1: kept, on the ramp, and slowed
}
CAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
CONFIGS = {
    "gpt": hf.OpenAIGPTConfig(n_embd=24, n_layer=3, n_head=4, n_positions=16, **SPECIAL),
    "llama": hf.LlamaConfig(**SHAPE, rope_parameters=LLAMA3),
    "mistral": hf.MistralConfig(**SHAPE, rope_parameters=PLAIN, sliding_window=WINDOW),
    "qwen2": hf.Qwen2Config(
        **SHAPE, rope_parameters=LINEAR, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen3": hf.Qwen3Config(
        **SHAPE, rope_parameters=LLAMA3, use_sliding_window=True, sliding_window=WINDOW, tie_word_embeddings=True,
        layer_types=[SLIDING, FULL, SLIDING],
    ),
    "gemma2": hf.Gemma2Config(**SHAPE, **CAPS, rope_parameters=PLAIN, sliding_window=WINDOW, query_pre_attn_scalar=7),
    "gemma3": hf.Gemma3TextConfig(
        **SHAPE, rope_parameters={FULL: LINEAR, SLIDING: PLAIN}, sliding_window=WINDOW, sliding_window_pattern=2,
        query_pre_attn_scalar=7,
    ),
    "olmo2": hf.Olmo2Config(**SHAPE, rope_parameters=LINEAR, attention_bias=True),
}  # fmt: skip
AUTO = {"lm": hf.AutoModelForCausalLM, "classification": hf.AutoModelForSequenceClassification} | {
    "tagging": hf.AutoModelForTokenClassification,
    "none": hf.AutoModel,
}
CASES = [(name, head) for name in CONFIGS for head in ("lm", "classification")]
CASES += [("gpt", "none"), ("qwen3", "none"), ("qwen3", "tagging")]


@pytest.fixture(scope="module")
def twin(saver):
    """twin(name, head) -> (torch model, its folder), made once."""

    def make(name, head):
        return AUTO[head].from_config(type(CONFIGS[name])(**CONFIGS[name].to_dict() | {"num_labels": 3}))

    get = saver({f"{name}-{head}": functools.partial(make, name, head) for name, head in CASES})
    return lambda name, head="lm": get(f"{name}-{head}")


def rows(side):
    """ids, mask, positions `[3, T]`: 12, 7 and 2 tokens, padded on that side; or `[6, T]`, on both in turn."""
    if side == "both":
        return tuple(np.concatenate(each) for each in zip(rows("right"), rows("left")))
    lengths, column = np.array([[T], [7], [2]]), np.arange(T)
    mask = (column < lengths if side == "right" else column >= T - lengths).astype(np.int64)
    ids = np.where(mask, np.random.default_rng(0).integers(3, 40, mask.shape), 0)
    return ids, mask, np.maximum(mask.cumsum(1) - 1, 0)


def theirs(model, side):
    """Logits (the hidden states of a bare model) and all hidden states, of real tokens."""
    ids, mask, positions = (torch.from_numpy(x) for x in rows(side))
    with torch.no_grad():
        out = model(ids, attention_mask=mask, position_ids=positions, output_hidden_states=True)
    last = out.logits if "logits" in out else out.last_hidden_state
    return on_tokens(last.numpy(), np.stack([h.numpy() for h in out.hidden_states]), side)


def ours(model, params, side):
    ids, mask, _ = rows(side)
    out = model.apply({"params": params}, ids, mask, output_hidden_states=True)
    last = out.last_hidden if out.logits is None else out.logits
    return on_tokens(np.asarray(last), np.asarray(out.hidden_states), side)


def on_tokens(last, hidden, side):
    real = rows(side)[1].astype(bool)
    return last[real] if last.ndim == 3 else last, hidden[:, real]


def error(mine, reference):
    return np.abs(np.asarray(mine) - reference).max() / np.abs(reference).max()


@pytest.fixture(params=CASES, scope="module", ids="-".join)
def case(request):
    """One model's tests after another: a second load of it finds the shapes of its parameters known."""
    return request.param


def test_logits_and_hidden_states(twin, case):
    torch_model, folder = twin(*case)
    model, params = ftjax.load(folder, scan_unroll=-1)
    assert model.cfg.head == case[1]
    for mine, reference in zip(ours(model, params, "both"), theirs(torch_model, "both"), strict=True):
        assert error(mine, reference) <= 1e-5


@pytest.mark.parametrize("name, fields", [
    ("llama", {"rope_scaling": None}),
    ("mistral", {"window": 0}),
    ("mistral", {"window": WINDOW + 1}),
    ("qwen2", {"rope_scaling": None}),
    ("qwen2", {"global_layers": (1,)}),
    ("qwen3", {"global_layers": ()}),
    ("gemma2", {"attention_softcap": 0.0}),
    ("gemma2", {"logit_softcap": 0.0}),
    ("gemma2", {"attention_scale": 0.0}),
    ("gemma2", {"embed_scale": 1.0}),
    ("gemma3", {"window_rope_theta": 50.0}),
    ("gemma3", {"rope_scaling": None}),
    ("olmo2", {"rope_scaling": None}),
])  # fmt: skip
def test_the_options_matter_here(twin, name, fields):
    torch_model, folder = twin(name)
    assert error(ours(*ftjax.load(folder, scan_unroll=-1, **fields), "left")[0], theirs(torch_model, "left")[0]) > 1e-3


KERNELS = {"embed/tokens/embedding": "embed_tokens.weight", "layers/attn/k/kernel": "k_proj.weight"}
GRADIENTS = {
    "gpt": {"embed/tokens/embedding": "tokens_embed.weight", "layers/ffn_norm/scale": "ln_2.weight"},
    "qwen3": {**KERNELS, "layers/attn/q_norm/scale": "q_norm.weight"},
    "gemma3": {
        **KERNELS,
        "layers/attn/k_norm/scale": "k_norm.weight",
        "layers/ffn_post_norm/scale": "post_feedforward_layernorm.weight",
    },
    "olmo2": {**KERNELS, "layers/attn/q_norm/scale": "q_norm.weight", "layers/attn_norm/scale": "post_attention"},
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(twin, name):
    """Those of a mean loss over real tokens."""
    torch_model, folder = twin(name)
    model, params = ftjax.load(folder)
    ids, mask, positions = rows("right")
    labels = np.where(mask, np.roll(ids, -1, 1), -100)
    torch_model.zero_grad()
    out = torch_model(*(torch.from_numpy(x) for x in (ids, mask)), position_ids=torch.from_numpy(positions))
    torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), torch.from_numpy(labels).flatten()).backward()
    reference = {k: p.grad.numpy() for k, p in torch_model.named_parameters() if p.grad is not None}

    def loss(p):
        logits = model.apply({"params": p}, ids, mask).logits
        each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        return (each * (labels >= 0)).sum() / (labels >= 0).sum()

    grads = flatten(jax.jit(jax.grad(loss))(params))
    for path, pattern in GRADIENTS[name].items():
        found = [g.T if path.endswith("kernel") else g for k, g in reference.items() if pattern in k]
        assert error(grads[path], np.stack(found) if path.startswith("layers/") else found[0]) <= 1e-4, path


@pytest.mark.parametrize("name", CONFIGS)
def test_cached_decoding(twin, name):
    """Half of the tokens at once, then one by one over the window, by a scan of the layers."""
    model, params = ftjax.load(twin(name)[1])
    ids, mask, positions = rows("left")
    step = jax.jit(lambda p, cache, i, m, at: model.apply({"params": p}, i, m, position_ids=at, cache=cache))
    cache, found = empty_cache(model.cfg, 3, T), []
    for part in (slice(0, T // 2), *(slice(i, i + 1) for i in range(T // 2, T))):
        out = step(params, cache, ids[:, part], mask[:, part], positions[:, part])
        cache = out.cache
        found.append(np.asarray(out.logits))
    logits = np.concatenate(found, 1)[mask.astype(bool)]
    assert error(logits, theirs(twin(name)[0], "left")[0]) <= 1e-5


def test_export(twin, case, tmp_path):
    torch_model, folder = twin(*case)
    model, params = ftjax.load(folder, scan_unroll=-1)
    ftjax.save(tmp_path, model, params, extra={"pad_token_id": 0})
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path))
    assert before.keys() == after.keys()
    assert all(before[k].tobytes() == after[k].tobytes() and before[k].dtype == after[k].dtype for k in after)

    again = AUTO[case[1]].from_pretrained(tmp_path).eval()
    assert type(again) is type(torch_model)
    if case[1] == "lm":
        for x, y in zip(theirs(torch_model, "left"), theirs(again, "left"), strict=True):
            assert error(x, y) <= 1e-6
    reread, params_again = ftjax.load(tmp_path, scan_unroll=-1)
    assert reread == model
    assert jax.tree.all(jax.tree.map(np.array_equal, params, params_again))


def changed(twin, tmp_path, name, options):
    """A folder with these options instead; None removes one."""
    folder = twin(name)[1]
    found = json.loads((folder / "config.json").read_text()) | options
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in found.items() if v is not None}))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    return tmp_path


OLD_LINEAR = {"rope_parameters": None, "rope_theta": 50.0, "rope_scaling": {"type": "linear", "factor": 4.0}}


@pytest.mark.parametrize("name, options", [
    ("gpt", {"n_ctx": 16, "tie_word_embeddings": None, "afn": None}),
    ("llama", {"rope_parameters": None, "rope_theta": 50.0, "rope_scaling": LLAMA3}),
    ("mistral", {"rope_parameters": None, "rope_theta": 20.0}),
    ("qwen2", {**OLD_LINEAR, "layer_types": None}),
    ("gemma2", {"rope_parameters": None, "rope_theta": 20.0, "layer_types": None}),
    ("gemma3", {**OLD_LINEAR, "rope_local_base_freq": 20.0, "layer_types": None, "sliding_window_pattern": 2}),
    ("olmo2", OLD_LINEAR),
])  # fmt: skip
def test_old_files(twin, name, options, tmp_path):
    assert ftjax.load(changed(twin, tmp_path, name, options))[0] == ftjax.load(twin(name)[1])[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_absent_options(name):
    theirs = type(CONFIGS[name])().to_dict()
    family = FAMILIES[theirs["model_type"]]
    needed = {key: theirs[key] for key, default in family.options.values() if default is REQUIRED}
    assert config_of(family, needed, "lm") == config_of(family, theirs, "lm")


@pytest.mark.parametrize("name, options, message", [
    ("gpt", {"afn": "tanh"}, "afn='tanh'"),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "needs factor"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("mistral", {"layer_types": [FULL] * 3}, "layer_types"),
    ("qwen2", {"use_sliding_window": False}, "needs a sliding_window"),
    ("qwen3", {"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
    ("qwen3", {"layer_types": [FULL]}, "of 3 layers"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
    ("gemma3", {"rope_parameters": {FULL: PLAIN, SLIDING: LINEAR}}, "only a scaling of 'full_attention'"),
    ("gemma3", {"rope_parameters": LINEAR}, "needs those of"),
    ("gemma3", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping=5.0"),
    ("gemma3", {"model_type": "gemma3", "vision_config": {}}, "model_type='gemma3' .with images. is not one of"),
    ("olmo2", {"num_attention_heads": 5, "head_dim": None}, "5 attention heads"),
])  # fmt: skip
def test_unsupported_options(twin, name, options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        ftjax.load(changed(twin, tmp_path, name, options))


@pytest.mark.parametrize("name, fields, message", [
    ("gpt", {"activation": "gelu"}, "activation"),
    ("llama", {"window": 4}, "window=4"),
    ("mistral", {"global_layers": (1,)}, "global_layers="),
    ("qwen2", {"out_bias": True}, "out_bias=True"),
    ("gemma2", {"embed_scale": 1.0}, "embed_scale"),
    ("gemma3", {"window_rope_theta": 0.0}, "window_rope_theta"),
    ("olmo2", {"norm_order": "pre"}, "norm_order='pre'"),
])  # fmt: skip
def test_what_a_config_cannot_say(twin, name, fields, message, tmp_path):
    model, params = ftjax.load(twin(name)[1])
    with pytest.raises(UserError, match=message):
        ftjax.save(tmp_path, type(model)(model.cfg.replace(**fields)), params)
