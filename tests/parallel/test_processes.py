"""Runs of two processes: their numbers, what they write, SIGTERM to one of them, and going on with another number."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ftjax
from configs.default import get_config
from ftjax.cli.main import main
from ftjax.errors import UserError
from ftjax.parallel.processes import join
from ftjax.train.checkpoint import Checkpoints, claim, read_best
from ftjax.train.loop import train

STEPS, SPLITS = 12, ("train", "validation", "test")
FIELDS = {
    "steps": STEPS, "eval_every": 3, "log_every": 2, "batch_size": 4, "eval_batch_size": 4, "model.layers": (0,),
    "data.buckets": 1, "method.rank": 2, **{f"task.{split}_size": 8 for split in SPLITS},
}  # fmt: skip
AXES = "task=vowels,method=lora"
TERMINATED = """
import os, signal, sys, time
from ftjax.cli.main import main
from ftjax.train import loop, program

plain = program.device_batches

def until_terminated(*args):
    for n, pair in enumerate(plain(*args)):
        if n == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5 * (n >= 3))  # until the other one knows
        yield pair

program.device_batches = until_terminated
sys.exit(main(sys.argv[1:]))
"""


def launch(workdir, *codes, fields):
    """[(exit code, errors)] of two processes, each `python -c code train ...`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    given = [f"--config.{name}={value}" for name, value in fields.items()]
    flags = ["train", f"--config=configs/default.py:{AXES},mesh=data2", *given, f"--workdir={workdir}"]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, *flags, f"--distributed=localhost:{port},{i},2"], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ, cwd=Path(__file__).parents[2],
        )
        for i, code in enumerate(codes)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, text) for process, text in zip(started, said)]


PLAIN = "import sys; from ftjax.cli.main import main; sys.exit(main(sys.argv[1:]))"


def alone(workdir, fields):
    """The same run by this process."""
    default = get_config(AXES)
    config = default.copy_and_resolve_references()
    config.update_from_flattened_dict(fields)
    return train(config, default, workdir)


def begun(workdir):
    """FIELDS, to start from a run whose folder is written here: what it trained are words of half the length."""
    embedding = ftjax.load("nano-gpt")[1]["embed"]["tokens"]["embedding"]
    claim(workdir, get_config("task=vowels,method=full"))
    checkpoints = Checkpoints(workdir)
    checkpoints.save(0, {"train": {"params": {"embed": {"tokens": {"embedding": embedding / 2}}}}}, {}, best=True)
    checkpoints.close()
    return FIELDS | {"warm_start": str(workdir)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{name: workdir} of a run by one process, by two of which one was terminated, and of that gone on with by one; it
    starts from another run."""
    folder = tmp_path_factory.mktemp("runs")
    names = {name: folder / name for name in ("one", "two", "two then one")}
    fields = begun(folder / "start")
    alone(names["one"], fields)
    ended = launch(names["two"], PLAIN, TERMINATED, fields=fields)
    assert [code for code, _ in ended] == [143, 143], ended
    assert all("the state is saved at step" in text for _, text in ended)
    shutil.copytree(names["two"], names["two then one"])
    assert not (names["two"] / "result.json").exists()
    ended = launch(names["two"], PLAIN, PLAIN, fields=fields)
    assert [code for code, _ in ended] == [0, 0], ended
    assert all("resumed  at step" in text for _, text in ended)
    alone(names["two then one"], fields)
    return names


@pytest.mark.parametrize("name", ["two", "two then one"])
def test_two_processes_give_the_run_of_one(runs, name):
    assert (runs[name] / "result.json").exists()
    mine, theirs = ([json.loads(line) for line in (runs[x] / "metrics.jsonl").read_text().splitlines()]
                    for x in (name, "one"))  # fmt: skip
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    for row, wanted in zip(mine, theirs):
        values = [key for key in wanted if "per_second" not in key]
        np.testing.assert_allclose([row[key] for key in values], [wanted[key] for key in values], 1e-5, err_msg=values)
    best, wanted = read_best(runs[name]), read_best(runs["one"])
    assert best.keys() == wanted.keys()
    start = {path: np.zeros_like(x) if path.endswith("lora/b") else x for path, x in wanted.items()}
    assert any(np.abs(wanted[path] - start[path]).max() > 1e-4 for path in wanted)
    for path in wanted:
        np.testing.assert_allclose(best[path], wanted[path], 1e-4, 1e-6, err_msg=path)


def test_one_process_writes(runs):
    events = list(runs["two"].glob("events*"))
    assert len(events) == 2  # a start each
    samples = [(runs[name] / "samples.jsonl").read_text() for name in ("one", "two")]
    assert [len(text.splitlines()) for text in samples] == [len(samples[0].splitlines())] * 2
    rates = [json.loads((runs[name] / "result.json").read_text())["examples_per_second"] for name in ("one", "two")]
    assert min(rates) > 0


@pytest.mark.parametrize("told", ["here", "localhost:1", "localhost:1,2,2", "localhost,0,2"])
def test_what_tells_of_no_process(told, capsys):
    with pytest.raises(UserError, match="HOST:PORT,I,N"):
        join(told)


def test_nothing_is_written_before_the_others_are_known(tmp_path, capsys):
    assert main(["train", "--distributed=nowhere", f"--workdir={tmp_path / 'x'}"]) == 2
    assert "HOST:PORT,I,N" in capsys.readouterr().err and not (tmp_path / "x").exists()
