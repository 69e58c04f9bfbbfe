"""Attempts, which are leases."""

import errno
import os
import socket
import subprocess
import sys
import time

import psutil
import pytest

from ftjax.errors import UserError
from ftjax.sweep.attempt import (
    Attempt,
    cause_of,
    causes,
    claim,
    exit_code,
    finish,
    keep,
    last_words,
    read_attempts,
    tail,
    with_process,
)

MINE = (os.getpid(), psutil.Process().create_time())


def attempt(**fields):
    here = {"number": 1, "host": socket.gethostname(), "machine": "", "processes": [MINE], "started": 0.0}
    return Attempt(**here | fields)


def test_a_number_is_claimed_once_and_kept(tmp_path):
    first = claim(tmp_path / "a" / "seed0", 1)
    assert first and first.alive and claim(tmp_path / "a" / "seed0", 1) is None
    folder = tmp_path / "a" / "seed0"
    assert read_attempts(folder) == [first]
    ended = finish(folder, keep(folder, with_process(first, os.getppid())), 143, "preempted")
    assert finish(folder, first, 1, "lost") == ended  # the first end stays
    second = claim(folder, 2)
    assert read_attempts(folder) == [ended, second] and not ended.alive
    assert len(ended.processes) == 2 and (ended.code, ended.cause) == (143, "preempted")
    assert sorted(os.listdir(folder)) == ["attempt-1.json", "attempt-2.json"]


def test_who_lives(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        gone = (process.pid, time.time())
    assert attempt().alive
    assert not attempt(ended=1.0).alive
    assert not attempt(processes=[gone]).alive
    assert attempt(processes=[gone, MINE]).alive
    assert not attempt(processes=[(MINE[0], MINE[1] - 60)]).alive  # the number was given anew
    assert attempt(processes=[gone], host="elsewhere").alive


@pytest.mark.parametrize(
    ("code", "log", "cause"),
    [
        (2, ["ftjax: bad"], "bad input"),
        (143, [], "preempted"),
        (-15, [], "preempted"),
        (1, ["jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: out of memory", "ftjax: x"], "out of memory"),
        (1, ["ValueError"], "exit code 1"),
        (137, ["slurmstepd: error: Detected 1 oom_kill event in StepId=2.0"], "out of memory"),
        (None, [], "lost"),
        (0, [], "exit code 0"),
        (-9, [], "signal 9"),
    ],
)
def test_causes(code, log, cause):
    assert cause_of(code, log) == cause


def test_last_words(tmp_path):
    log = tmp_path / "log"
    assert last_words(tail(log)) == "no output"
    log.write_text("a\nValueError: b\n\n")
    assert last_words(tail(log)) == "ValueError: b"
    log.write_text("a\nftjax: wrong\nsome warning at exit\n")
    assert last_words(tail(log)) == "ftjax: wrong"


@pytest.mark.parametrize(
    ("codes", "found"),
    [({}, None), ({0: 0, 1: 0}, 0), ({0: 143, 1: 0}, 143), ({0: 143, 1: 1}, 1), ({1: 2, 0: 134}, 2), ({0: ""}, None)],
)
def test_the_process_to_blame(tmp_path, codes, found):
    for n, (rank, code) in enumerate(codes.items()):
        path = tmp_path / f"attempt-1.{rank}.code"
        path.write_text(f"{code}\n")
        os.utime(path, (n, n))
    (tmp_path / "attempt-2.0.code").write_text("7")
    assert exit_code(tmp_path, attempt()) == found


def test_each_further_start_is_a_preemption(tmp_path):
    ended = attempt(cause="exit code 1", ended=1.0)
    assert causes(tmp_path, [ended, attempt(number=2, job="x")]) == {"exit code 1": 1, "running": 1}
    ended.starts(tmp_path).write_text("a\nb\nc\n")
    assert causes(tmp_path, [ended]) == {"exit code 1": 1, "preempted": 2}
    (tmp_path / "result.json").write_text("{}")
    assert causes(tmp_path, [attempt(job="x")]) == {"done": 1, "preempted": 2}


def test_without_hard_links(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    first = claim(tmp_path, 1, "gke", "name")
    assert first and claim(tmp_path, 1) is None and read_attempts(tmp_path) == [first]
    assert (first.on, first.job, first.where, first.alive) == ("gke", "name", "gke name", True)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"number": 1}'])
def test_a_damaged_attempt_is_named(tmp_path, text):
    (tmp_path / "attempt-3.json").write_text(text)
    with pytest.raises(ValueError, match=r"attempt-3\.json"):
        read_attempts(tmp_path)


def test_places_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        claim(tmp_path / "file" / "seed0", 1)
    first = claim(tmp_path / "run", 1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    for act in (lambda: claim(tmp_path / "run", 2), lambda: finish(tmp_path / "run", first, 0, "done")):
        with pytest.raises(UserError, match="No space left on device"):
            act()
    assert read_attempts(tmp_path / "run") == [first]
