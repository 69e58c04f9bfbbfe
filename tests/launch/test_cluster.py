"""What a sweep does with jobs that outlive it, on a scheduler that is a dict, and the shell around a process."""

import json
import os
import signal
import socket
import subprocess
import time

import pytest

from ftjax.errors import UserError
from ftjax.sweep import run as module
from ftjax.sweep.attempt import causes, claim, keep, read_attempts
from ftjax.sweep.backend import Local, make
from ftjax.sweep.record import read
from ftjax.sweep.run import Sweeper
from ftjax.sweep.workdir import plan
from launch.cluster import PROCESS, Cluster, call
from launch.gke import Gke
from launch.slurm import Slurm

EXPERIMENT = '''"""Three trials."""

from ftjax.sweep import Trial


def trials(scale):
    """A row, three seeds."""
    return [Trial("row", "", seed, "task=vowels", {"method.rank": 2}) for seed in (0, 1, 2)]
'''


@pytest.fixture
def runs(tmp_path):
    """Three runs."""
    (tmp_path / "three.py").write_text(EXPERIMENT)
    return plan(str(tmp_path / "three.py"), "nano", "configs/default.py", [], tmp_path / "runs").runs


class Fake(Cluster):
    """Jobs run from the second look on and end at the third, by `ends[seed]`: exit codes, or 'done'."""

    name = "fake"

    def __init__(self, ends=None):
        self.ends, self.there, self.sent, self.cancelled, self.answers = ends or {}, {}, [], [], True

    def send(self, run, number):
        ends = self.ends.get(run.trial.seed, ["done"])
        self.there[self.job(run, number)] = [run, number, ends[min(number, len(ends)) - 1], 0]
        self.sent.append((run.trial.seed, number))
        return str(len(self.sent))

    def look(self, since):
        return self.jobs() if self.answers else None

    def jobs(self):
        found = {}
        for name, job in list(self.there.items()):
            run, number, end, looks = job
            job[3] += 1
            if looks < 1:
                found[name] = "queued"
            elif looks < 2 or end == "hangs":
                if looks == 1:
                    run.folder.joinpath(f"attempt-{number}.starts").write_text("x\n")
                found[name] = "running"
            else:
                self.over(run, number, end)
                del self.there[name]
        return found

    def over(self, run, number, end):
        if end == "done":
            result = {"metrics": {}, "best": {"metric": "a", "value": 0.5}, "steps": 4, "commit": None}
            (run.folder / "config.json").write_text(json.dumps(_nested(run.config)))
            (run.folder / "result.json").write_text(json.dumps(result))
        if end is not None:
            run.folder.joinpath(f"attempt-{number}.0.code").write_text(str(0 if end == "done" else end))

    def cancel(self, attempt):
        self.cancelled.append(attempt.job)
        self.there.pop(attempt.job, None)


def _nested(flat):
    tree = {}
    for path, value in flat.items():
        *parents, last = path.split(".")
        at = tree
        for name in parents:
            at = at.setdefault(name, {})
        at[last] = value
    return tree


def sweep(backend, runs, **options):
    """(states by seed, lines said)"""
    lines = []
    records = Sweeper(backend, say=lines.append, pause=0, **{"jobs": 0} | options)(runs)
    return {record.run.trial.seed: record.state for record in records}, lines


def test_all_are_submitted_once(runs):
    backend = Fake()
    states, lines = sweep(backend, runs)
    assert set(states.values()) == {"done"} and backend.sent == [(0, 1), (1, 1), (2, 1)]
    assert [line.split()[0] for line in lines] == ["done"] * 3
    [attempt] = read_attempts(runs[1].folder)
    assert (attempt.on, attempt.id, attempt.cause, attempt.code) == ("fake", "2", "done", 0)
    assert attempt.job.startswith(f"ft-{runs[1].folder.parent.name}-s1-") and attempt.where == "fake 2"
    sweep(backend, runs)
    assert len(backend.sent) == 3


@pytest.mark.parametrize(
    ("ends", "options", "state", "seen"),
    [
        ([1, "done"], {}, "done", {"exit code 1": 1, "done": 1}),
        ([None, None, "done"], {}, "failed", {"lost": 2}),
        ([2], {"retries": 3}, "failed", {"bad input": 1}),
        ([143, 143, "done"], {"retries": 0}, "done", {"preempted": 2, "done": 1}),
        ([143], {"preemptions": 1}, "waiting", {"preempted": 2}),
    ],
)
def test_what_is_submitted_again(runs, ends, options, state, seen):
    states, _ = sweep(Fake({1: ends}), runs, **options)
    assert states == {0: "done", 1: state, 2: "done"}
    assert causes(runs[1].folder, read_attempts(runs[1].folder)) == seen


def test_jobs_outlive_the_sweep_and_the_next_one_follows_them(runs):
    backend = Fake()
    sweeper = Sweeper(backend, jobs=0, say=print, pause=0)

    def interrupted(since):
        raise KeyboardInterrupt

    backend.look = interrupted
    with pytest.raises(KeyboardInterrupt):
        sweeper(runs)
    del backend.look
    assert len(backend.there) == 3 and not backend.cancelled and [read(run).state for run in runs] == ["queued"] * 3
    states, _ = sweep(backend, runs)
    assert set(states.values()) == {"done"} and len(backend.sent) == 3


def test_two_sweeps_watch_the_same_jobs(runs):
    backend, other = Fake(), []

    def say(line):  # at the first end the other one comes, and ends them all
        if not other:
            other.append(sweep(backend, runs))

    records = Sweeper(backend, jobs=0, say=say, pause=0)(runs)
    assert {record.state for record in records} == set(other[0][0].values()) == {"done"}
    assert len(backend.sent) == 3 and all(len(record.attempts) == 1 for record in records)


@pytest.mark.parametrize(("age", "host", "waits"), [(0, "other", True), (400, "other", False), (0, "here", True)])
def test_a_submission_on_its_way_is_no_lost_job(runs, age, host, waits):
    backend, run = Fake(), runs[0]
    attempt = claim(run.folder, 1, "fake", backend.job(run, 1))
    keep(run.folder, attempt._replace(started=time.time() - age, host=socket.gethostname() if host == "here" else host))
    sweeper = Sweeper(backend, jobs=0, say=print, pause=0)
    sweeper._follow(read(run))
    assert (run.folder not in sweeper._working) == waits


def test_another_backends_job_is_waited_for(runs):
    claim(runs[0].folder, 1, "elsewhere", "name")
    backend = Fake()

    def say(line):
        if line.startswith("elsewhere"):
            assert "held by elsewhere name" in line
            backend.over(runs[0], 1, "done")

    records = Sweeper(backend, jobs=0, say=say, pause=0)(runs)
    assert {record.state for record in records} == {"done"} and (0, 1) not in backend.sent


def test_a_scheduler_that_does_not_answer_ends_nothing(runs):
    backend = Fake()
    job = backend.submit(runs[0], claim(runs[0].folder, 1, "fake", backend.job(runs[0], 1)))[1]
    backend.answers = False
    assert job.state() == "queued"
    plain = Slurm()
    plain.jobs = lambda: (_ for _ in ()).throw(subprocess.CalledProcessError(1, ["squeue"], stderr="no controller"))
    assert plain.look(time.time()) is None


def test_a_look_serves_for_a_moment_but_never_one_from_before(monkeypatch):
    backend, looks = Slurm(), []
    backend.jobs = lambda: looks.append(1) or {}
    before = time.time()
    for _ in range(3):
        backend.look(before)
    assert len(looks) == 1
    backend.look(time.time())
    assert len(looks) == 2


def test_a_trial_that_is_stuck_is_ended(runs):
    backend = Fake({0: ["hangs", "done"], 1: ["hangs", "hangs"]})

    def cancel(attempt):
        backend.there.pop(attempt.job, None)

    backend.cancel = cancel
    states, _ = sweep(backend, runs, stuck_after=0.2)
    assert states == {0: "done", 1: "failed", 2: "done"}
    assert [a.cause for a in read_attempts(runs[0].folder)] == ["stuck", "done"]
    assert [a.cause for a in read_attempts(runs[1].folder)] == ["stuck", "stuck"]


def test_a_local_trial_that_is_stuck_is_killed_if_it_must_be(runs, monkeypatch):
    monkeypatch.setattr(module, "GRACE", 0.2)
    backend = Local()
    deaf = ["bash", "-c", "trap '' TERM; sleep 60 & wait; sleep 60"]
    backend.start = lambda run, log, group: subprocess.Popen(deaf, start_new_session=True)
    records = Sweeper(backend, retries=0, stuck_after=0.3, say=print, pause=0.05)(runs[:1])
    assert records[0].state == "failed" and records[0].attempts[0].cause == "stuck"
    assert records[0].attempts[0].code == -signal.SIGKILL


def test_each_trial_has_its_gpus(runs, monkeypatch):
    """Of those that the sweep itself has."""
    seen = []

    class Process:
        pid = os.getpid()

        def __init__(self, command, env, **_):
            seen.append(env.get("CUDA_VISIBLE_DEVICES"))
            self.code = None

        def poll(self):
            return self.code

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7, GPU-a,2,3,-1")
    backend = make(Local, {"gpus": "2"}, "local")
    jobs = [backend.submit(run, claim(run.folder, 1))[1] for run in runs[:2]]
    jobs[0]._process.code = 0
    backend.submit(runs[2], claim(runs[2].folder, 1))
    Local().submit(runs[0], claim(runs[0].folder, 2))
    assert seen == ["7,GPU-a", "2,3", "7,GPU-a", "7, GPU-a,2,3,-1"]
    backend.check(2)
    with pytest.raises(UserError, match=r"--launch.gpus=2 with --jobs=3: 6 GPUs are needed, 4 are here"):
        backend.check(3)


# The shell around a process.


def shell(tmp_path, *command, number=1, **env):
    at = tmp_path / f"attempt-{number}"
    return subprocess.Popen(["bash", "-c", PROCESS, "ftjax", at, *command], env={**os.environ, **env})


@pytest.mark.parametrize(("env", "rank"), [({}, 0), ({"SLURM_PROCID": "3"}, 3), ({"JOB_COMPLETION_INDEX": "2"}, 2),
                                           ({"RANK": "1"}, 1)])  # fmt: skip
def test_a_process_leaves_its_log_code_and_start(tmp_path, env, rank):
    for start in (1, 2):
        assert shell(tmp_path, "bash", "-c", 'echo "hello $0"; exit 7', "a b", **env).wait() == 7
        log = (tmp_path / f"attempt-1.{rank}.log").read_text()
        assert log.count("hello a b") == log.count("start of") == start
        assert (tmp_path / f"attempt-1.{rank}.code").read_text() == "7\n"
        if rank == 0:
            assert len((tmp_path / "attempt-1.starts").read_text().splitlines()) == start
    assert (tmp_path / "attempt-1.starts").exists() == (rank == 0)


def test_sigterm_goes_on_to_the_process_and_its_code_is_awaited(tmp_path):
    code = "import signal,sys,time; signal.signal(15, lambda *_: (time.sleep(0.3), sys.exit(143)))"
    code += "; print('ready', flush=True); time.sleep(60)"
    process, log = shell(tmp_path, "python3", "-S", "-c", code), tmp_path / "attempt-1.0.log"
    while not log.exists() or "ready" not in log.read_text():
        time.sleep(0.02)
    process.terminate()
    assert process.wait(20) == 143 and (tmp_path / "attempt-1.0.code").read_text() == "143\n"


def test_a_late_job_does_nothing(tmp_path):
    (tmp_path / "attempt-3.json").write_text("{}")
    assert shell(tmp_path, "touch", tmp_path / "ran", number=2).wait() == 0
    assert not (tmp_path / "ran").exists() and not (tmp_path / "attempt-2.starts").exists()


# Fields.


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        (Gke, {"image": "i", "queue": "q"}, "needs --launch.accelerator=... --launch.topology=... --launch.bucket=..."),
        (Slurm, {"zone": "z"}, "--launch.zone: --on=x has no such field; there are partition, account"),
        (Slurm, {"processes": "two"}, "--launch.processes=two: a whole number"),
        (Slurm, {"nodes": "2", "processes": "2", "gpus": "8"}, "nodes=2, gpus=8); set it to 16"),
        (Slurm, {"nodes": "2", "gpus": "1"}, "--launch.processes=1: JAX gives each"),
        (Local, {"gpu": "1"}, "there are gpus"),
    ],
)
def test_fields_that_are_refused(kind, given, words):
    with pytest.raises(UserError) as error:
        make(kind, given, "x")
    assert words in str(error.value)


def test_a_scheduler_that_is_not_there():
    with pytest.raises(UserError, match="no-such-scheduler is not found"):
        call(["no-such-scheduler"])
