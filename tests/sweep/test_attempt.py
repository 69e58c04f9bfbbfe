"""Attempts, which are leases."""

import os
import socket
import subprocess
import sys
import time

import psutil
import pytest

from ftjax.errors import UserError
from ftjax.sweep.attempt import Attempt, cause_of, claim, finish, held, last_words, read_attempts

MINE = (os.getpid(), psutil.Process().create_time())


def attempt(**fields):
    here = {"number": 1, "host": socket.gethostname(), "machine": "", "processes": [MINE], "started": 0.0}
    return Attempt(**here | fields)


def test_a_number_is_claimed_once_and_kept(tmp_path):
    first = claim(tmp_path / "a" / "seed0", 1)
    assert first and first.alive and claim(tmp_path / "a" / "seed0", 1) is None
    folder = tmp_path / "a" / "seed0"
    assert read_attempts(folder) == [first]
    ended = finish(folder, held(folder, first, os.getppid()), 143, "preempted")
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
        (0, [], "exit code 0"),
        (-9, [], "signal 9"),
    ],
)
def test_causes(code, log, cause):
    assert cause_of(code, log) == cause


def test_last_words(tmp_path):
    log = tmp_path / "log"
    assert last_words(log) == "no output"
    log.write_text("a\nValueError: b\n\n")
    assert last_words(log) == "ValueError: b"
    log.write_text("a\nftjax: wrong\nsome warning at exit\n")
    assert last_words(log) == "ftjax: wrong"


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
