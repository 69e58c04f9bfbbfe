"""PEFT's adapters and ours: the same logits in either direction, the same bits there and back."""

import copy
import functools
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import peft as theirs
import pytest
import torch
import transformers as hf
from safetensors.numpy import load_file
from safetensors.torch import save_file as save_torch

import ftjax
from configs import method as configs
from ftjax import methods, tree
from ftjax.hub import peft
from ftjax.models.transformer import sites

LORA, IA3, PROMPT, PREFIX = theirs.LoraConfig, theirs.IA3Config, theirs.PromptTuningConfig, theirs.PrefixTuningConfig
P_TUNING, ADAPTION = theirs.PromptEncoderConfig, theirs.AdaptionPromptConfig
CLS, LM, P = "SEQ_CLS", "CAUSAL_LM", 3
CONV = {"fan_in_fan_out": True}
LAYERED = {"rank_pattern": {"h.1.attn.c_attn": 3}}  # a rank of one layer: no fields of ours say it

THEIRS = {  # name -> (model, PEFT's config)
    "lora gpt2": ("gpt2", LORA, dict(r=2, lora_alpha=6, target_modules=["c_attn"], lora_dropout=0.1, **CONV)),
    "rslora gpt2": ("gpt2", LORA, dict(r=3, target_modules="all-linear", use_rslora=True, **CONV)),
    "patterns gpt2": (
        "gpt2",
        LORA,
        dict(r=2, target_modules=["c_attn", "c_fc"], layers_to_transform=[1], rank_pattern={"mlp.c_fc": 3},
             alpha_pattern={"h.1.attn.c_attn": 2.5}, **CONV),
    ),
    "layered gpt2": ("gpt2", LORA, dict(r=2, target_modules=["c_attn", "mlp.c_proj"], **LAYERED, **CONV)),
    "embedding gpt2": ("gpt2", LORA, dict(r=2, target_modules=["wte", "attn.c_proj"], **CONV)),
    "dora gpt2": ("gpt2", LORA, dict(r=2, target_modules=["c_attn", "attn.c_proj"], use_dora=True, **CONV)),
    "lora gpt2 class": ("gpt2-class", LORA, dict(r=2, target_modules=["c_attn"], task_type=CLS, **CONV)),
    "lora llama": ("llama", LORA, dict(r=2, target_modules=["q_proj", "v_proj"], task_type=LM)),
    "regex llama": ("llama", LORA, dict(r=2, target_modules=r".*\.(gate_proj|down_proj)|lm_head")),
    "embedding llama": ("llama", LORA, dict(r=2, target_modules=["embed_tokens"])),
    "dora embedding gpt2": ("gpt2", LORA, dict(r=2, target_modules=["wte", "c_attn"], use_dora=True, **CONV)),
    "dora llama": ("llama-bias", LORA, dict(r=2, target_modules="all-linear", use_dora=True)),
    "lora bert": ("bert-mlm", LORA, dict(r=2, target_modules="all-linear")),
    "lora bert class": ("bert-class", LORA, dict(r=2, target_modules=["query", "intermediate.dense"], task_type=CLS)),
    "pooler bert": ("bert-class", LORA, dict(r=2, target_modules=["key"], task_type=CLS, modules_to_save=["pooler"])),
    "dora bert": ("bert-class", LORA, dict(r=2, target_modules=["dense"], task_type=CLS, use_dora=True)),
    "ia3 gpt2": ("gpt2", IA3, dict(task_type=LM)),
    "ia3 llama": ("llama", IA3, dict(task_type=LM)),
    "ia3 bert": ("bert-class", IA3, dict(task_type=CLS)),
    "ia3 other sites": ("llama", IA3, dict(target_modules=["up_proj", "o_proj"], feedforward_modules=["o_proj"])),
    "ia3 regex": ("bert-mlm", IA3, dict(target_modules=r".*layer\.[02].*\.(key|value)", feedforward_modules=[])),
    "prompt gpt2": ("gpt2", PROMPT, dict(num_virtual_tokens=P, task_type=LM)),
    "prompt bert": ("bert-class", PROMPT, dict(num_virtual_tokens=P, task_type=CLS)),
    "p_tuning bert": ("bert-class", P_TUNING, dict(num_virtual_tokens=P, encoder_hidden_size=5, task_type=CLS)),
    "p_tuning lstm": (
        "gpt2", P_TUNING,
        dict(num_virtual_tokens=P, encoder_reparameterization_type="LSTM", encoder_hidden_size=5, task_type=LM),
    ),
    "prefix gpt2": ("gpt2", PREFIX, dict(num_virtual_tokens=P, task_type=LM)),
    "prefix gpt2 class": ("gpt2-class", PREFIX, dict(num_virtual_tokens=P, task_type=CLS)),
    "prefix llama": ("llama", PREFIX, dict(num_virtual_tokens=P, task_type=LM)),
    "prefix llama projected": (
        "llama-bias", PREFIX, dict(num_virtual_tokens=P, prefix_projection=True, encoder_hidden_size=5, task_type=LM)
    ),
    "prefix bert": ("bert-class", PREFIX, dict(num_virtual_tokens=P, task_type=CLS)),
    "adaption gpt2": ("gpt2", ADAPTION, dict(adapter_len=P, adapter_layers=1, task_type=LM)),
    "adaption llama": ("square", ADAPTION, dict(adapter_len=P, adapter_layers=2, task_type=LM)),
}  # fmt: skip
NO_FIELDS = {"layered gpt2", "ia3 other sites", "ia3 regex"}  # more than fields of ours can say
SCALED = {"lora gpt2", "rslora gpt2", "patterns gpt2", "embedding gpt2"}

OURS = {  # name -> (model, method, fields)
    "q and v of gpt2": ("gpt2", "lora", dict(rank=2, alpha=6.0, targets=("attn/q", "attn/v"))),
    "qkv of gpt2": ("gpt2", "lora", dict(rank=2, targets=("qkv", "ffn/up"), dropout=0.1)),
    "scales of gpt2": (
        "gpt2", "lora", dict(rank=3, targets=("attn/[qkv]",), rank_pattern="attn/k:2", alpha_pattern="attn/v:8.5")
    ),
    "dora gpt2": ("gpt2", "lora", dict(rank=2, targets=("attn/q", "attn/v", "attn/o"), dora=True)),
    "dora embedding gpt2": ("gpt2", "lora", dict(rank=2, targets=("embed", "attn/o"), dora=True)),
    "dora qkv gpt2": ("gpt2", "lora", dict(rank=2, targets=("qkv",), dora=True)),
    "pissa gpt2": ("gpt2", "lora", dict(rank=2, targets=("attn/[qv]", "ffn/down"), pissa=True)),
    "layer of gpt2": ("gpt2", "lora", dict(rank=2, targets=("all_linear",), layers=(1,))),
    "embedding of gpt2": ("gpt2", "lora", dict(rank=2, targets=("embed", "head", "attn/o"))),
    "gpt2 class": ("gpt2-class", "lora", dict(rank=2, targets=("attn/q",))),
    "patterns llama": ("llama", "lora", dict(rank=2, targets=("all_linear",), rank_pattern="ffn/up:4", rslora=True)),
    "embedding llama": ("llama", "lora", dict(rank=2, targets=("embed", "head"))),
    "qkv of llama": ("llama", "lora", dict(rank=2, targets=("qkv",))),
    "pissa llama": ("llama", "lora", dict(rank=3, targets=("attn/q", "ffn/gate"), pissa=True, rslora=True)),
    "lora bert": ("bert-class", "lora", dict(rank=2, targets=("all_linear",), layers=(0, 2), alpha_pattern="down:5")),
    "dora bert": ("bert-mlm", "lora", dict(rank=2, targets=("ffn/down", "transform/dense", "head"), dora=True)),
    "bert bare": ("bert-bare", "lora", dict(rank=2)),
    "ia3 gpt2": ("gpt2", "ia3", {}),
    "ia3 llama": ("llama", "ia3", dict(layers=(0,))),
    "ia3 bert": ("bert-class", "ia3", {}),
    "ia3 peft gpt2": ("gpt2-class", "ia3", dict(definition="peft")),
    "ia3 peft llama": ("llama-class", "ia3", dict(definition="peft")),
    "ia3 peft bert": ("bert-mlm", "ia3", dict(definition="peft", layers=(1, 2))),
    "prompt gpt2": ("gpt2", "prompt", dict(length=P)),
    "prompt llama class": ("llama-class", "prompt", dict(length=P)),
    "prompt bert": ("bert-class", "prompt", dict(length=P, inside=False)),
    "p_tuning gpt2": ("gpt2", "p_tuning", dict(template="{3}{text}")),
    "p_tuning peft llama": ("llama", "p_tuning", dict(definition="peft", template="{3}{text}", hidden=4)),
    "prompt bert bare": ("bert-bare", "prompt", dict(length=P, inside=False)),
    "prefix gpt2": ("gpt2", "prefix", dict(length=P, hidden=4)),
    "prefix llama": ("llama", "prefix", dict(length=P, definition="peft")),
    "prefix bert": ("bert-class", "prefix", dict(length=P, hidden=4)),
    "llama_adapter llama": ("square", "llama_adapter", dict(definition="peft", length=P, count=1)),
    "llama_adapter gpt2": ("gpt2", "llama_adapter", dict(definition="peft", length=P)),
    "llama_adapter of the paper, simplified": (
        "square", "llama_adapter", dict(length=P, gate="scalar", tanh=False)
    ),
}  # fmt: skip


@functools.cache
def ids(virtual):
    """So that all runs are 8 tokens long, with the soft ones: what is compiled serves most of them."""
    return np.random.default_rng(1).integers(3, 40, (2, 8 - virtual))


@pytest.fixture(scope="session")
def models(saved, tmp_path_factory):
    """models(name) -> (torch model, its folder): those of `saved`, and a Llama whose heads fill its width."""

    @functools.cache
    def get(name):
        if name != "square":
            return saved(name)
        options = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=40)
        torch.manual_seed(0)
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**options, intermediate_size=32, max_position_embeddings=16)).eval()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        return model, folder

    return get


@pytest.fixture(scope="session")
def base(models):
    """base(name) -> (our model, parameters, its sites), made once."""

    @functools.cache
    def get(name):
        model, params = ftjax.load(models(name)[1], scan_unroll=-1)
        return model, params, sites(model)

    return get


def logits_of(model, params, adapters, virtual=0):
    """Ours, `virtual` soft tokens before the others."""
    rows = np.broadcast_to(np.arange(virtual) + model.cfg.vocab_size, (2, virtual))
    out = model.apply({"params": params, "adapters": adapters}, jnp.asarray(np.concatenate([rows, ids(virtual)], 1)))
    return np.asarray(out.last_hidden if model.cfg.head == "none" else out.logits)


def logits_in_torch(model, virtual):
    tokens = torch.tensor(ids(virtual))
    with torch.no_grad():
        out = model.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    return (out.logits if hasattr(out, "logits") else out[0]).numpy()


def assert_close(mine, other):
    assert mine.shape == other.shape
    np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5 * np.abs(other).max())


@pytest.fixture(scope="session")
def adapter(models, tmp_path_factory):
    """adapter(name) -> (its folder, PEFT's logits): PEFT's own adapter of `THEIRS`, random."""

    @functools.cache
    def get(name):
        model, kind, options = THEIRS[name]
        torch.manual_seed(1)
        folder = tmp_path_factory.mktemp("adapter")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, of tied weights and of embeddings that it saves
            made = theirs.get_peft_model(copy.deepcopy(models(model)[0]), kind(**options))
            for p in made.parameters():
                if p.requires_grad:
                    p.data = 0.3 * torch.randn_like(p) + 0.1
            made.save_pretrained(folder)
            return folder, logits_in_torch(made, P if kind in (PROMPT, P_TUNING) else 0)

    return get


def reloaded(model, folder, virtual):
    """PEFT's logits of a folder of ours, loaded without a warning of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # it asks transformers
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")  # said of any adapter on a tied matrix
        warnings.filterwarnings(
            "ignore", message="fan_in_fan_out is set to True but the target module is `torch.nn.Linear`"
        )
        made = theirs.PeftModel.from_pretrained(copy.deepcopy(model), folder)
    return logits_in_torch(made, virtual)


def config_of(method, fields):
    cfg = configs.get(method)
    cfg.update(fields)
    return cfg


def soft_tokens(method):
    return P if method in ("prompt", "p_tuning") else 0


def with_head(params, head):
    return tree.merge(params, tree.unflatten({path.removeprefix("params/"): x for path, x in head.items()}))


@pytest.mark.parametrize("name", THEIRS)
def test_in_and_out(adapter, base, models, tmp_path, name):
    folder, wanted = adapter(name)
    source, _, options = THEIRS[name]
    model, params, known = base(source)
    found = peft.read(folder, model, params)
    method, virtual = methods.get(found.method), soft_tokens(found.method)
    assert (CLS in options.values()) == bool(found.head)
    adapters = method.expand(found.adapters, params) if found.head else ftjax.load_adapter(folder, model, params)
    params = with_head(params, found.head)
    assert_close(logits_of(model, params, adapters, virtual), wanted)

    cfg = config_of(found.method, found.fields)
    init = functools.partial(method.init, methods.Context(model.cfg, params, known), cfg)
    rebuilt = jax.eval_shape(init, jax.random.key(0))
    assert (jax.tree.map(jnp.shape, rebuilt) == jax.tree.map(jnp.shape, found.adapters)) == (name not in NO_FIELDS)
    if name in SCALED:
        mine, theirs_ = tree.flatten(found.adapters), tree.flatten(init(jax.random.key(0)))
        for path in (path for path in mine if path.endswith(("/scale", "/rate"))):
            np.testing.assert_array_equal(mine[path], theirs_[path], err_msg=path, strict=True)

    head = tuple({path.split("/")[1] for path in found.head})
    out = tmp_path / "out"
    peft.write(out, model, params, found.method, cfg, found.adapters, head=head)
    before, after = load_file(folder / peft.files.WEIGHTS), load_file(out / peft.files.WEIGHTS)
    assert set(after) == {key for key in before if "base_layer" not in key}  # which repeats the base's own weight
    for key, value in after.items():
        np.testing.assert_array_equal(value, before[key], err_msg=key, strict=True)
    assert_close(reloaded(models(source)[0], out, virtual), wanted)


@pytest.mark.parametrize("name", OURS)
def test_out(base, models, randomised, tmp_path, name):
    source, method_name, fields = OURS[name]
    (model, params, known), method, cfg = base(source), methods.get(method_name), config_of(method_name, fields)
    init = functools.partial(method.init, methods.Context(model.cfg, params, known), cfg)
    adapters = init(jax.random.key(0)) if method_name == "lora" else jax.eval_shape(init, jax.random.key(0))
    variables = {"params": params, "adapters": adapters}
    labels = methods.labels(method, variables, cfg, model.cfg)
    random = randomised(variables, scale=0.3)
    variables = jax.tree.map(lambda x, new, label: x if label == tree.FREEZE else new, variables, random, labels)
    params, adapters = variables["params"], variables["adapters"]
    folder = tmp_path / "out"
    peft.write(folder, model, params, method_name, cfg, adapters, base=source, opens=model.cfg.causal is False)
    virtual = soft_tokens(method_name)
    mine = logits_of(model, params, method.expand(adapters, params), virtual)
    assert_close(mine, reloaded(models(source)[0], folder, virtual))
    found = peft.read(folder, model, params)
    adapters = methods.get(found.method).expand(found.adapters, params)
    assert_close(logits_of(model, with_head(params, found.head), adapters, virtual), mine)
    config = json.loads((folder / peft.files.CONFIG).read_text())
    assert config["base_model_name_or_path"] == source and config["inference_mode"] is True


def test_half_precision(adapter, base, tmp_path):
    folder, _ = adapter("lora llama")
    (tmp_path / peft.files.CONFIG).write_text((folder / peft.files.CONFIG).read_text())
    tensors = {key: torch.tensor(x).to(torch.bfloat16) for key, x in load_file(folder / peft.files.WEIGHTS).items()}
    save_torch(tensors, tmp_path / peft.files.WEIGHTS)
    model, params, _ = base("llama")
    a = ftjax.load_adapter(tmp_path, model, params)["layers"]["attn"]["q"]["lora"].a
    wanted = tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"].float().numpy().T
    np.testing.assert_array_equal(a[1], wanted, strict=True)
