"""Models that start without a checkpoint's weights, or with some of its layers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import ftjax
from configs.default import get_config
from ftjax import tree
from ftjax.data.tokenizer import train_tokenizer
from ftjax.errors import UserError
from ftjax.kinds import KINDS
from ftjax.models.transformer import abstract
from ftjax.train.build import load_model
from ftjax.train.fields import Fields

ROOT = Path(__file__).parents[2]
SIZES = {"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
BERT = {"model_type": "bert", "architectures": ["BertForMaskedLM"], **SIZES, "intermediate_size": 32}
BERT |= {"max_position_embeddings": 16, "hidden_dropout_prob": 0.25, "initializer_range": 0.1}
T5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": 40, "d_model": 24, "d_kv": 8}
T5 |= {"num_heads": 3, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 3}
ALBERT = {**BERT, "model_type": "albert", "architectures": ["AlbertForMaskedLM"], "embedding_size": 24}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """folder(config.json) -> a directory with it alone."""

    def get(config):
        path = tmp_path_factory.mktemp(config["model_type"])
        (path / "config.json").write_text(json.dumps(config))
        return path

    return get


@pytest.fixture(scope="session")
def bert(folder):
    return folder(BERT)


def same(a, b):
    a, b = tree.flatten(a), tree.flatten(b)
    assert a.keys() == b.keys()
    return {path for path in a if np.array_equal(a[path], b[path])}


def test_a_random_start_is_of_its_seed(bert):
    model, params = ftjax.load(bert, init="random", seed=1)
    assert model.cfg.hidden_dropout == 0.25 and model.cfg.head == "mlm"
    for path, shape in tree.flatten(abstract(model)).items():
        x = tree.flatten(params)[path]
        assert x.shape == shape.shape and x.dtype == jnp.float32
        if path.endswith(("scale", "bias")):
            assert (x == float(path.endswith("scale"))).all(), path
        elif x.size > 300:
            assert 0.08 < x.std() < 0.12, path
    layers = params["layers"]["attn"]["q"]["kernel"]
    assert not np.array_equal(layers[0], layers[1])
    again, other = (ftjax.load(bert, init="random", seed=seed)[1] for seed in (1, 2))
    assert same(params, again) == set(tree.flatten(params))
    assert all(path.endswith(("scale", "bias")) for path in same(params, other))


@pytest.mark.parametrize("config", [T5, ALBERT], ids=lambda config: config["model_type"])
def test_other_shapes(folder, config, tmp_path):
    model, params = ftjax.load(folder(config), init="random", dtype=jnp.bfloat16)
    assert {x.dtype for x in tree.flatten(params).values()} == {jnp.dtype("bfloat16")}
    ftjax.save(tmp_path / "x", model, params)
    assert same(ftjax.load(tmp_path / "x")[1], params) == set(tree.flatten(params))


def test_a_random_classifier(bert, tmp_path):
    model, params = ftjax.load(bert, init="random", head="classification", num_classes=3)
    assert params["classifier"]["kernel"].shape == (24, 3) and params["classifier"]["kernel"].any()
    assert model.cfg.pooler == "dense" and "transform" not in params
    with pytest.raises(UserError, match="needs num_classes"):
        ftjax.load(bert, init="random", head="classification")
    ftjax.save(tmp_path, model, params)  # whose config.json names three classes
    assert ftjax.load(tmp_path, init="random")[0].cfg.num_classes == 3


def test_what_a_random_start_needs(bert, tmp_path):
    with pytest.raises(UserError, match=r"init='fresh': give checkpoint or random"):
        ftjax.load(bert, init="fresh")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"neither model\.safetensors"):
        ftjax.load(bert)
    with pytest.raises(UserError, match=r"config\.json: not found"):
        ftjax.load(tmp_path, init="random")


def fields(path, objective="mlm", **more):
    config = get_config(f"model={path},task=text,method=full")
    config.update_from_flattened_dict({"task.objective": objective} | more)
    return Fields(config)


def loaded(path, objective="mlm", **more):
    return load_model(fields(path, objective, **more), KINDS[objective], ())


@pytest.fixture(scope="session")
def weights(bert, tmp_path_factory):
    """(folder, parameters) of a checkpoint of three layers."""
    model, params = ftjax.load(bert, init="random")
    path = tmp_path_factory.mktemp("weights")
    ftjax.save(path, model, params)
    return path, params


@pytest.mark.parametrize("layers", [(0, 2), (1,), (2, 0)])
def test_layers_that_are_kept(weights, tmp_path, layers):
    path, whole = weights
    model, params = loaded(path, **{"model.layers": layers})
    assert model.cfg.num_layers == len(layers)
    rows = tree.map_paths(lambda name, x: x[np.array(layers)] if name.startswith("layers/") else x, whole)
    assert same(params, rows) == set(tree.flatten(rows))
    ftjax.save(tmp_path / "student", model, params)
    assert same(ftjax.load(tmp_path / "student")[1], rows) == set(tree.flatten(rows))


def test_an_encoder_decoder_keeps_its_encoder(folder, tmp_path):
    ftjax.save(tmp_path / "t5", *ftjax.load(folder(T5), init="random"))
    model, params = loaded(tmp_path / "t5", "spans", **{"model.layers": (2,)})
    assert (model.cfg.num_layers, model.cfg.encoder.num_layers) == (1, 2)
    whole = ftjax.load(tmp_path / "t5")[1]
    assert same(params["encoder"], whole["encoder"]) == set(tree.flatten(whole["encoder"]))
    assert np.array_equal(params["layers"]["cross"]["k"]["kernel"][0], whole["layers"]["cross"]["k"]["kernel"][2])


@pytest.mark.parametrize("more, says", [
    ({"model.layers": (0, 3)}, "model.layers=[0, 3]: give some of the teacher's layers, 0 to 2"),
    ({"model.layers": (0,), "model.init": "random"}, "model.layers=(0,): a random start has no layers to keep"),
    ({"model.init": "zero"}, "model.init='zero': give checkpoint or random"),
])  # fmt: skip
def test_layers_that_are_not_there(weights, more, says):
    with pytest.raises(UserError) as error:
        loaded(weights[0], **more)
    assert str(error.value).startswith(says)


def test_shared_layers_cannot_be_chosen(folder, tmp_path):
    ftjax.save(tmp_path / "albert", *ftjax.load(folder(ALBERT), init="random"))
    with pytest.raises(UserError, match="share one row of parameters"):
        loaded(tmp_path / "albert", **{"model.layers": (0,)})


MESH = """
import sys
import jax
import numpy as np
from ftjax import tree
from ftjax.kinds import KINDS
from ftjax.parallel.mesh import make_mesh
from ftjax.train.build import build, load_model
from ftjax.train.evaluate import device_batches
from ftjax.train.build import load_data
from types import SimpleNamespace
from configs.default import get_config
from ftjax.train.fields import Fields

def fields(path, objective="mlm", **more):
    config = get_config(f"model={path},task=text,method=full")
    config.update_from_flattened_dict({"task.objective": objective} | more)
    return Fields(config)

mesh = make_mesh(SimpleNamespace(data=1, fsdp=2, tensor=2))
for more in ({"model.init": "random"}, {"model.layers": (0, 2)}):
    f = fields(sys.argv[1], **more)
    here, there = (tree.flatten(load_model(f, KINDS["mlm"], (), m)[1]) for m in (None, mesh))
    for path, x in there.items():
        assert np.array_equal(x, here[path]), path
    spread = there["layers/attn/q/kernel"]
    assert spread.addressable_shards[0].data.size == spread.size // 4
f = fields(sys.argv[2], "rtd", **{"model.init": "random", "task.data": sys.argv[2], "task.max_length": 16})
with jax.set_mesh(mesh):
    from ftjax.parallel.mesh import place
    parts = build(f, mesh=mesh)
    variables = place(parts.variables, mesh)
    batch = next(device_batches(load_data(f, parts, "train", training=True).batches, mesh))[1]
    spread = jax.jit(parts.objective.loss)(variables, batch, jax.random.key(0))
here = jax.tree.map(np.asarray, (parts.variables, batch))
alone = jax.jit(parts.objective.loss)(*here, jax.random.key(0))
np.testing.assert_allclose(spread.loss, alone.loss, rtol=1e-4)
"""


def test_on_a_mesh(weights, folder):
    """Random starts, kept layers, and ELECTRA's loss with its generator, on four devices as on one."""
    sizes = {"embedding_size": 24, "num_hidden_layers": 1}
    electra = folder({**BERT, "model_type": "electra", "architectures": ["ElectraForPreTraining"], **sizes})
    for name in ("a", "b"):
        (electra / f"{name}.txt").write_text("the cat sat on a mat. " * 30)
    train_tokenizer("wordpiece", [electra / "a.txt"], 40).save_pretrained(electra)
    env = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", MESH, str(weights[0]), str(electra)], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
