"""Masked words, next sentences, replaced tokens, spans: runs from scratch, resumption, export."""

import json
import shutil
import warnings
from dataclasses import replace

import jax
import numpy as np
import optax
import peft
import pytest
import torch
import transformers as hf
from books import tokenizers, write_books
from transformers import AutoTokenizer

import ftjax
from configs.default import get_config
from experiments import pretrain_nano
from ftjax import tree
from ftjax.cli.main import main
from ftjax.data.tasks import TASKS
from ftjax.errors import UserError
from ftjax.kinds import KINDS
from ftjax.kinds.masks import masks
from ftjax.plan.program import abstract_parts
from ftjax.train.build import build, load_data
from ftjax.train.checkpoint import read_best
from ftjax.train.evaluate import evaluate_split
from ftjax.train.fields import Fields
from ftjax.train.flops import step_flops
from ftjax.train.loop import train
from ftjax.train.optimizer import OPTIMIZERS
from ftjax.train.restore import load_run
from ftjax.train.save import save_model
from ftjax.train.step import init_state, make_step

LENGTH, NONE = 24, dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "num_layers": 1, "dropout_rate": 0.0}
CONFIGS = {  # objective -> (the tokenizer's kind, config.json)
    "mlm": ("wordpiece", {"model_type": "bert", "architectures": ["BertForMaskedLM"], **SIZES, **NONE}),
    "nsp": ("wordpiece", {"model_type": "bert", "architectures": ["BertForPreTraining"], **SIZES, **NONE}),
    "rtd": (
        "wordpiece",
        {"model_type": "electra", "architectures": ["ElectraForPreTraining"], "embedding_size": 12, **SIZES, **NONE},
    ),
    "spans": (
        "unigram",
        {
            "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 10, "decoder_start_token_id": 0, **T5,
        },
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def novels(tmp_path_factory):
    """A folder of six documents."""
    folder = tmp_path_factory.mktemp("novels")
    write_books(folder)
    return folder


@pytest.fixture(scope="session")
def models(novels, tmp_path_factory):
    """{objective: a Hugging Face folder without weights}."""
    folders, learned = {}, tokenizers(sorted(novels.iterdir()))
    for name, (kind, fields) in CONFIGS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        learned[kind].save_pretrained(folders[name])
        config = {"vocab_size": 96, "max_position_embeddings": 32, "pad_token_id": 0, **fields}
        (folders[name] / "config.json").write_text(json.dumps(config))
    return folders


@pytest.fixture(scope="session")
def configure(models, novels):
    """configure(objective, method, field=value, ...) -> (config, default) of a run from scratch."""

    def get(objective, method="full", model=None, **fields):
        default = get_config(f"model={models[model or objective]},task=text,method={method}")
        config = default.copy_and_resolve_references()
        config.update_from_flattened_dict(
            {
                "task.objective": objective, "task.data": str(novels), "task.max_length": LENGTH, "steps": 6,
                "model.init": "random", "eval_every": 3, "eval_batch_size": 8, "log_every": 3,
                "optimizer.warmup": 0.0, "task.validation_files": "[01].txt",
            } | ({"data.buckets": 1} if objective == "nsp" else {}) | fields
        )  # fmt: skip
        return config, default

    return get


@pytest.fixture(scope="session")
def runs(configure, tmp_path_factory):
    """runs(objective) -> (workdir, result) of a run of six steps, made once."""
    made = {}

    def get(objective):
        if objective not in made:
            workdir = tmp_path_factory.mktemp(objective) / "run"
            made[objective] = workdir, train(*configure(objective), workdir)
        return made[objective]

    return get


METRICS = {
    "mlm": {"loss", "nll", "token_accuracy"},
    "nsp": {"loss", "nll", "token_accuracy", "next_nll", "next_accuracy"},
    "rtd": {"loss", "generator_nll", "accuracy", "replaced", "precision", "recall", "f1"},
    "spans": {"loss", "nll", "token_accuracy"},
}


@pytest.mark.parametrize("objective", METRICS)
def test_a_run_from_scratch(configure, runs, objective):
    workdir, result = runs(objective)
    assert result["metrics"].keys() == METRICS[objective] and np.isfinite(list(result["metrics"].values())).all()
    assert result["best"]["metric"] == "loss" and result["compiles"] == 1
    f, parts = load_run(workdir)
    first = tree.flatten(build(Fields(configure(objective)[0])).variables)
    still = {path for path, x in read_best(workdir).items() if np.array_equal(x, first[path])}
    assert {path for path in still if not path.endswith("attn/k/bias")} == set()  # which no softmax sees
    assert read_best(workdir).keys() == first.keys()
    value, _ = evaluate_split(f, parts, "validation")  # its draws are those of the run's own evaluation
    assert value["loss"] == pytest.approx(result["best"]["value"], rel=1e-5)


@pytest.mark.parametrize(("source", "new"), [("nsp", set()), ("mlm", {"pooler", "classifier"})])
def test_of_the_bases_own_head_what_is_new_trains(configure, models, tmp_path, source, new):
    """By the file; in a plan too, which without one goes by config.json. A random start's is as new as all of it."""

    def trained(parts):
        labels = tree.flatten(parts.labels["params"])
        return {path.split("/")[0] for path, label in labels.items() if label != tree.FREEZE}

    shutil.copytree(models[source], tmp_path, dirs_exist_ok=True)
    config, _ = configure("nsp", "lora", **{"model.path": str(tmp_path), "model.init": "checkpoint"})
    f = Fields(config)
    assert trained(abstract_parts(f)) == new
    ftjax.save(tmp_path, *ftjax.load(models[source], init="random"))
    assert trained(build(f)) == trained(abstract_parts(f)) == new
    said = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (tmp_path / "config.json").write_text(json.dumps(said))  # as of Google's BERT, whose file has more
    assert trained(build(f)) == trained(abstract_parts(f)) == new
    config.model.init = "random"
    assert trained(abstract_parts(Fields(config))) == set()


def test_an_adapter_that_trained_the_bases_head_makes_no_run(models, novels, tmp_path, capsys):
    model, adapter = tmp_path / "model", tmp_path / "adapter"
    shutil.copytree(models["nsp"], model)
    ftjax.save(model, *ftjax.load(models["nsp"], init="random"))
    options = peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["seq_relationship"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, of transformers
        peft.get_peft_model(hf.BertForPreTraining.from_pretrained(model), options).save_pretrained(adapter)
    config = ["--config=configs/default.py:task=text", "--config.task.objective=nsp", f"--config.task.data={novels}"]
    more = [f"--model={model}", f"--workdir={tmp_path / 'run'}", f"--config.task.max_length={LENGTH}"]
    assert main(["import", f"--adapter={adapter}", *config, *more]) == 2
    assert "holds params/classifier/bias, params/classifier/kernel, which this task keeps" in capsys.readouterr().err


def test_a_run_that_lost_its_end_ends_as_before(configure, runs, tmp_path, capfd):
    whole, expected = runs("rtd")
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    for kind in ("last", "best"):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / kind / "6")
    result = train(*configure("rtd"), tmp_path / "run")
    assert "resumed  at step 3" in capfd.readouterr().err
    assert result["metrics"] == expected["metrics"]
    mine, theirs = read_best(tmp_path / "run"), read_best(whole)
    assert mine.keys() == theirs.keys() and all(np.array_equal(mine[path], theirs[path]) for path in theirs)


@pytest.mark.parametrize("objective", ["mlm", "rtd"])
def test_micro_batches_have_masks_of_their_own(configure, objective):
    """A step over two of them sums the two halves under a key each, which is not the whole batch under one."""
    f = Fields(configure(objective, micro_batches=2, batch_size=8)[0])
    parts = build(f)
    batch = next(iter(load_data(f, parts, "train", training=True).batches))
    train_leaves, frozen = tree.split(parts.variables, parts.labels)
    tx, key = optax.sgd(1.0), jax.random.key(3)
    loss = jax.jit(parts.objective.loss)
    step_key = jax.random.fold_in(key, 0)
    halves = jax.device_get(
        [
            loss(parts.variables, {name: x[i::2] for name, x in batch.items()}, jax.random.fold_in(step_key, i))
            for i in range(2)
        ]
    )
    new, metrics = jax.jit(make_step(parts.objective.loss, tx, 2))(init_state(train_leaves, tx), frozen, batch, key)
    weight = sum(half.weight for half in halves)
    np.testing.assert_allclose(metrics["loss"], sum(half.loss for half in halves) / weight, rtol=1e-5)
    assert metrics["weight"] == weight
    one = jax.device_get(loss(parts.variables, batch, step_key))
    assert one.weight == weight and not np.allclose(one.loss / weight, metrics["loss"], rtol=1e-5)
    moved, before = (tree.flatten(x)["params/embed/tokens/embedding"] for x in (new["train"], train_leaves))
    assert not np.array_equal(moved, before)


def test_the_discriminator_and_its_generator_in_transformers(runs, tmp_path):
    workdir, _ = runs("rtd")
    f, parts = load_run(workdir)
    params = parts.variables["params"]
    save_model(f, parts, params, tmp_path / "out", [workdir])
    ids = np.random.default_rng(0).integers(5, 90, (3, 11))
    made = parts.kind.models(parts.setting, params)
    assert set(made) == {"", "generator"} and made["generator"][0].cfg.hidden_size == 8
    for name, cls in (("", hf.ElectraForPreTraining), ("generator", hf.ElectraForMaskedLM)):
        theirs = cls.from_pretrained(tmp_path / "out" / name).eval()
        with torch.no_grad():
            expected = theirs(torch.from_numpy(ids)).logits.numpy()
        model, mine = made[name]
        np.testing.assert_allclose(jax.jit(model.apply)({"params": mine}, ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "generator").mask_token == "[MASK]"


def test_work_of_a_generator(configure):
    f = Fields(configure("rtd")[0])
    parts = build(f)
    b, t, d, e, ffn, own = 2, 8, 16, 12, 24, 8  # a generator of one head
    layer = 4 * d * d + 2 * d * ffn
    body = 2 * (b * t) * (e * d + layer + d * d + d) + 4 * b * t * t * d  # with the head, a score a token
    small = 2 * (b * t) * (e * own + 4 * own * own + 2 * own * ffn // 4) + 4 * b * t * t * own
    small += 2 * b * own * e  # the transform: places that the objective draws are not counted
    assert step_flops(parts.model.cfg, parts.labels, parts.variables, {}, b, t) == 3 * (body + small)


@pytest.mark.parametrize("whole", [False, True])
def test_whole_words_are_asked_for(configure, whole):
    setting = build(Fields(configure("mlm", **{"task.whole_words": whole})[0])).setting
    table = masks(setting)["continues"]
    assert (table is not None and table.any() and len(table) == 96) if whole else table is None


@pytest.mark.parametrize("objective, method, model, fields, says", [
    ("mlm", "full", "spans", {}, "head='mlm' is none of a t5 model: lm, none"),
    ("spans", "full", "mlm", {}, "head='lm' is none of a bert model"),
    ("rtd", "lora", None, {}, "method.name='lora': give full: a new generator has to train"),
    ("rtd", "full", None, {"task.generator_size": 1.5}, "task.generator_size=1.5: give a share of the model's width"),
    ("rtd", "full", None, {"task.detection_weight": 0.0}, "task.detection_weight=0.0: give a number above 0"),
    ("mlm", "full", None, {"task.mask_rate": 1.0}, "task.mask_rate=1.0: give a share between 0 and 1"),
    ("mlm", "full", None, {"task.max_length": 2}, "task.max_length=2 has no room for text; give 3 or more"),
    ("nsp", "full", None, {"task.max_length": 4}, "task.max_length=4 has no room for text; give 5 or more"),
    ("nsp", "prompt", None, {"method.length": 2}, "method.name='prompt' puts tokens of its own into the text: the"),
    ("spans", "prompt", None, {"method.length": 2}, "method.name='prompt' puts tokens of its own into the text: spans"),
    ("spans", "full", None, {"task.mask_rate": 0.5, "task.mean_span": 1.0}, "have 12 spans, and the tokenizer has 8"),
    ("spans", "full", None, {"task.mean_span": 0.5}, "task.mean_span=0.5: give a mean length of 1 or more"),
    ("lm", "full", "spans", {}, "take a decoder, or objective=spans for raw text"),
    ("mlm", "full", None, {"task.mean_span": 2.0}, "config.task.mean_span=2.0: set, but nothing in this run uses it"),
    ("nsp", "full", None, {"data.layout": "packed"}, "data.layout='packed': give auto"),
])  # fmt: skip
def test_what_cannot_be_done(configure, tmp_path, objective, method, model, fields, says):
    with pytest.raises(UserError) as error:
        train(*configure(objective, method, model, **fields), tmp_path / "run")
    assert says in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_without_a_mask(configure, models):
    f = Fields(configure("mlm")[0])
    parts = build(f)
    bare = AutoTokenizer.from_pretrained(models["mlm"])
    bare.mask_token = None
    with pytest.raises(UserError, match="its tokenizer has no mask token; take a masked model's, or objective=lm"):
        parts.kind.objective(parts.setting._replace(tokenizer=bare))


SMALL = dict(hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, ffn_size=24, max_positions=32)


@pytest.mark.parametrize("kind, vocab", [("gpt", 270), ("bert", 90)])
def test_the_nano_models_are_exported(novels, tmp_path, monkeypatch, capsys, kind, vocab):
    """A few steps from books to the Hugging Face directory; the models, and what the trainer is told, are put back."""
    for registry in (OPTIMIZERS, KINDS, TASKS):
        for name in ("muon", "gpt", "bert", "novels"):
            monkeypatch.setitem(registry, name, None)
    monkeypatch.setitem(pretrain_nano.MODELS, kind, replace(pretrain_nano.MODELS[kind], vocab_size=vocab, **SMALL))
    monkeypatch.setattr(pretrain_nano, "BATCH_TOKENS", 128)
    monkeypatch.setattr(pretrain_nano, "init", jax.jit(pretrain_nano.init, static_argnums=0))
    output = tmp_path / "out"
    args = [kind, f"--data={novels}", f"--workdir={tmp_path / 'run'}", f"--output={output}", "--steps=5", "--row=16"]
    pretrain_nano.main(args)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["split"] == "validation" and np.isfinite(found["loss"])
    model, params = ftjax.load(output)
    assert model.cfg.head == ("lm" if kind == "gpt" else "mlm")
    before = tree.flatten(ftjax.load(tmp_path / "run" / "start")[1])
    assert {path for path, x in tree.flatten(params).items() if np.array_equal(x, before[path])} <= {
        "layers/attn/k/bias", "embed/types/embedding"
    }  # fmt: skip
    hf.AutoModel.from_pretrained(output)
    assert json.loads((tmp_path / "run" / "long" / "result.json").read_text())["steps"] == 1
