"""What an experiment makes before its trials; nothing is trained here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ftjax.cli.main import main as ftjax
from ftjax.errors import RunError, UserError
from ftjax.files import write_json
from ftjax.sweep import prepare as module
from ftjax.sweep.attempt import claim, finish, read_attempts
from ftjax.sweep.prepare import DONE, is_prepared, main, prepare, prepared_by
from ftjax.sweep.record import read
from ftjax.sweep.trial import digest
from ftjax.sweep.workdir import claim as claim_folder
from ftjax.sweep.workdir import open_sweep, plan
from tests.sweep.conftest import EXPERIMENT

FIELDS = ('"steps": 4}', '"steps": 4, "task.files.train": "{prepared}/rows.csv"}')
PREPARE = (
    "\n\ndef trials(scale)",
    """

def prepare(scale, folder, fields):
    print("preparing", scale)
    with open(folder / "runs", "a") as file:
        file.write(f"{scale} {sorted(fields.items())}\\n")
    (folder / "rows.csv").write_text("name\\nemma\\n")


def trials(scale)""",
)
OVERRIDES = ["--config.batch_size=16", "--config.mesh.data=1"]


@pytest.fixture
def sweep_in(write, tmp_path):
    """sweep_in(folder, *changes) -> the sweep of an experiment that prepares."""

    def make(folder="runs", *changes):
        path = write(EXPERIMENT, FIELDS, PREPARE, *changes)
        return plan(path, "nano", "configs/default.py", OVERRIDES, tmp_path / folder)

    return make


def by_hand(sweep):
    """What the preparing process does, in this one."""
    sweep.prepared.mkdir(parents=True, exist_ok=True)
    code = main(sweep.experiment.path, sweep.scale, str(sweep.prepared), json.dumps(module.told(sweep)))
    digest.cache_clear()
    return code


def test_once_and_in_a_process_of_its_own(sweep_in, tmp_path):
    made, lines = sweep_in(), []
    assert not is_prepared(made) and prepared_by(made) is None
    prepare(made, say=lines.append)
    prepare(made, say=lines.append)
    assert (made.prepared / "runs").read_text() == "nano [('batch_size', 16)]\n"
    assert [line.split()[0] for line in lines] == ["preparing", "prepared"]
    assert [attempt.cause for attempt in read_attempts(made.prepared)] == ["done"]
    assert read_attempts(made.prepared)[0].log(made.prepared).read_text() == "preparing nano\n"
    assert is_prepared(made) and prepared_by(made) == json.loads((made.prepared / DONE).read_text())["commit"]


def test_a_run_is_known_by_what_is_prepared_and_not_by_where(sweep_in, finish, tmp_path):
    before = sweep_in()
    assert by_hand(before) == 0
    made = sweep_in()
    ids = [run.folder.parent.name for run in made.runs]
    assert ids != [run.folder.parent.name for run in before.runs]
    assert f"--config.task.files.train={tmp_path / 'runs' / 'prepared' / 'rows.csv'}" in made.runs[0].flags
    assert made.runs[0].config["task.files.train"] == "{prepared}/rows.csv"
    claim_folder(made, "configs/default.py")
    finish(made.runs[0], 0.5)

    shutil.copytree(tmp_path / "runs", tmp_path / "elsewhere" / "copy")
    digest.cache_clear()
    moved = sweep_in("elsewhere/copy")
    assert [run.folder.parent.name for run in moved.runs] == ids and is_prepared(moved)
    assert [read(run).state for run in moved.runs] == ["done", *["waiting"] * 7]
    (moved.prepared / "rows.csv").write_text("name\nanna\n")
    digest.cache_clear()
    assert not {run.folder.parent.name for run in sweep_in("elsewhere/copy").runs} & set(ids)
    shutil.rmtree(made.prepared)
    digest.cache_clear()
    assert open_sweep(tmp_path / "runs").runs == made.runs
    config = made.runs[0].folder / "config.json"
    config.write_text(config.read_text().replace("prepared/rows", "prepared/other"))
    assert read(made.runs[0]).state == "damaged" and "task.files.train" in read(made.runs[0]).problem


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("scale", "small", "another scale small"),
        ("fields", {"batch_size": 8}, "another fields {'batch_size': 8}"),
        ("experiment", "0", "another experiment's code"),
    ],
)
def test_of_something_else(sweep_in, name, value, word):
    made = sweep_in()
    by_hand(made)
    path = made.prepared / DONE
    write_json(path, json.loads(path.read_text()) | {name: value})
    with pytest.raises(UserError, match=f"{word}.*remove .*{DONE}"):
        prepare(made)
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        is_prepared(made)


def test_nothing_is_prepared_that_no_trial_reads(write, tmp_path):
    made = plan(write(EXPERIMENT, PREPARE), "nano", "configs/default.py", [], tmp_path / "runs")
    assert is_prepared(made) and not made.prepared.exists()


REACHES = (
    "\n\ndef prepare(scale, folder, fields):\n",
    """

NAMES = ["emma"]
NAMES.append("anna")


def rows():
    return NAMES


def prepare(scale, folder, fields):
    rows()
""",
)


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (("A table.", "A table.\n\nFound: nothing."), False),
        (('"steps": 4,', '"steps": 5,'), False),
        (("name\\nemma", "name\\nanna"), True),
        (('NAMES = ["emma"]', 'NAMES = ["eva"]'), True),
        (('NAMES.append("anna")', 'NAMES.append("eva")'), True),
        (("    return NAMES", "    return NAMES[:1]"), True),
    ],
)
def test_code_that_preparing_does_not_reach_may_change(sweep_in, change, again):
    """The docstring, which says what was found, and the trials; what it calls and what that reads may not."""
    by_hand(sweep_in("runs", REACHES))
    changed = sweep_in("runs", REACHES, change)
    if again:
        with pytest.raises(UserError, match="another experiment's code"):
            is_prepared(changed)
    else:
        assert is_prepared(changed)


@pytest.mark.parametrize(
    ("says", "error", "cause", "word"),
    [
        ('from ftjax.errors import UserError; raise UserError("no such data")', UserError, "bad input", "no such data"),
        ("import sys; sys.exit(1)", RunError, "exit code 1", "preparing nano"),
    ],
)
def test_a_failure_leaves_nothing_done(sweep_in, says, error, cause, word):
    made = sweep_in("runs", ('    with open(folder / "runs"', f'    {says}\n    with open(folder / "runs"'))
    with pytest.raises(error, match=rf"table.py: prepare: {word} .*attempt-1\.log"):
        prepare(made, say=lambda line: None)
    assert not (made.prepared / DONE).exists()
    assert [attempt.cause for attempt in read_attempts(made.prepared)] == [cause]


def test_of_two_sweeps_one_prepares(sweep_in, monkeypatch):
    made, lines = sweep_in(), []
    held = claim(made.prepared, 1)
    assert held

    def say(line):
        lines.append(line)
        by_hand(made)
        finish(made.prepared, held, 0, "done")

    monkeypatch.setattr(module, "_attempt", lambda *_: pytest.fail("prepared twice"))
    prepare(made, say=say, pause=0)
    assert len(lines) == 1 and lines[0].startswith("elsewhere") and str(os.getpid()) in lines[0]

    (made.prepared / DONE).rename(made.prepared / "kept")

    def at_last(folder, number):  # the other one ends between a look at what is done and a look at who is at it
        (made.prepared / "kept").rename(made.prepared / DONE)
        return claim(folder, number)

    monkeypatch.setattr(module, "claim", at_last)
    prepare(made, say=pytest.fail)
    assert [attempt.cause for attempt in read_attempts(made.prepared)] == ["done", "done"]


def test_an_interruption_ends_it_and_what_it_started(sweep_in, monkeypatch):
    made, started = sweep_in(), []
    popen = subprocess.Popen
    code = "import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])"
    monkeypatch.setattr(subprocess, "Popen", lambda command, **more: popen([sys.executable, "-S", "-c", code], **more))

    def interrupted(folder, attempt):
        started.append(attempt.processes[-1][0])
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "keep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(made, say=lambda line: None)
    assert not Path(f"/proc/{started[0]}").exists()
    assert [attempt.cause for attempt in read_attempts(made.prepared)] == ["interrupted"]


def test_what_is_no_preparation(write, sweep_in, tmp_path, capsys):
    path = write(EXPERIMENT, FIELDS)
    with pytest.raises(UserError, match=r"one, r=2: \{prepared\}, but the file has no prepare"):
        plan(path, "nano", "configs/default.py", [], tmp_path / "runs")
    made = sweep_in()
    flags = ["sweep", made.experiment.path, *OVERRIDES, f"--workdir={tmp_path / 'runs'}", "--dry_run"]
    assert ftjax(flags) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"to be prepared first: {made.prepared}") and len(out) == 9 and not made.prepared.exists()
    by_hand(made)
    assert ftjax(flags) == 0 and "prepared first" not in capsys.readouterr().out
    (made.prepared / "seed0").mkdir()
    (made.prepared / "seed0" / "config.json").write_text("{}")
    assert made.strays() == []


def test_metrics_by_scale_and_title(sweep_in, finish):
    titles = ("percent = True", 'percent = True\nmetrics = lambda scale: {"a": scale, "b": "f1"}\n')
    made = sweep_in("runs", titles, ('"r=2"): 70', '"r=2 b"): 70'))
    assert made.experiment.metrics == {"a": "nano", "b": "f1"}
