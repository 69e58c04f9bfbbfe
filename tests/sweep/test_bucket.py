"""Runs and sweeps in a bucket: a storage server of this machine, the real clients and real processes."""

import importlib.util
import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ftjax import files
from ftjax.cli.main import main
from ftjax.errors import UserError
from ftjax.files import (
    Growing,
    as_path,
    create,
    in_bucket,
    make_folder,
    modified,
    read_text,
    whole,
    write_json,
    write_text,
)
from ftjax.sweep.attempt import claim, finish, keep, read_attempts
from ftjax.sweep.record import read, read_rows
from ftjax.sweep.workdir import claim as claim_sweep
from ftjax.sweep.workdir import open_sweep, plan
from tests.sweep.conftest import EXPERIMENT

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gcsfs") is None, reason="needs gcsfs")

TWO = '''"""Two trials of one program."""

from ftjax.sweep import Trial

FIELDS = {"steps": 2, "eval_every": 2, "batch_size": 4, "eval_batch_size": 4, "data.buckets": 1, "model.layers": (0, 1),
          "method.targets": ("attn/q",)}


def trials(scale):
    """A cell, two seeds."""
    sizes = {f"task.{split}_size": 8 for split in ("train", "validation", "test")}
    return [Trial("row", "", seed, "task=vowels", FIELDS | sizes) for seed in (0, 1)]
'''
RUN = [
    "--config=configs/default.py:task=vowels", "--config.steps=6", "--config.eval_every=2", "--config.log_every=1",
    "--config.batch_size=4", "--config.eval_batch_size=4", "--config.data.buckets=1", "--config.model.layers=(0,1)",
    "--config.method.targets=('attn/q',)", *(f"--config.task.{x}_size=8" for x in ("train", "validation", "test")),
]  # fmt: skip
KILLED = """
import os, signal, sys
from ftjax.cli.main import main
from ftjax.train import program

plain = program.device_batches

def until_killed(*args):
    for n, pair in enumerate(plain(*args), start=1):
        if n == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        yield pair

program.device_batches = until_killed
main(["train", *sys.argv[1:]])
"""


def names(storage, bucket):
    """The objects below a path."""
    name, _, inside = bucket.removeprefix("gs://").partition("/")
    return {key.removeprefix(f"{inside}/") for b, key in storage.objects if b == name and key.startswith(inside)}


def test_files(storage, bucket, tmp_path):
    folder = as_path(bucket)
    make_folder(folder)
    assert in_bucket(folder) and str(folder / "x") == f"{bucket}/x" and not names(storage, bucket)
    assert not in_bucket(as_path(str(tmp_path)))
    write_text(folder / "x", "é\n")
    write_json(folder / "x", [1.0, float("nan")])
    assert json.loads((folder / "x").read_text("utf-8")) == [1.0, None]
    assert modified(folder / "x") > 1e9 and names(storage, bucket) == {"x"}
    with pytest.raises(UserError, match=r"cannot write to gs://absent/x: no such bucket"):
        write_text(as_path("gs://absent/x"), "")
    storage.readonly.add("closed")
    for act in (write_text, create):
        with pytest.raises(UserError, match=r"(?s)cannot write to gs://closed/x: .*no permission"):
            act(as_path("gs://closed/x"), "")
    with pytest.raises(UserError, match="folders of this machine"), whole(folder):
        pass


def test_a_bucket_without_gcsfs(monkeypatch):
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gs://a/b: a bucket needs gcsfs: pip install 'ftjax\[gcs\]'"):
        as_path("gs://a/b")


def test_of_those_who_create_at_once_one_does(storage, bucket):
    with ThreadPoolExecutor(8) as pool:
        for n in range(4):
            assert sum(pool.map(lambda who, n=n: create(as_path(f"{bucket}/{n}"), str(who)), range(8))) == 1
    path = as_path(f"{bucket}/0")
    assert create(path, path.read_text())  # the answer to a try of ours was lost
    assert not create(path, "another")


def test_what_is_read_is_of_one_time(storage, bucket):
    path, texts = as_path(bucket) / "x", ["a" * 10, "b" * 1000]
    write_text(path, texts[0])
    name, _, inside = str(path).removeprefix("gs://").partition("/")
    done = threading.Event()

    def rewrite():
        while not done.is_set():
            for text in texts:
                storage.put(name, inside, text.encode(), None)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(rewrite)
        try:
            read = {read_text(path) for _ in range(50)}
        finally:
            done.set()
        writer.result()
    assert read <= set(texts)


def test_files_that_grow(storage, bucket):
    place, up = Growing(as_path(bucket)), as_path(bucket) / "rows"
    with place.file("rows").open("a", buffering=1) as file:
        file.write("a\n")
        place.copy(now=False)
        assert not up.exists()
        place.copy()
        assert up.read_text() == "a\n"
        before = storage.requests
        place.copy()
        assert storage.requests == before
    local = place.folder
    del place
    assert not local.exists()
    place = Growing(as_path(bucket))
    with place.file("rows").open("a") as file:
        file.write("b\n")
    (place.folder / "in").mkdir()
    (place.folder / "in" / "x").write_text("y")
    place.copy()
    assert up.read_text() == "a\nb\n" and (as_path(bucket) / "in" / "x").read_text() == "y"


def test_leases_and_records(bucket, write, finish):
    path = write()
    made = plan(path, "nano", "configs/default.py", [], as_path(bucket))
    assert all(
        str(run.folder).startswith(f"{bucket}/") and run.flags[-1] == f"--workdir={run.folder}" for run in made.runs
    )
    claim_sweep(made, "configs/default.py")
    assert open_sweep(as_path(bucket)).runs == made.runs
    half, held, done, torn = made.runs[:4]
    assert read(half).state == "waiting"
    first = claim(held.folder, 1)
    assert first and claim(held.folder, 1) is None and read(held).state == "running"
    ended = keep(held.folder, first)._replace(ended=None)
    assert finish_attempt(held, ended) == ["preempted"] and read(held).state == "waiting"
    assert claim(held.folder, 2).number == 2
    finish(done, 0.5)
    finish(torn, 0.5)
    assert read(done).state == "done" and read(done).progress[0] == 4
    write_text(torn.folder / "result.json", "{")
    assert read(torn).state == "damaged" and str(torn.folder / "result.json") in read(torn).problem
    stray = as_path(bucket) / "0123" / "seed0" / "config.json"
    write_text(stray, "{}")
    assert made.strays() == [stray.parent]


def finish_attempt(run, attempt):
    """The causes after an attempt's end by preemption."""
    finish(run.folder, attempt, 143, "preempted")
    return [each.cause for each in read_attempts(run.folder)]


def test_two_sweeps_of_real_trials(storage, bucket, tmp_path, capsys):
    (tmp_path / "two.py").write_text(TWO)
    command = [sys.executable, "-m", "ftjax", "sweep", str(tmp_path / "two.py"), f"--workdir={bucket}"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    said = [process.communicate(timeout=400)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert all("2 of 2 runs are done" in text for text in said)
    runs = open_sweep(as_path(bucket)).runs
    for run in runs:
        [attempt] = read_attempts(run.folder)
        assert read(run).state == "done" and attempt.cause == "done"
        assert [row["step"] for row in read_rows(run.folder)] == [2, 2]
        there = names(storage, str(run.folder))
        assert {"config.json", "result.json", "samples.jsonl", "metrics.jsonl"} <= there
        assert any("tfevents" in name for name in there)
        assert '"together"' in attempt.log(run.folder).read_text()
    assert main(["status", f"--workdir={bucket}"]) == 0
    out = capsys.readouterr().out
    assert out.count("| done ") == 2 and f"{runs[0].folder.parent}" in out
    assert main(["table", f"--workdir={bucket}", f"--output={tmp_path / 'report.html'}"]) == 0
    assert f'href="{runs[0].folder}/config.json"' in (tmp_path / "report.html").read_text()
    assert main(["table", f"--workdir={bucket}", "--format=html"]) == 0
    assert "gs://" not in (as_path(bucket) / "report.html").read_text().partition("<table")[2].partition("href")[2]
    write_text(runs[0].folder / "result.json", "{")
    assert main(["table", f"--workdir={bucket}"]) == 1
    said = capsys.readouterr()
    assert "damaged: row, seed 0" in said.out and f"{runs[0].folder}/result.json" in said.err


def test_a_run_that_was_killed_goes_on_and_is_evaluated(storage, bucket, tmp_path, capfd):
    killed = subprocess.run([sys.executable, "-c", KILLED, *RUN, f"--workdir={bucket}"], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    there = names(storage, bucket)
    assert {"config.json", "metrics.jsonl"} <= there and "result.json" not in there
    assert main(["train", *RUN, f"--workdir={bucket}"]) == 0
    assert "resumed  at step" in capfd.readouterr().err
    assert main(["train", *RUN, f"--workdir={tmp_path / 'local'}"]) == 0
    theirs, mine = read_rows(tmp_path / "local"), read_rows(as_path(bucket))
    exact = [[(row["step"], row.get("train/loss"), row.get("eval/loss")) for row in rows] for rows in (mine, theirs)]
    assert exact[0] == exact[1] and [step for step, loss, _ in exact[0] if loss is not None] == [*range(1, 7)]
    mine, theirs = (
        json.loads((folder / "result.json").read_text()) for folder in (as_path(bucket), tmp_path / "local")
    )
    assert mine["metrics"] == theirs["metrics"]
    assert main(["eval", f"--workdir={bucket}", "--split=test"]) == 0 and "eval-test.jsonl" in names(storage, bucket)
    capfd.readouterr()
    assert main(["train", *RUN, f"--workdir={bucket}", "--config.seed=1"]) == 2
    assert "another config" in capfd.readouterr().err


def test_what_prepares_files_takes_a_folder(storage, bucket, write, capsys):
    path = write(EXPERIMENT, ('"steps": 4}', '"steps": 4, "task.files.train": "{prepared}/rows.csv"}'))
    with Path(path).open("a") as file:
        file.write("\n\ndef prepare(scale, folder, fields):\n    pass\n")
    assert main(["sweep", path, f"--workdir={bucket}"]) == 2
    assert "prepares files" in capsys.readouterr().err and not names(storage, bucket)


@pytest.mark.parametrize("kind", ["google.auth.exceptions.DefaultCredentialsError", "aiohttp.ClientOSError"])
def test_a_bucket_that_cannot_be_reached_is_one_line(kind, monkeypatch, capsys):
    importlib.import_module("gcsfs")
    module, _, name = kind.rpartition(".")

    def asked(workdir):
        raise getattr(importlib.import_module(module), name)("no way there")

    monkeypatch.setattr("ftjax.sweep.workdir.open_sweep", asked)
    assert main(["status", "--workdir=gs://absent/x"]) == 1
    assert capsys.readouterr().err == "ftjax: the bucket cannot be reached: no way there\n"
