"""Runs of a tiny student with a teacher, by `train`."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_files import last_state, rows

from configs.default import get_config
from ftjax import tree
from ftjax.errors import UserError
from ftjax.objectives.base import IGNORE
from ftjax.objectives.cross_entropy import cross_entropy
from ftjax.train import course, loop, teacher
from ftjax.train.build import build, load_data
from ftjax.train.cache import write_cache
from ftjax.train.checkpoint import read_best
from ftjax.train.evaluate import evaluate_split
from ftjax.train.fields import Fields
from ftjax.train.flops import step_flops
from ftjax.train.loop import train
from ftjax.train.restore import load_run
from ftjax.train.teacher import load_teacher

pytestmark = pytest.mark.usefixtures("mesh")
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "ran", "home", "again")


@pytest.fixture(scope="module")
def stored(configure, live, tmp_path_factory):
    """The field that names a cache of the teacher's whole vocabulary."""
    out = tmp_path_factory.mktemp("cache")
    write_cache(Fields(configure(**live)[0]), out, k=1000, temperatures=(1.0, 2.0), dtype="float32")
    return {"distill.cache": str(out)}


@pytest.fixture(scope="module")
def whole(configure, live, tmp_path_factory):
    """A run with the teacher itself, at temperature 2."""
    workdir = tmp_path_factory.mktemp("live")
    train(*configure(**live, **{"distill.temperature": 2.0}), workdir)
    return workdir


def losses(workdir):
    return [row["train/loss"] for row in rows(workdir) if "train/loss" in row]


def same(a, b, **tolerance):
    """Two runs' losses and trained leaves."""
    np.testing.assert_allclose(losses(a), losses(b), **tolerance)
    mine, theirs = last_state(a), last_state(b)
    assert mine.keys() == theirs.keys()
    for path in mine:
        np.testing.assert_allclose(mine[path], theirs[path], err_msg=path, **tolerance)


def test_a_teacher_that_is_the_student_moves_nothing(configure, folder, tmp_path):
    fields = {"distill.teacher": str(folder / "student"), "distill.alpha": 1.0}
    config, default = configure(**fields)
    before = tree.flatten(build(Fields(config)).variables)
    train(config, default, tmp_path)
    np.testing.assert_allclose(losses(tmp_path), 0, atol=1e-6)
    for path, x in read_best(tmp_path).items():
        np.testing.assert_allclose(x, before[path], atol=1e-5, err_msg=path)


def test_a_step_by_hand(configure, live, tmp_path):
    """0.3 (KL at temperature 2, times 4) + 0.7 nll, a mean over labels; the step is its gradient."""
    fields = {"distill.alpha": 0.3, "distill.temperature": 2.0, "steps": 1, "eval_every": 1}
    config, default = configure(**live, **fields)
    f = Fields(config)
    parts = build(f)
    batch = {k: jnp.asarray(x) for k, x in next(iter(load_data(f, parts, "train", training=True).batches)).items()}
    model, variables = load_teacher(f, parts, teacher_mesh())
    real = batch["labels"] != IGNORE

    def logits(model, variables):
        ids = {name: batch[name] for name in ("segment_ids", "position_ids")}
        out = model.apply(variables, batch["input_ids"], **ids)
        return jnp.take_along_axis(out.logits, batch["label_positions"][..., None], 1)

    def loss(params):
        s, t = logits(parts.model, {"params": params}), logits(model, variables)
        p, q = jax.nn.softmax(t / 2), jax.nn.log_softmax(s / 2)
        kl = jnp.where(real, jnp.sum(p * (jnp.log(p) - q), -1), 0).sum()
        return (0.3 * 4 * kl + 0.7 * cross_entropy(s, batch["labels"])[1].sum()) / real.sum()

    value, grads = jax.device_get(jax.jit(jax.value_and_grad(loss))(parts.variables["params"]))
    train(config, default, tmp_path)
    np.testing.assert_allclose(losses(tmp_path), [value], rtol=1e-5)
    before, after = tree.flatten(jax.device_get(parts.variables["params"])), read_best(tmp_path)
    for path, g in tree.flatten(grads).items():
        np.testing.assert_allclose(after[f"params/{path}"], before[path] - 0.1 * g, rtol=1e-4, atol=1e-5, err_msg=path)


def teacher_mesh():
    return loop.make_mesh(get_config().mesh)


@pytest.mark.parametrize("method", ["full", "prompt"])
def test_a_cache_of_the_whole_vocabulary_is_the_teacher(configure, live, stored, whole, tmp_path, method):
    """A prompt's too, whose soft tokens the teacher does not see; what trains is the method's alone."""
    fields = {"distill.temperature": 2.0, **({"method.length": 3} if method == "prompt" else {})}
    train(*configure(method=method, **stored, **fields), tmp_path / "cache")
    if method == "prompt":
        whole = tmp_path / "live"
        train(*configure(method=method, **live, **fields), whole)
    same(whole, tmp_path / "cache", rtol=1e-4, atol=1e-6)
    leaves = {path.partition("/")[2] for path in last_state(whole) if path.startswith("train/")}
    assert leaves == set(read_best(whole))
    assert all(path.startswith("params/" if method == "full" else "adapters/") for path in leaves)
    assert len(set(losses(whole))) == 3


def test_micro_batches_change_nothing(configure, live, whole, tmp_path):
    train(*configure(**live, **{"distill.temperature": 2.0}, micro_batches=2), tmp_path)
    same(whole, tmp_path, rtol=1e-4, atol=1e-6)


class Stopped(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("source", ["stored", "on_policy", "policy"])  # on policy with a live teacher
def test_a_stopped_run_ends_as_one_that_was_not(configure, request, tmp_path, source):
    fields = {"steps": 5, "eval_every": 2, "optimizer.momentum": 0.9}
    if source == "policy":
        fields |= {"distill.reward": "pattern:.*a.*", "distill.samples": 3}
    else:
        fields |= {"method.dropout": 0.1} | request.getfixturevalue("stored" if source == "stored" else "live")
    config, default = configure(source if "policy" in source else "token", "lora", **fields)
    train(config, default, tmp_path / "whole")
    opened, plain, calls = [], course.Log.progress, []

    def stop(*args):
        calls.append(1)
        if len(calls) == 3:
            raise Stopped
        return plain(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(course.Log, "progress", stop)
        for kind in ("Checkpoints", "Log"):
            made = getattr(course, kind)
            patch.setattr(course, kind, lambda *args, made=made: opened.append(made(*args)) or opened[-1])
        with pytest.raises(Stopped):
            train(config, default, tmp_path / "stopped")
    for one in opened:
        one.close()
    train(config, default, tmp_path / "stopped")
    same(tmp_path / "stopped", tmp_path / "whole", rtol=0)
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")


def test_a_run_needs_its_teacher_to_train_alone(configure, folder, tmp_path, capfd):
    """It is evaluated, and started from, without; a projection of widths that differ trains beside it."""
    shutil.copytree(folder / "teacher", tmp_path / "teacher")
    fields = {"distill.teacher": str(tmp_path / "teacher"), "distill.hidden": 0.5, "distill.layers": "0:1,1:2"}
    result = train(*configure(**fields), tmp_path / "run")
    said = capfd.readouterr().err
    assert f"teacher  {tmp_path / 'teacher'}: 2 layers of 24" in said and "distill 384" in said
    assert any(path == "distill/projection" and x.shape == (16, 24) for path, x in read_best(tmp_path / "run").items())
    shutil.rmtree(tmp_path / "teacher")
    f, parts = load_run(tmp_path / "run")
    assert set(parts.variables) == {"params", "adapters"}
    scored, _ = evaluate_split(f, parts, "validation")
    assert scored["perplexity"] == pytest.approx(result["best"]["value"], rel=1e-5)
    again = train(
        *configure("none", warm_start=str(tmp_path / "run"), **{"optimizer.learning_rate": 0.0}), tmp_path / "b"
    )
    assert again["best"]["value"] == pytest.approx(result["best"]["value"], rel=1e-5)


def test_classes_by_another_run(configure, tmp_path):
    """A teacher that is a run of LoRA; its cache, of all three classes' worth and fewer, trains the same student."""
    of_classes = {"task": "classification"}
    train(*configure("none", "lora", **of_classes, **{"optimizer.learning_rate": 1.0}), tmp_path / "teacher")
    source = {"distill.teacher": str(tmp_path / "teacher")}
    train(*configure(**of_classes, **source), tmp_path / "live")
    made = write_cache(Fields(configure(**of_classes, **source)[0]), tmp_path / "cache", k=64, temperatures=(1.0,),
                       dtype="float32")  # fmt: skip
    assert made.done == 12
    train(*configure(**of_classes, **{"distill.cache": str(tmp_path / "cache")}), tmp_path / "stored")
    same(tmp_path / "live", tmp_path / "stored", rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("distill", ["sequence", "token"])
def test_a_corpus_takes_the_place_of_the_training_rows(configure, folder, live, tmp_path, distill):
    """Validation stays the task's; with probabilities of the teacher's own words, too."""
    text = [{"prompt": "the cat", "completion": f" {word}", "score": -1.0, "references": ["x"]} for word in WORDS]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in text))
    fields = {
        "distill.corpus": str(tmp_path / "corpus.jsonl"),
    }
    config, default = configure(distill, **fields, **(live if distill == "token" else {}))
    f = Fields(config)
    parts = build(f)
    eos = parts.tokenizer.eos_token
    data = load_data(f, parts, "train", training=True)
    assert [(x.prompt, x.completion) for x in data.examples] == [("the cat", f" {w}{eos}") for w in WORDS]
    assert len(load_data(f, parts, "train", training=False).examples) == 12
    train(config, default, tmp_path / "run")
    assert len(set(losses(tmp_path / "run"))) == 3


def test_the_teacher_s_work_counts(configure, live):
    f = Fields(configure(**live)[0])
    parts = build(f)
    made = load_teacher(f, parts, teacher_mesh())
    variables = {**parts.variables, "teacher": made.variables}
    labels = {**parts.labels, "teacher": jax.tree.map(lambda _: tree.FREEZE, made.variables)}
    count = lambda **more: step_flops(parts.model.cfg, labels, variables, {}, 2, 10, 4, **more)  # noqa: E731
    layer = 24 * 24 + 2 * 24 * 12 + 24 * 24 + 3 * 24 * 24  # q, k and v of half the heads, o, three of the FFN
    by_hand = 2 * 20 * 2 * layer + 2 * 4 * 2 * 10 * 10 * 24 + 2 * 8 * made.model.cfg.vocab_size * 24
    assert count(teacher=made.model.cfg) - count() == by_hand


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"distill.teacher='': give a teacher or a distill.cache"),
        ({"teacher": "teacher", "cache": "x"}, r"distill.teacher='.*': give a teacher or a distill.cache"),
        ({"teacher": "nowhere"}, r"nowhere.*: no such directory"),
        ({"teacher": "other"}, r"distill.teacher=.*other: its vocabulary is not the student's.*distill=sequence"),
        ({"teacher": "teacher", "kind": "l2"}, r"distill.kind='l2'"),
        ({"teacher": "teacher", "hidden": 1.0, "layers": "1-2"}, r"distill.layers='1-2': write student:teacher"),
        ({"teacher": "teacher", "hidden": 1.0, "layers": "1:4"}, r"no pair 1:4"),
        ({"teacher": "teacher", "hidden": -1.0}, r"distill.hidden=-1.0: give a weight"),
        ({"teacher": "teacher", "layers": "1:2"}, r"config.distill.layers='1:2': set, but nothing"),
        ({"teacher": "teacher", "beta": 0.1}, r"config.distill.beta=0.1: set, but nothing"),
        ({"cache": "nowhere"}, r"nowhere/index.json: not found"),
        ({"cache": "CACHE", "hidden": 1.0}, r"a cache has no hidden states"),
        ({"cache": "CACHE", "temperature": 3.0}, r"distill.temperature=3: .* is for 1, 2"),
    ],
)  # fmt: skip
def test_what_is_found_wrong(configure, folder, stored, tmp_path, fields, message):
    places = {name: str(folder / value) for name, value in fields.items() if name in ("teacher", "cache")}
    places |= {"cache": stored["distill.cache"]} if fields.get("cache") == "CACHE" else {}
    with pytest.raises(UserError, match=message):
        train(*configure(**{f"distill.{k}": v for k, v in {**fields, **places}.items()}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_data_another_tokenizer_and_no_corpus(configure, folder, stored, tmp_path):
    with pytest.raises(UserError, match="the cache is of another data"):
        train(*configure(**stored, **{"task.max_train_rows": 10}), tmp_path / "run")
    with pytest.raises(UserError, match="the cache is of another tokenizer"):
        train(*configure(**stored, **{"model.path": str(folder / "other")}), tmp_path / "run")
    with pytest.raises(UserError, match=r"distill.corpus='': give the file"):
        train(*configure("sequence"), tmp_path / "run")
    (tmp_path / "corpus.jsonl").write_text('{"prompt": "a", "completion": " "}\n')
    with pytest.raises(UserError, match=r"corpus.jsonl:1: no text under 'completion'"):
        train(*configure("sequence", **{"distill.corpus": str(tmp_path / "corpus.jsonl")}), tmp_path / "run")


def test_teachers_that_cannot_be(configure, folder, live, tmp_path, monkeypatch):
    train(*configure("none", "prompt", steps=1, eval_every=1, **{"method.length": 3}), tmp_path / "soft")
    with pytest.raises(UserError, match="its method puts tokens of its own into the text"):
        train(*configure(**{"distill.teacher": str(tmp_path / "soft")}), tmp_path / "run")
    for source in (str(folder / "teacher"), str(tmp_path / "soft")):  # before any of it is read
        with monkeypatch.context() as patch, pytest.raises(UserError, match=r"GB of memory are free; write a cache"):
            patch.setattr(teacher.psutil, "virtual_memory", lambda: type("", (), {"available": 1000}))
            patch.setattr(teacher, "hub", None)
            patch.setattr(teacher, "load_run", None)
            train(*configure(**{"distill.teacher": source}), tmp_path / "run")
    with pytest.raises(UserError, match="objective similarity has no scores to compare"):
        similar = {"task": "similarity", **live}
        rows = '{"first": "the cat", "second": "a mat"}\n' * 4
        for split in ("train", "validation"):
            (tmp_path / f"{split}.jsonl").write_text(rows)
        files = {f"task.files.{split}": str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}
        train(*configure(**similar, **files), tmp_path / "run")
