"""Bad checkpoints and arguments: one line that names what is wrong."""

import json
import subprocess
import sys
from fnmatch import fnmatch

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ftjax
from ftjax import hub
from ftjax.errors import UserError
from ftjax.hub import files
from ftjax.nn.config import RopeScaling


@pytest.fixture
def copy(saved, tmp_path):
    """copy(name, config changes, weights changes) -> a folder; a change to None removes."""

    def make(name, config=(), weights=()):
        folder = saved(name)[1]
        options = json.loads((folder / "config.json").read_text()) | dict(config)
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in options.items() if v is not None}))
        tensors = load_file(folder / "model.safetensors") | dict(weights)
        save_file({k: x for k, x in tensors.items() if x is not None}, tmp_path / "model.safetensors")
        return tmp_path

    return make


def message(call, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name, option, value", [
    ("llama", "rope_parameters", {"rope_theta": 1.0, "rope_type": "llama3", "factor": 8.0}),
    ("llama", "hidden_act", "gelu_10"),
    ("llama", "model_type", "mamba"),
    ("llama", "vocab_size", None),
    ("llama", "quantization_config", {"bits": 4}),
    ("llama", "architectures", ["LlamaForQuestionAnswering"]),
    ("gpt2", "scale_attn_by_inverse_layer_idx", True),
    ("gpt2", "n_head", 5),
    ("bert-mlm", "position_embedding_type", "relative_key"),
    ("bert-mlm", "is_decoder", True),
])  # fmt: skip
def test_unsupported_options(copy, name, option, value):
    folder = copy(name, {option: value})
    text = message(ftjax.load, folder)
    assert str(folder) in text and ("heads" if option == "n_head" else option) in text


def test_old_rope_options(copy):
    scaled = {"rope_parameters": None, "rope_theta": 77.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    cfg = ftjax.load(copy("llama", scaled))[0].cfg
    assert cfg.rope_theta == 77.0 and cfg.rope_scaling == RopeScaling("linear", 2.0)
    assert ftjax.load(copy("llama", scaled | {"rope_scaling": None}))[0].cfg.rope_scaling is None
    yarn = {"rope_scaling": {"type": "yarn", "factor": 2}}
    assert "rope_scaling" in message(ftjax.load, copy("llama", scaled | yarn))


def test_all_tensors_at_fault_in_one_line(copy):
    norm, gone = "model.norm.weight", {f"model.layers.{i}.mlp.up_proj.weight": None for i in (0, 1)}
    text = message(ftjax.load, copy("llama", (), gone | {norm: np.ones(7, np.float32), "model.extra": np.ones(1)}))
    assert "missing: model.layers.{0,1}.mlp.up_proj.weight;" in text
    assert "unexpected: model.extra;" in text and "norm.weight [7] (config.json says [24])" in text


def test_more_layers_than_the_config_says(copy):
    assert "unexpected: transformer.h.1.attn.c_attn.bias" in message(ftjax.load, copy("gpt2", {"n_layer": 1}))


def test_biases_without_attention_bias(copy):
    assert "self_attn.q_proj.bias" in message(ftjax.load, copy("llama-bias", {"attention_bias": False}))


def test_a_tied_head_that_differs(copy):
    head = {"lm_head.weight": np.zeros((40, 24), np.float32)}
    assert "no copy of its tied weight: lm_head.weight" in message(ftjax.load, copy("gpt2", (), head))


def test_integers_as_weights(copy):
    weights = {"model.norm.weight": np.ones(24, np.int8)}
    assert "not fp32, fp16 or bf16: model.norm.weight" in message(ftjax.load, copy("llama", (), weights))


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b[:4], lambda b: b"\xff" * 100, lambda b: b""])
def test_truncated_or_corrupt(copy, damage):
    file = copy("gpt2") / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    assert str(file) in message(ftjax.load, file.parent)


def test_bad_files(copy):
    folder = copy("gpt2")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin is a pickle" in message(ftjax.load, folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b.safetensors"}}')
    assert "same folder" in message(ftjax.load, folder)
    (folder / "config.json").write_text("{")
    assert "config.json: no valid json" in message(ftjax.load, folder)
    (folder / "config.json").unlink()
    assert "config.json: not found" in message(ftjax.load, folder)


def test_paths(monkeypatch, tmp_path):
    assert "no such directory" in message(ftjax.load, tmp_path / "absent")
    assert "no such directory" in message(ftjax.load, "a/b/c")
    (tmp_path / "file").touch()
    assert "no such directory" in message(ftjax.load, tmp_path / "file")
    monkeypatch.setattr(files, "ASSETS", tmp_path)
    assert "nano-gpt" in message(ftjax.load, "nano-gpt")


def test_hub(monkeypatch, saved):
    import huggingface_hub

    asked = {}

    def download(name, **patterns):
        asked.update(patterns, name=name)
        return str(saved("gpt2")[1])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert ftjax.load("org/name")[0].cfg.num_layers == 2
    assert asked["name"] == "org/name"
    taken = lambda file: any(fnmatch(file, p) for p in asked["allow_patterns"])  # noqa: E731
    assert taken("model.safetensors") and taken("model-00001-of-00002.safetensors") and taken("spm.model")
    assert not any(map(taken, ("pytorch_model.bin", "consolidated.safetensors", "consolidated-1-of-2.safetensors")))

    def offline(name, **_):
        raise huggingface_hub.errors.LocalEntryNotFoundError("Cannot find it\nin the cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    assert "the hub gave none: Cannot find it" in message(ftjax.load, "org/name")


def test_arguments(saved):
    folder = saved("gpt2")[1]
    assert "hiden_dropout" in message(ftjax.load, folder, hiden_dropout=0.0)
    assert "head='mlm'" in message(ftjax.load, folder, head="mlm")
    assert "num_classes=3 needs" in message(ftjax.load, folder, num_classes=3)
    assert "needs num_classes" in message(ftjax.load, folder, head="classification")


def test_save(saved, tmp_path):
    model, params = ftjax.load(saved("gpt2")[1])
    assert "missing: final_norm/bias, final_norm/scale" in message(
        ftjax.save, tmp_path, model, {k: v for k, v in params.items() if k != "final_norm"}
    )
    odd = type(model)(model.cfg.replace(norm="rmsnorm"))
    assert "cannot say norm='rmsnorm'" in message(ftjax.save, tmp_path, odd, params)
    assert "directory=gs://b/x: give a path of this machine" in message(ftjax.save, "gs://b/x", model, params)
    assert not list(tmp_path.iterdir())


def test_tokenizer(shared, saved):
    assert "512 ids" in message(hub.tokenizer, shared("stories260K"), 500)
    assert len(hub.tokenizer(shared("stories260K"), 512)) == 512
    assert "no tokenizer" in message(hub.tokenizer, saved("bert-bare")[1])


def test_a_tokenizer_of_sentencepiece_alone(monkeypatch, tmp_path):
    (tmp_path / "spm.model").touch()
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    assert f"{tmp_path}: its tokenizer, spm.model, needs the package" in message(hub.tokenizer, tmp_path)


def test_imports_neither_torch_nor_transformers():
    code = "import sys, ftjax.hub, ftjax.decode.generate; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
    code = "import sys, ftjax; print('jax' in sys.modules, ftjax.load.__name__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False load"
