"""What a sweep does with processes that end in every way; the processes here train nothing."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ftjax.errors import UserError
from ftjax.files import write_json
from ftjax.sweep import run as module
from ftjax.sweep.attempt import Attempt, claim, read_attempts
from ftjax.sweep.backend import Local
from ftjax.sweep.record import read
from ftjax.sweep.run import Sweeper


class Fake(Local):
    """Starts processes that end at their second poll as `ends[label]` says: exit codes, or 'done' with a result."""

    def __init__(self, finish, ends=None, says=""):
        super().__init__()
        self.finish, self.ends, self.says = finish, ends or {}, says
        self.started, self.at_once, self.most = [], 0, 0

    def start(self, run, log, group):
        log.write_text(self.says)
        self.started.append(run.label)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        ends = self.ends.get(run.label, ["done"])
        return FakeJob(self, run, ends[min(self.started.count(run.label), len(ends)) - 1])


class FakeJob:
    def __init__(self, backend, run, end):
        self.backend, self.run, self.end, self.polls, self.pid = backend, run, end, 0, os.getpid()

    def poll(self):
        self.polls += 1
        if self.polls < 2:
            return None
        if self.polls == 2:
            self.backend.at_once -= 1
            if self.end == "done":
                self.backend.finish(self.run, 0.5)
        return 0 if self.end == "done" else self.end

    def send_signal(self, sig):
        self.end = -sig


def starting(start):
    """A backend of `start(run, log file)`."""
    backend = Local()
    backend.start = lambda run, log, group: start(run, log)
    return backend


@pytest.fixture
def run_all(finish):
    """run_all(sweep, ends, says, **options of Sweeper) -> (states by label, backend, lines said)."""

    def go(sweep, ends=None, says="", **options):
        backend, lines = Fake(finish, ends, says), []
        records = Sweeper(backend, say=lines.append, pause=0, **options)(sweep.runs)
        return {record.run.label: record.state for record in records}, backend, lines

    return go


LABEL = "one, r=2, seed 1"


def causes(sweep, label=LABEL):
    run = next(run for run in sweep.runs if run.label == label)
    return [attempt.cause for attempt in read_attempts(run.folder)]


@pytest.mark.parametrize("jobs", [1, 3])
def test_all_are_run_once_and_the_next_sweep_runs_none(sweep, run_all, jobs):
    states, backend, lines = run_all(sweep(), jobs=jobs)
    assert set(states.values()) == {"done"} and len(states) == 8
    assert backend.started == list(states) and backend.most == jobs
    assert len(lines) == 8 and all(line.startswith("done") and "accuracy 0.5" in line for line in lines)
    states, backend, lines = run_all(sweep(), jobs=jobs)
    assert set(states.values()) == {"done"} and not backend.started and not lines


@pytest.mark.parametrize(
    ("ends", "options", "state", "seen"),
    [
        ([2], {"retries": 5}, "failed", ["bad input"]),
        ([1, "done"], {}, "done", ["exit code 1", "done"]),
        ([1, -9, "done"], {}, "failed", ["exit code 1", "signal 9"]),
        ([1, -9, "done"], {"retries": 2}, "done", ["exit code 1", "signal 9", "done"]),
        ([0], {"retries": 0}, "failed", ["exit code 0"]),  # an exit code is no result
        ([143, -15, 143, "done"], {"retries": 0}, "done", [*["preempted"] * 3, "done"]),
        ([143], {"preemptions": 2}, "waiting", ["preempted"] * 3),
    ],
)
def test_what_is_tried_again(sweep, run_all, ends, options, state, seen):
    made = sweep()
    states, _, lines = run_all(made, {LABEL: ends}, "Traceback\nftjax: the reason\n", **options)
    assert states.pop(LABEL) == state and set(states.values()) == {"done"}
    assert causes(made) == seen
    assert sum(LABEL in line for line in lines) == len(seen)
    assert all(".log" in line and ("preempted" in line or "the reason" in line) for line in lines if "done" not in line)
    assert run_all(made, {LABEL: ["done"]})[0][LABEL] == "done"  # a new command is a new try


def test_lack_of_memory_is_final(sweep, run_all):
    made = sweep()
    run_all(made, {LABEL: [1]}, "RESOURCE_EXHAUSTED: 3 GB\n", retries=5)
    assert causes(made) == ["out of memory"]


def test_a_result_is_done_whatever_the_exit_code(sweep, finish):
    made = sweep()

    class Job(FakeJob):
        def poll(self):
            finish(self.run, 0.5)
            return 1

    records = Sweeper(starting(lambda run, log: Job(None, run, 1)), say=print, pause=0)(made.runs[:1])
    assert records[0].state == "done" and causes(made, "one, r=2, seed 0") == ["done"]


def test_half_written_and_damaged_results(sweep, run_all, finish):
    made = sweep()
    half, torn, foreign = made.runs[:3]
    half.folder.mkdir(parents=True)
    (half.folder / ".result.json.77").write_text('{"metrics"')
    for run in (torn, foreign):
        finish(run, 0.1)
    (torn.folder / "result.json").write_text('{"metrics"')
    config = foreign.folder / "config.json"
    config.write_text(config.read_text().replace('"rank": 8', '"rank": 9'))
    states, backend, _ = run_all(made)
    assert states[half.label] == "done"
    assert states[torn.label] == states[foreign.label] == "damaged"
    assert torn.label not in backend.started and foreign.label not in backend.started
    assert str(torn.folder / "result.json") in read(torn).problem and "method.rank" in read(foreign).problem


@pytest.mark.parametrize("text", ["[]", "{}", '{"metrics": {}, "best": {}, "steps": 1, "commit": null}'])
def test_results_that_lack_something(sweep, finish, text):
    run = sweep().runs[0]
    finish(run, 0.5)
    (run.folder / "result.json").write_text(text)
    assert read(run).state == "damaged" and "result.json" in read(run).problem


def test_the_dead_are_taken_over_and_the_living_waited_for(sweep, run_all, finish):
    made = sweep()
    dead, orphan = made.runs[:2]
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        gone = (process.pid, time.time())
    claim(orphan.folder, 1)
    lease = claim(dead.folder, 1)
    write_json(lease.file(dead.folder), lease._replace(processes=[gone])._asdict())
    assert (read(dead).state, read(orphan).state) == ("stale", "running")
    backend, lines = Fake(finish), []

    def say(line):
        lines.append(line)
        if line.startswith("elsewhere"):
            finish(orphan, 0.7)  # as whoever holds it does

    records = Sweeper(backend, say=say, pause=0)(made.runs)
    assert {record.state for record in records} == {"done"}
    assert [a.number for a in read_attempts(dead.folder)] == [1, 2]
    assert orphan.label not in backend.started
    assert sum(line.startswith("elsewhere") and str(os.getpid()) in line for line in lines) == 1


TRIAL = """
import pathlib, shutil, sys, time
folder, made = map(pathlib.Path, sys.argv[1:])
with (folder / "ran").open("a") as file:
    file.write("x")
time.sleep(0.05)
for name in ("config.json", "result.json"):
    shutil.copy(made / name, folder / f".{name}")
    (folder / f".{name}").rename(folder / name)
"""
SWEEP = """
import subprocess, sys
from pathlib import Path
from ftjax.sweep.backend import Local
from ftjax.sweep.run import Sweeper
from ftjax.sweep.workdir import plan

experiment, workdir, made, trial = sys.argv[1:]
runs = plan(experiment, "nano", "configs/default.py", [], Path(workdir)).runs
backend = Local()
backend.start = lambda run, *_: subprocess.Popen([sys.executable, "-S", trial, run.folder, Path(made) / run.label])
records = Sweeper(backend, jobs=2, pause=0)(runs)
sys.exit(any(record.state != "done" for record in records))
"""


def test_two_sweeps_at_once_share_the_work(sweep, write, finish, tmp_path):
    made = sweep()
    for run in made.runs:
        finish(run._replace(folder=tmp_path / "made" / run.label), 0.5)
    (tmp_path / "trial.py").write_text(TRIAL)
    command = [sys.executable, "-c", SWEEP, write(), tmp_path / "runs", tmp_path / "made", tmp_path / "trial.py"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [(run.folder / "ran").read_text() for run in made.runs] == ["x"] * 8
    assert sum(text.count("done ") for text in said) == 8


@pytest.mark.parametrize("deaf", [False, True])
def test_an_interruption_ends_the_children(sweep, monkeypatch, deaf):
    monkeypatch.setattr(module, "GRACE", 0.3)
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); " if deaf else ""
    made, children = sweep(), []

    def start(run, log):
        if len(children) == 2:
            raise KeyboardInterrupt
        code = f"{ignore}import time; time.sleep(60)"
        children.append(subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE))
        if deaf:
            children[-1].stdout.read(1)
        return children[-1]

    with pytest.raises(KeyboardInterrupt):
        Sweeper(starting(start), jobs=3, say=print, pause=0)(made.runs)
    assert [child.returncode for child in children] == [-signal.SIGKILL if deaf else -signal.SIGTERM] * 2
    for run in made.runs[:2]:
        assert [attempt.cause for attempt in read_attempts(run.folder)] == ["interrupted"]
        assert read(run).state == "waiting"
    for child in children:
        child.stdout.close()


def test_a_full_disk_ends_the_sweep_and_its_children(sweep, finish, monkeypatch):
    made, backend = sweep(), Fake(finish, {"one, r=2, seed 0": [None]})

    def full(folder, *rest):
        if folder == made.runs[1].folder:
            raise UserError(f"cannot write to {folder}: No space left on device")
        return claim(folder, *rest)

    monkeypatch.setattr(module, "claim", full)
    with pytest.raises(UserError, match="No space left"):
        Sweeper(backend, jobs=2, say=print, pause=0)(made.runs)
    assert causes(made, "one, r=2, seed 0") == ["interrupted"]


def test_progress(sweep, finish):
    run = sweep().runs[0]
    assert read(run).progress == (0, None)
    finish(run, 0.5)
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6')  # still being written
    step, age = read(run).progress
    assert step == 4 and 0 <= age < 60
    assert isinstance(claim(run.folder, 1), Attempt)
