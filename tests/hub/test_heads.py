"""Heads that a file has, lacks, or that the caller wants otherwise."""

import json
import logging

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ftjax
from ftjax.errors import UserError
from ftjax.hub.files import ASSETS
from ftjax.nn.layers import cut
from ftjax.tree import flatten


def test_new_classifier_is_logged_and_seeded(saved, caplog):
    with caplog.at_level(logging.WARNING, "ftjax"):
        model, params = ftjax.load(saved("bert-mlm")[1], head="classification", num_classes=4, seed=1)
    assert "newly initialised (seed 1): classifier/bias, classifier/kernel, pooler/bias, pooler/kernel" in caplog.text
    assert params["classifier"]["kernel"].shape == (24, 4) and model.cfg.pooling == "first"
    assert 0.01 < float(params["classifier"]["kernel"].std()) < 0.03
    again = ftjax.load(saved("bert-mlm")[1], head="classification", num_classes=4, seed=1)[1]
    other = ftjax.load(saved("bert-mlm")[1], head="classification", num_classes=4, seed=2)[1]
    assert (again["classifier"]["kernel"] == params["classifier"]["kernel"]).all()
    assert (other["classifier"]["kernel"] != params["classifier"]["kernel"]).any()


def test_a_kept_pooler(saved):
    torch_model, folder = saved("bert-bare")
    params = ftjax.load(folder, head="classification", num_classes=2)[1]
    np.testing.assert_array_equal(params["pooler"]["kernel"], torch_model.pooler.dense.weight.detach().numpy().T)


def test_a_classifier_of_another_size_is_new(saved, caplog):
    assert ftjax.load(saved("llama-class")[1])[0].cfg.num_classes == 3
    model, _ = ftjax.load(saved("llama-class")[1], head="classification", num_classes=5)
    assert model.cfg.num_classes == 5 and "newly initialised" in caplog.text


def test_mlm_head_of_a_bare_encoder_and_lm_head_dropped(saved):
    params = ftjax.load(saved("bert-bare")[1], head="mlm")[1]
    assert set(params) == {"embed", "layers", "transform", "head"} and (params["transform"]["norm"]["scale"] == 1).all()
    assert set(ftjax.load(saved("llama")[1], head="none")[1]) == {"embed", "layers", "final_norm"}


def test_a_head_that_its_own_file_lacks(saved, tmp_path):
    folder = saved("llama")[1]
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match=r"missing: lm_head\.weight$"):
        ftjax.load(tmp_path)


@pytest.mark.parametrize("dtype, kept", [(np.float16, jnp.float32), (ml_dtypes.bfloat16, jnp.bfloat16)])
def test_stored_dtypes(saved, tmp_path, dtype, kept):
    folder = saved("gpt2")[1]
    tensors = {k: x.astype(dtype) for k, x in load_file(folder / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    model, params = ftjax.load(tmp_path)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(kept)}
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(ftjax.load(tmp_path, dtype=jnp.bfloat16)[1]))
    embedding = tensors["transformer.wte.weight"].astype(kept)
    np.testing.assert_array_equal(params["embed"]["tokens"]["embedding"], embedding)
    ftjax.save(tmp_path / "again", model, params)
    written = load_file(tmp_path / "again" / "model.safetensors")
    assert all((written[k] == tensors[k]).all() and written[k].dtype == kept for k in tensors)


def test_what_is_saved_beside_the_weights(tmp_path):
    """config.json says everything that the base's says; `extra` goes first, and a folder may be its own base."""
    model, params = ftjax.load("nano-gpt")
    ftjax.save(tmp_path, model, params, like="nano-gpt", extra={"pad_token_id": 3})
    ftjax.save(tmp_path, model, params, like=tmp_path, extra={"bos_token_id": 5})
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == json.loads((ASSETS / "nano-gpt/config.json").read_text()) | {"pad_token_id": 3, "bos_token_id": 5}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (ASSETS / "nano-gpt" / name).read_bytes()


def test_shards_old_names_and_a_cut_stack(saved, tmp_path):
    """Shards, the endings gamma and beta, names without the prefix, and harmless buffers."""
    folder = saved("bert-mlm")[1]
    tensors = {k.removeprefix("bert."): x for k, x in load_file(folder / "model.safetensors").items()}
    tensors = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): x
               for k, x in tensors.items()}  # fmt: skip
    tensors["embeddings.position_ids"] = np.arange(16)[None]
    tensors["cls.predictions.decoder.weight"] = tensors["embeddings.word_embeddings.weight"].copy()
    keys = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": keys[::2], "model-00002-of-00002.safetensors": keys[1::2]}
    for name, part in parts.items():
        save_file({k: tensors[k] for k in part}, tmp_path / name)
    index = {"weight_map": {k: name for name, part in parts.items() for k in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    model, params = ftjax.load(tmp_path)
    expected = flatten(ftjax.load(folder)[1])
    assert all((x == expected[k]).all() for k, x in flatten(params).items())

    ftjax.save(tmp_path / "cut", model, {**params, "layers": cut(params["layers"], 3, [1])})
    assert all((x == expected[k]).all() for k, x in flatten(ftjax.load(tmp_path / "cut")[1]).items())

    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"missing: model-00002-of-00002\.safetensors"):
        ftjax.load(tmp_path)
