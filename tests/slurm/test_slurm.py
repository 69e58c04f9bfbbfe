"""A sweep on a real Slurm of two virtual nodes on this machine (start.sh): `make test-slurm`, as root."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from ftjax.sweep.attempt import causes, read_attempts
from ftjax.sweep.record import read, read_rows
from ftjax.sweep.workdir import open_sweep

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
MISSING = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if not shutil.which(name)]
pytestmark = [
    pytest.mark.skipif("TEST_SLURM" not in os.environ, reason="takes minutes: make test-slurm"),
    pytest.mark.skipif(bool(MISSING) or os.geteuid() != 0, reason=f"not root, or without {', '.join(MISSING)}"),
]

PREEMPTED, KILLED = "long, seed 0", "killed, seed 0"
EXPERIMENT = '''"""Six trials, of which one is long enough to be preempted."""

from ftjax.sweep import Trial

SIZES = {f"task.{split}_size": 8 for split in ("train", "validation", "test")}
FIELDS = {"eval_every": 50, "batch_size": 4, "eval_batch_size": 4, "log_every": 1, "data.buckets": 1,
          "model.layers": (0, 1), "method.targets": ("attn/q",)}


def trials(scale):
    """A row a rank."""
    steps = {"long": (1, 200), "killed": (2, 200), "a": (3, 2), "b": (4, 2)}
    made = [Trial(row, "", 0, "task=vowels", FIELDS | SIZES | {"method.rank": rank, "steps": n})
            for row, (rank, n) in steps.items()]
    return [*made, *(made[-1]._replace(seed=seed) for seed in (1, 2))]
'''


@pytest.fixture
def slurm(tmp_path_factory, monkeypatch):
    """call(command, ...) -> what it prints, with the test's Slurm."""
    folder = tmp_path_factory.mktemp("slurm")
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    call = lambda *command: subprocess.run(command, text=True, capture_output=True, check=True).stdout  # noqa: E731
    try:
        subprocess.run([HERE / "start.sh", folder], check=True)
        yield call
        call("scancel", "--user=root")
        wait(lambda: not call("squeue", "--noheader").strip(), "empty queue")
    finally:
        subprocess.run([HERE / "stop.sh", folder], check=True)


@pytest.fixture
def start():
    """start(command) -> a process, ended with the test."""
    started = []

    def launch(command):
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield launch
    for process in started:
        process.terminate()
        process.communicate()


def wait(until, what, seconds=600.0):
    """Polls; an error after so many seconds."""
    deadline = time.time() + seconds
    while not (found := until()):
        assert time.time() < deadline, f"no {what}"
        time.sleep(0.05)
    return found


def processes(run):
    """The processes of a run that train."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "ftjax" in line[:4] and f"--workdir={run.folder}" in line and "python" in line[0]:
            found.append(process)
    return found


def test_six_trials_of_which_one_is_preempted_and_one_killed(slurm, start, tmp_path):
    (tmp_path / "six.py").write_text(EXPERIMENT)
    workdir = tmp_path / "runs"
    flags = ["--on=slurm", "--launch.partition=low", "--launch.nodes=2", "--launch.processes=2", "--launch.cpus=1"]
    command = [sys.executable, "-m", "ftjax", "sweep", str(tmp_path / "six.py"), f"--workdir={workdir}", *flags,
               "--config.mesh.data=0", "--retries=1"]  # fmt: skip
    both = [start(command)]
    wait(lambda: (workdir / "sweep.json").exists(), "sweep")
    both.append(start(command))
    runs = {run.label: run for run in open_sweep(workdir).runs}

    def hurry():
        """Requeued jobs wait for two minutes, but for this."""
        time.sleep(0.2)
        for job in slurm("squeue", "--noheader", "--states=PENDING", "--partition=low", "--format=%i").split():
            subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=False, capture_output=True)

    hit = set()

    def both_are_hit():
        hurry()
        if read_rows(runs[PREEMPTED].folder) and PREEMPTED not in hit:
            for process in processes(runs[PREEMPTED]):
                process.send_signal(signal.SIGSTOP)  # with the preemption's SIGTERM comes SIGCONT
            slurm("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
            hit.add(PREEMPTED)
        if read_rows(runs[KILLED].folder) and KILLED not in hit and (victims := processes(runs[KILLED])):
            victims[-1].send_signal(signal.SIGKILL)
            hit.add(KILLED)
        return len(hit) == 2

    def over():
        hurry()
        return all(process.poll() is not None for process in both)

    wait(both_are_hit, "first step")
    wait(over, "end of the sweeps", 1200)
    said = [process.stdout.read() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert all("6 of 6 runs are done" in text for text in said)

    jobs = Counter()
    for label, run in runs.items():
        attempts = read_attempts(run.folder)
        count = causes(run.folder, attempts)
        assert read(run).state == "done" and count["done"] == 1, (label, count)
        assert attempts[-1].cause == "done" and len(attempts) == (2 if label == KILLED else 1), (label, count)
        assert count["preempted"] == 1 or label != PREEMPTED, (label, count)
        assert set(count) <= {"done", "preempted", *(["exit code 137"] if label == KILLED else [])}, (label, count)
        starts = [a.starts(run.folder).read_text().splitlines() for a in attempts]
        assert all(len({line.split()[-1] for line in lines}) == 1 for lines in starts)  # one job an attempt
        jobs.update(a.id for a in attempts)
        steps = [row["step"] for row in read_rows(run.folder) if "train/loss" in row]
        assert steps == list(range(1, json.loads((run.folder / "result.json").read_text())["steps"] + 1))
        for attempt in attempts:
            logs = [(run.folder / f"attempt-{attempt.number}.{rank}.log").read_text() for rank in (0, 1)]
            assert all(
                log.count("start of") == len(attempt.starts(run.folder).read_text().splitlines()) for log in logs
            )
    assert len(jobs) == 7 and set(jobs.values()) == {1}
    log = (runs[PREEMPTED].folder / "attempt-1.0.log").read_text()
    assert "the state is saved at step" in log and "resumed  at step" in log

    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and not slurm("squeue", "--noheader").strip()
    status = subprocess.run([sys.executable, "-m", "ftjax", "status", f"--workdir={workdir}"], cwd=ROOT, text=True,
                            capture_output=True, check=True).stdout  # fmt: skip
    assert "slurm " in status and "1 exit code 137, 1 done" in status and "attempt-2.0.log" in status, status
