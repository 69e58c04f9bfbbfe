"""Whole runs of a tiny GPT-2 by `train`, as the command line calls it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest
from run_files import last_state, rows

from configs.default import get_config
from ftjax import tree
from ftjax.errors import Preempted, RunError, UserError
from ftjax.train import course, program
from ftjax.train.checkpoint import Checkpoints, claim, read_best
from ftjax.train.features import with_features
from ftjax.train.fields import Fields
from ftjax.train.loop import train, train_together
from ftjax.train.restore import build, load_run

FIELDS = {
    "metrics", "best", "steps", "trainable_parameters", "total_parameters", "examples_per_second", "tokens_per_second",
    "peak_memory_bytes", "compiles", "config_hash", "commit", "seed", "wall_seconds",
}  # fmt: skip


def same_run(a, b):
    """Two workdirs hold the same run, bit for bit."""
    assert rows(a) == rows(b)
    for mine, theirs in ((last_state(a), last_state(b)), (read_best(a), read_best(b))):
        assert mine.keys() == theirs.keys()
        for path in mine:
            np.testing.assert_array_equal(mine[path], theirs[path], err_msg=path)
    results = [json.loads((x / "result.json").read_text()) for x in (a, b)]
    for name in ("metrics", "best", "steps", "config_hash"):
        assert results[0][name] == results[1][name]


@pytest.fixture(scope="session")
def text_run(configure, tmp_path_factory):
    """(workdir, result) of a LoRA run, never interrupted, evaluated every 3 of 12 steps."""
    workdir = tmp_path_factory.mktemp("text") / "run"
    return workdir, train(*configure("text", "lora", **TEXT), workdir)


TEXT = {"method.dropout": 0.1, "eval_every": 3, "model.layers": (0,)}
KILLED = """
import json, os, signal, sys
from pathlib import Path
from ml_collections import ConfigDict
from ftjax.train import loop, program

config, default, workdir, at = json.loads(sys.stdin.read())
plain = program.device_batches

def until_killed(*args):
    for n, pair in enumerate(plain(*args)):
        if n == at:
            os.kill(os.getpid(), signal.SIGKILL)
        yield pair

program.device_batches = until_killed
loop.train(ConfigDict(config), ConfigDict(default), Path(workdir))
"""


def test_a_run_that_was_killed_ends_as_the_one_that_was_not(configure, text_run, tmp_path, capfd):
    config, default = configure("text", "lora", **TEXT)
    arguments = json.dumps([config.to_dict(), default.to_dict(), str(tmp_path), 8])
    done = subprocess.run([sys.executable, "-c", KILLED], input=arguments, text=True, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "result.json").exists()
    train(config, default, tmp_path)
    assert "resumed  at step" in capfd.readouterr().err
    same_run(tmp_path, text_run[0])


def test_a_run_that_was_terminated_saves_and_goes_on(configure, text_run, tmp_path, monkeypatch):
    config, default = configure("text", "lora", **TEXT)
    plain, done = program.device_batches, 0
    for at in (1, 6, 7):  # one after the other: before a row, at an evaluation, within a window

        def until_terminated(*args, done=done, at=at):
            for n, pair in enumerate(plain(*args), start=done + 1):
                if n == at:
                    os.kill(os.getpid(), signal.SIGTERM)
                assert n <= at
                yield pair

        with monkeypatch.context() as patch:
            patch.setattr(program, "device_batches", until_terminated)
            with pytest.raises(Preempted, match=f"step {at}"):
                train(config, default, tmp_path)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert not (tmp_path / "result.json").exists()
        done = at
    train(config, default, tmp_path)
    same_run(tmp_path, text_run[0])


class Stopped(Exception):
    """Stands for a kill, in this process."""


@contextlib.contextmanager
def stopped(owner, name, when):
    """A run inside is stopped by the first call of `owner.name` for which `when(call number, *args)`."""
    plain, calls, made = getattr(owner, name), [], []

    def stopping(*args, **kwargs):
        calls.append(1)
        if when(len(calls), *args):
            raise Stopped
        return plain(*args, **kwargs)

    def kept(kind):
        return lambda *args: made.append(kind(*args)) or made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, stopping)
        for kind in ("Checkpoints", "Log"):
            patch.setattr(course, kind, kept(getattr(course, kind)))
        with pytest.raises(Stopped):
            yield
    for opened in made:
        opened.close()


@pytest.fixture(scope="session")
def epochs_run(configure, tmp_path_factory):
    """A full run of 4 epochs of 3 steps, the last batch of each ragged, evaluated at each epoch's end."""
    workdir = tmp_path_factory.mktemp("sst2") / "run"
    return workdir, train(*configure("sst2", "full", **EPOCHS), workdir)


EPOCHS = {"epochs": 4.0, "optimizer.learning_rate": 0.01, "model.layers": (0,)}


SOFT = {"method.prompt.length": 2, "method.prefix.length": 2, "method.prefix.hidden": 4, "method.top_layers.count": 1}


def test_soft_tokens_prefixes_and_cut_rows_resume(configure, tmp_path):
    fields = SOFT | {"task.max_length": 28, "epochs": 2.0}
    config, default = configure("sst2", "prompt+prefix+top_layers", **fields)
    train(config, default, tmp_path / "whole")
    with stopped(course.Log, "progress", lambda call, *_: call == 3):
        train(config, default, tmp_path / "stopped")
    train(config, default, tmp_path / "stopped")
    same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_run_resumes_at_an_epochs_end(configure, epochs_run, tmp_path, caplog):
    """And, where its newest checkpoint is damaged, at the end of the one before."""
    config, default = configure("sst2", "full", **EPOCHS)
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    with stopped(course.Log, "progress", lambda call, *_: call == 7):  # step 10
        train(config, default, whole)
    assert sorted(p.name for p in (whole / "checkpoints" / "last").iterdir()) == ["6", "9"]
    shutil.copytree(whole, damaged)
    for path in (damaged / "checkpoints" / "last" / "9").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    for folder in (whole, damaged):
        train(config, default, folder)
        assert ("checkpoint 9 is damaged" in caplog.text) == (folder == damaged)
        same_run(folder, epochs_run[0])


def test_a_kill_between_the_saves_of_a_best_step_loses_nothing(configure, epochs_run, tmp_path):
    config, default = configure("sst2", "full", **EPOCHS)
    best, seen = epochs_run[1]["best"]["step"], []

    def second_of_best(call, manager, step, *_):
        seen.append(step)
        return seen.count(best) == 2

    with stopped(ocp.CheckpointManager, "save", second_of_best):
        train(config, default, tmp_path)
    train(config, default, tmp_path)
    same_run(tmp_path, epochs_run[0])


def test_a_finished_run(configure, text_run, monkeypatch):
    workdir, result = text_run
    assert result.keys() >= FIELDS
    assert result == json.loads((workdir / "result.json").read_text())
    assert result["compiles"] == 1  # 12 packed steps over more than an epoch
    assert result["steps"] == 12 and result["best"]["metric"] == "perplexity"
    assert result["trainable_parameters"] == 4 * 8 * (16 + 16)
    assert {row["step"] for row in rows(workdir)} == {2, 3, 4, 6, 8, 9, 10, 12}
    monkeypatch.setattr(program, "Compiled", None)  # nothing is run again
    assert train(*configure("text", "lora", **TEXT), workdir) == result
    with pytest.raises(UserError, match=r"holds a run of another config: seed \(0 there, 1 now\)"):
        train(*configure("text", "lora", **TEXT, seed=1), workdir)


def test_a_checkpoint_holds_what_trains_alone(text_run):
    state = last_state(text_run[0])
    leaves = {path for path in state if path.startswith("train/")}
    assert len(leaves) == 8 and all(path.endswith(("/lora/a", "/lora/b")) for path in leaves)
    assert sum(x.size for x in state.values()) <= 3 * text_run[1]["trainable_parameters"] + 10
    assert read_best(text_run[0]).keys() == {path.removeprefix("train/") for path in leaves}


def test_a_run_starts_from_anothers_best_and_stops_early(configure, text_run, tmp_path, capfd):
    """And there is a profile of the steps that it did."""
    fields = TEXT | {"warm_start": str(text_run[0]), "early_stopping": 2, "optimizer.learning_rate": 0.0}
    fields |= {"profile_steps": 4}
    result = train(*configure("text", "lora", **fields | {"eval_every": 1, "log_every": 1}), tmp_path)
    assert result["steps"] == 3 and result["best"]["step"] == 1
    assert any((tmp_path / "profile").rglob("*.xplane.pb"))
    assert "profile  of 1 of 4 steps: it begins at step 3, and no more came" in capfd.readouterr().err
    assert result["best"]["value"] == pytest.approx(text_run[1]["best"]["value"], rel=1e-6)
    for path, x in read_best(text_run[0]).items():
        np.testing.assert_array_equal(read_best(tmp_path)[path], x)
    _, parts = load_run(tmp_path)
    np.testing.assert_array_equal(tree.flatten(parts.variables)[path], x)


def test_a_classifier_is_taken_over_by_the_classes_that_it_is_of_alone(model, tmp_path, caplog):
    """Not by others of the same number, nor in another order, nor where nobody knows any more what they were."""
    kernel = np.ones((16, 2), np.float32)

    def config(task, **fields):
        config = get_config(f"model={model},task={task},method=head")
        config.update_from_flattened_dict({f"task.{name}": x for name, x in {"max_length": 32, **fields}.items()})
        return config

    def run(name, *asked, **fields):
        claim(tmp_path / name, config(*asked, **fields))
        checkpoints = Checkpoints(tmp_path / name)
        checkpoints.save(0, {"train": {"params": {"classifier": {"kernel": kernel}}}}, {}, best=True)
        checkpoints.close()
        return str(tmp_path / name)

    named, gone = run("named", "sst2"), run("gone", "classification", **{"files.train": "gone.jsonl"})
    for start, asked, why in [
        (named, config("sst2"), ""),
        (named, config("classification", classes=("positive", "negative")), "of other classes"),
        (named, config("mnli"), "of other classes"),
        (gone, config("sst2"), "cannot be told (gone.jsonl: "),
    ]:
        kept = not why
        caplog.clear()
        parts = build(Fields(asked), start)
        assert np.array_equal(parts.variables["params"]["classifier"]["kernel"], kernel) == kept
        assert ("classifier/kernel" in parts.fresh) == ("newly initialised here" in caplog.text) == (not kept)
        assert why in caplog.text
    caplog.clear()
    parts = build(Fields(config("mnli")), gone, best={"params/classifier/kernel": kernel})  # to be put in its place
    assert "newly initialised" not in caplog.text
    assert not np.array_equal(parts.variables["params"]["classifier"]["kernel"], kernel)


def test_a_loss_that_is_not_finite_ends_the_run_with_its_last_good_state(configure, tmp_path):
    fields = {"optimizer.learning_rate": 1e30, "optimizer.clip": 0.0, "steps": 20, "eval_every": 20}
    with pytest.raises(RunError, match=r"not finite in a step up to .*lower optimizer\.learning_rate"):
        train(*configure("text", "full", **fields), tmp_path)
    state = last_state(tmp_path)
    assert all(np.isfinite(x).all() for x in state.values())
    assert 1 <= state["step"] < 20 and not (tmp_path / "result.json").exists()


def test_a_head_on_cached_features_learns_as_on_the_body(configure, tmp_path, monkeypatch, capfd):
    fields = {"model.dropout": 0.0, "epochs": 2.0, "model.layers": (0,)}
    config = configure("sst2", "head", **fields)
    other, calls = configure("sst2", "head", **fields, **{"optimizer.learning_rate": 0.1}), []
    monkeypatch.setattr(course, "with_features", lambda *args: calls.append(1) or with_features(*args))
    runs = train_together([(*config, tmp_path / "cached"), (*other, tmp_path / "other")])[:1]
    assert runs[0]["compiles"] == 1 and len(calls) == 2  # of a split for both
    assert f"{8 * 2 * 16 * 2 * 2 / 1e9:.3g} GFLOP each" in capfd.readouterr().err  # rows, classifier, weight gradient
    monkeypatch.setattr(course, "features_are_fixed", lambda parts: False)
    runs.append(train(*config, tmp_path / "body"))
    for a, b in zip(rows(tmp_path / "cached"), rows(tmp_path / "body"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert runs[0]["best"]["value"] == runs[1]["best"]["value"]


def test_nothing_is_written_for_what_is_found_wrong(configure, tmp_path):
    wrong = [
        ({"method.rank": 40}, "method.rank=40"),
        ({"task.max_length": 64}, "over the 32 positions"),
        ({"loss.reduction": "row"}, "loss.reduction='row'"),
        ({"profile_steps": 11}, "profile_steps=11: give at most 10 of 12 steps"),
        ({"model.dropout": 1.0}, "model.dropout=1"),
        ({"task.columns.text": "body"}, "task.columns.text='body': set, but nothing in this run uses it"),
    ]
    for fields, message in wrong:
        with pytest.raises(UserError, match=message):
            train(*configure("text", "lora", **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()
