"""Adapter folders and methods that cannot cross: one line that names all that is wrong, and nothing written."""

import functools
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ftjax
from configs import method as configs
from ftjax import methods
from ftjax.errors import UserError
from ftjax.hub import peft
from ftjax.hub.peft.files import CONFIG, WEIGHTS
from ftjax.models.transformer import sites

known = functools.cache(sites)


def message(call, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def written(make, tmp_path):
    """written(method, shape, fields, **options of write) -> the folder, of adapters that are all zeros."""

    def write(name, shape="gpt2", fields=(), head="lm", **options):
        made = make(shape, head=head)
        method, cfg = methods.get(name), configs.get(name)
        cfg.update_from_flattened_dict(dict(fields))
        init = functools.partial(method.init, methods.Context(made.cfg, made.params, known(made.model)), cfg)
        shapes = jax.eval_shape(init, jax.random.key(0))
        adapters = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        peft.write(tmp_path / "out", made.model, made.params, name, cfg, adapters, **options)
        return tmp_path / "out"

    return write


@pytest.fixture
def changed(written, make):
    """changed(config changes, tensor changes, *args of written) -> what reading says; a change to None removes."""

    def read(config=(), tensors=(), name="lora", shape="gpt2", fields=(), head="lm"):
        folder = written(name, shape, fields, head)
        options = json.loads((folder / CONFIG).read_text()) | dict(config)
        (folder / CONFIG).write_text(json.dumps(options))
        held = {k: np.asarray(x) for k, x in (load_file(folder / WEIGHTS) | dict(tensors)).items() if x is not None}
        save_file(held, folder / WEIGHTS)
        made = make(shape, head=head)
        text = message(ftjax.load_adapter, folder, made.model, made.params)
        assert str(folder) in text
        return text

    return read


KEY = "base_model.model.transformer.h.{}.attn.c_attn.lora_{}.weight"
QKV = dict(targets=("qkv",), rank=2)


def test_all_that_is_wrong_in_one_line(changed):
    options = dict(bias="all", use_qalora=True, trainable_token_indices=[1], new_option=3, init_lora_weights="pissa")
    tensors = {KEY.format(0, "A"): None, KEY.format(1, "A"): None, "base_model.model.extra": np.ones(1, np.float32)}
    tensors[KEY.format(1, "B")] = np.ones((5, 2), np.float32)
    text = changed(options, tensors, fields=QKV)
    assert all(f"{key}=" in text for key in options)
    assert "missing: base_model.model.transformer.h.{0,1}.attn.c_attn.lora_A.weight" in text
    assert "unexpected: base_model.model.extra" in text and "[5, 2] (this base needs [48, 2])" in text


@pytest.mark.parametrize("config, words", [
    (dict(peft_type="LOHA"), ["LOHA", "ADAPTION_PROMPT"]),
    (dict(peft_type=None), ["peft_type=None"]),
    (dict(exclude_modules=["c_fc"]), ["exclude_modules"]),
    (dict(target_modules=["c_attn", "k_proj"]), ["'k_proj' names no module of this gpt2 model", "h.*.attn.c_attn"]),
    (dict(target_modules="query"), ["'query' names no module"]),
    (dict(target_modules="("), ["no regular expression"]),
    (dict(target_modules=None), ["target_modules=None"]),
    (dict(target_modules=["wpe"]), ["no adapter can act on transformer.wpe"]),
    (dict(target_modules=".*c_attn", layers_to_transform=[0]), ["layers_to_transform"]),
    (dict(r=0), ["r=0"]),
    (dict(r=3), ["[2, 16] (this base needs [3, 16])"]),
    (dict(lora_alpha="x"), ["lora_alpha='x'"]),
    (dict(alpha_pattern={"c_attn": "x"}), ["alpha_pattern"]),
    (dict(use_dora=True), ["missing", "lora_magnitude_vector"]),
    (dict(modules_to_save=["lm_head"]), ["lm_head", "modules_to_save"]),
])  # fmt: skip
def test_options(changed, config, words):
    text = changed(config, fields=QKV)
    assert all(word in text for word in words), text


def test_another_base(written, make):
    folder, other = written("lora", fields=QKV), make("gpt2", hidden_size=8, head_dim=4)
    assert "[2, 16] (this base needs [2, 8])" in message(ftjax.load_adapter, folder, other.model, other.params)
    other = make("llama")
    assert "names no module of this llama model" in message(ftjax.load_adapter, folder, other.model, other.params)
    other = make("gpt2", num_layers=1)
    text = message(ftjax.load_adapter, folder, other.model, other.params)
    assert "unexpected: base_model.model.transformer.h.1.attn.c_attn.lora_A.weight" in text


def test_other_types(changed):
    assert "prompt_embeddings [3, 16] (this base needs [4, 16])" in changed(
        dict(num_virtual_tokens=4), name="prompt", fields=dict(length=3, init="random")
    )
    assert "num_transformer_submodules=2" in changed(
        dict(num_transformer_submodules=2), name="prompt", fields=dict(length=3, init="random")
    )
    of_peft = dict(definition="peft", length=3)
    assert "prompt_embeddings" in changed((), dict(prompt_embeddings=None), "prefix", fields=of_peft)
    assert "adapter_layers=5: the base has 2 layers" in changed(
        dict(adapter_layers=5), (), "llama_adapter", fields=of_peft
    )
    assert "target_modules='mlp'" in changed(dict(target_modules="mlp"), (), "llama_adapter", fields=of_peft)
    assert "ia3_l [48, 1] (this base needs [1, 16])" in changed(dict(feedforward_modules=["c_attn"]), (), "ia3")


def test_adaption_prompt_of_bert(written, make):
    folder, bert = written("llama_adapter", fields=dict(definition="peft", length=3)), make("bert")
    assert "ADAPTION_PROMPT' of a bert model" in message(peft.read, folder, bert.model, bert.params)


def test_a_copy_of_the_base_that_is_none(changed):
    name = "base_model.model.transformer.wte.base_layer.weight"
    assert f"unexpected: {name}" in changed((), {name: np.ones((50, 16), np.float32)}, fields=dict(targets=("embed",)))


def test_a_head_needs_a_run(changed):
    assert "ftjax import --adapter=" in changed(shape="bert", head="classification")


def test_bad_files(written, make, tmp_path):
    made = make("gpt2")
    read = lambda folder: message(peft.read, folder, made.model, made.params)  # noqa: E731
    assert "no adapter_config.json" in read(tmp_path / "nowhere")
    folder = written("lora", fields=QKV)
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:100])
    assert "corrupt or truncated" in read(folder)
    save_file({"a": np.ones(1, np.int8)}, folder / WEIGHTS)
    assert "a (int8)" in read(folder)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    assert "adapter_model.bin is a pickle" in read(folder)
    save_file({}, folder / WEIGHTS)
    for content, word in [("{", "no valid json"), ("[]", "json object")]:
        (folder / CONFIG).write_text(content)
        assert word in read(folder)


SLOTS = dict(template="{1}{text}{2}")
TEMPLATE = dict(template="{3}{text}")
HEADED = dict(head="classification")


@pytest.mark.parametrize("name, shape, fields, options, words", [
    ("full", "gpt2", {}, {}, ["'full'", "--format=hf"]),
    ("bitfit", "gpt2", {}, {}, ["--format=hf"]),
    ("adapter", "gpt2", {}, {}, ["'adapter' has no type in PEFT"]),
    ("prefix+lora", "gpt2", {}, {}, ["prefix+lora"]),
    ("lora", "gpt2", dict(targets=("classifier",), rank=2), HEADED, ["method.targets", "classifier"]),
    ("prompt", "bert", dict(init="random"), HEADED, ["method.inside"]),
    ("prompt", "bert", dict(init="random", inside=False), dict(head="mlm"), ["head='mlm'"]),
    ("prompt", "gpt2", dict(init="random", inside=True), {}, ["method.inside=True"]),
    ("p_tuning", "gpt2", SLOTS, {}, ["method.template"]),
    ("p_tuning", "gpt2", TEMPLATE, {}, ["method.definition='paper'"]),
    ("p_tuning", "bert", dict(definition="peft", **TEMPLATE), HEADED, ["method.definition='peft'"]),
    ("llama_adapter", "gpt2", {}, {}, ["method.gate", "method.tanh", "method.definition"]),
    ("llama_adapter", "llama", dict(gate="scalar"), {}, ["method.tanh"]),
    ("llama_adapter", "llama", dict(definition="peft", gate="head"), {}, ["method.gate"]),
    ("llama_adapter", "llama", dict(definition="peft"), HEADED, ["classifier"]),
    ("llama_adapter", "llama", dict(definition="peft"), {}, ["hidden size"]),
    ("llama_adapter", "bert", dict(definition="peft"), dict(head="mlm"), ["not on bert"]),
])  # fmt: skip
def test_what_peft_cannot_say(written, tmp_path, name, shape, fields, options, words):
    text = message(written, name, shape, fields, **options)
    assert all(word in text for word in words), text
    assert not any(tmp_path.iterdir())


def test_an_unwritable_place(written, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / WEIGHTS).mkdir()  # a folder where the file goes
    assert "cannot write to" in message(written, "lora", fields=QKV)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
