"""ftjax methods and merge; runs of methods whose leaves differ from the base's."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

import ftjax
from ftjax import tree
from ftjax.cli.main import main
from ftjax.errors import UserError
from ftjax.hub.files import ASSETS
from ftjax.train.checkpoint import read_config
from ftjax.train.fields import Fields
from ftjax.train.restore import build, load_run

SIZES = ["--config.task.train_size=16", "--config.task.validation_size=4", "--config.steps=2", "--config.eval_every=2",
         "--config.batch_size=4", "--config.eval_batch_size=4", "--config.task.max_length=48",
         "--config.model.scan_unroll=1"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(method, *flags) -> the workdir of two steps of nano-gpt on vowels, made once."""

    @functools.cache
    def run(method, *flags):
        workdir = tmp_path_factory.mktemp(method) / "run"
        config = f"--config=configs/default.py:model=nano-gpt,task=vowels,method={method}"
        assert main(["train", config, f"--workdir={workdir}", *SIZES, *flags]) == 0
        return workdir

    return run


def test_the_table_of_methods(tmp_path, capsys):
    shutil.copy(ASSETS / "nano-gpt" / "config.json", tmp_path)  # there are no weights to read
    assert main(["methods", f"--model={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{tmp_path}: 1,483,200 parameters")
    row = next(line for line in lines if line.startswith("lora"))
    assert row.split()[-5:] == ["40,960", "2.76%", "yes", "the", "base"]


def test_cut_rows_go_on_in_another_method(trained):
    """What top_layers trained of the stack is what a run that starts from it starts with."""
    first = trained("top_layers", "--config.method.count=1")
    second = trained("lora", f"--config.warm_start={first}")
    layers = jax.device_get(load_run(first)[1].variables["params"]["layers"])
    assert set(layers) == {"0:3", "3:4"}
    started = jax.device_get(load_run(second)[1].variables["params"]["layers"])
    base = jax.device_get(ftjax.load("nano-gpt", dtype=np.float32)[1]["layers"])
    for path, x in tree.flatten(started).items():
        np.testing.assert_array_equal(x[3:], tree.flatten(layers["3:4"])[path], err_msg=path)
        np.testing.assert_array_equal(x[:3], tree.flatten(base)[path][:3])
    assert not np.array_equal(started["ffn"]["up"]["kernel"], base["ffn"]["up"]["kernel"])


def test_merge_writes_a_model_that_gives_the_runs_logits(trained, tmp_path, capsys):
    workdir = trained("lora", "--config.optimizer.learning_rate=0.1")
    assert main(["merge", f"--workdir={workdir}", f"--output={tmp_path / 'merged'}"]) == 0
    _, parts = load_run(workdir)
    ids = np.arange(12).reshape(2, 6)
    live = jax.jit(parts.model.apply)(parts.variables, ids).logits
    model, params = ftjax.load(tmp_path / "merged")
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, ids).logits, live, rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "merged" / "tokenizer_config.json").read_text())
    kernels = [np.asarray(tree.flatten(p)["layers/attn/q/kernel"]) for p in (params, parts.variables["params"])]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


@pytest.mark.parametrize("method", ["prompt", "prefix+lora"])
def test_what_cannot_be_merged_says_why(trained, tmp_path, capsys, method):
    workdir = trained(method)
    assert main(["merge", f"--workdir={workdir}", f"--output={tmp_path / 'merged'}"]) == 2
    assert "cannot merge" in capsys.readouterr().err and not (tmp_path / "merged").exists()
    assert jax.tree.leaves(load_run(workdir)[1].variables["adapters"])


def test_a_soft_prompt_that_was_forgotten(trained):
    _, parts = load_run(trained("prompt"))
    model, params = ftjax.load("nano-gpt")
    adapters = parts.method.expand(parts.variables["adapters"], params)
    ids = np.arange(4)[None]
    with pytest.raises(UserError, match="virtual ids"):
        ftjax.generate(model, params, ids, adapters=adapters, max_new_tokens=2)
    out = ftjax.generate(model, params, [parts.around.prompt([1, 2, 3])], adapters=adapters, max_new_tokens=2)
    assert out.shape == (1, 25)


def test_a_run_that_starts_from_trained_weights(trained, tmp_path, capsys):
    """DoRA's norms are those of the weights that it starts from, its adapter is not one of the base's, and a run of
    another alpha cannot take over A and B."""
    first = trained("full", "--config.optimizer.learning_rate=0.01")
    second = trained("lora", f"--config.warm_start={first}", "--config.method.dora=True")
    params = load_run(first)[1].variables["params"]
    magnitude = (
        build(Fields(read_config(second)), str(first)).variables["adapters"]["layers"]["attn"]["q"]["lora"].magnitude
    )
    np.testing.assert_allclose(magnitude, np.linalg.norm(params["layers"]["attn"]["q"]["kernel"], axis=1), rtol=1e-5)
    assert main(["export", f"--workdir={second}", f"--output={tmp_path / 'peft'}"]) == 2
    assert "belongs to the weights that" in capsys.readouterr().err
    config = "--config=configs/default.py:model=nano-gpt,task=vowels,method=lora"
    flags = [f"--config.warm_start={second}", "--config.method.dora=True", "--config.method.alpha=32"]
    assert main(["train", config, f"--workdir={tmp_path / 'third'}", *SIZES, *flags]) == 2
    assert "needs the fields of that run, not alpha=32.0 (16.0 there)" in capsys.readouterr().err
