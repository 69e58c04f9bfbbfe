"""Trials that share a program, and what becomes of them when it ends."""

import json
import os
from pathlib import Path

import pytest

from ftjax.sweep.attempt import read_attempts
from ftjax.sweep.backend import Local
from ftjax.sweep.group import differ, grouped
from ftjax.sweep.run import Sweeper

MORE = '"method.targets": targets[row]'


class Process:
    """Over at its second poll, with a code."""

    pid = os.getpid()

    def __init__(self, code):
        self.code, self.polls = code, 0

    def poll(self):
        self.polls += 1
        return self.code if self.polls > 1 else None

    def send_signal(self, sig):
        self.code = -sig


@pytest.fixture
def run_all(finish):
    """run_all(sweep, code, fails) -> (records, runs of each process): processes finish all but the failing labels."""

    def go(made, code=0, fails=lambda labels, label: False, **options):
        backend, started, lines = Local(), [], []
        by_flags = {run.flags: run for run in made.runs}

        def start(run, log, group):
            flags = [run.flags]
            if run.flags[0].startswith("--together="):
                flags = map(tuple, json.loads(Path(run.flags[0].partition("=")[2]).read_text()))
            runs = [by_flags[each] for each in flags]
            started.append([one.label for one in runs])
            log.write_text("ftjax: the reason\n")
            failed = [one for one in runs if fails(started[-1], one.label)]
            for one in runs:
                if one not in failed:
                    finish(one, 0.5)
            return Process(code if failed else 0)

        backend.start = start
        records = Sweeper(backend, together=True, say=lines.append, pause=0, **options)(made.runs)
        return {record.run.label: record.state for record in records}, started, lines

    return go


def test_trials_of_the_same_targets_are_one_process(sweep, run_all):
    made = sweep()
    assert [len(group) for group in grouped(made.runs)] == [4, 4]
    assert differ(grouped(made.runs)[0]) == ["method.rank", "seed"]
    states, started, lines = run_all(made)
    assert set(states.values()) == {"done"} and [len(labels) for labels in started] == [4, 4]
    together = [line for line in lines if line.startswith("together")]
    assert len(together) == 2 and "4 runs as one program, by method.rank, seed: one, r=2, seed 0" in together[0]
    for run in made.runs:
        [attempt] = read_attempts(run.folder)
        assert attempt.cause == "done" and attempt.log(run.folder).read_text() == "ftjax: the reason\n"
    shared = {read_attempts(run.folder)[0].processes[-1] for run in made.runs}
    assert len(shared) == 1 and len(read_attempts(made.runs[0].folder)[0].processes) == 2
    assert run_all(made)[1] == []


@pytest.mark.parametrize(
    ("change", "groups"),
    [
        (f'{MORE}, "optimizer.learning_rate": 0.1 * rank, "optimizer.weight_decay": 0.1', [4, 4]),
        (f'{MORE}, "optimizer.weight_decay": rank - 2.0', [2, 2, 2, 2]),  # none is another program
        (f'{MORE}, "optimizer.b1": 0.1 * rank', [2, 2, 2, 2]),
        (f'{MORE}, "profile_steps": 2', [1] * 8),
        (f'{MORE}, "mesh.data": 2', [1] * 8),
    ],
)
def test_what_is_grouped(sweep, change, groups):
    assert [len(group) for group in grouped(sweep((MORE, change)).runs)] == groups


def test_ranks_are_sizes_to_adafactor(sweep):
    made = sweep(('"task=vowels"', '"task=vowels,optimizer=adafactor"'))
    assert [len(group) for group in grouped(made.runs)] == [2, 2, 2, 2]


BAD = "one, r=2, seed 1"


@pytest.mark.parametrize(("code", "cause"), [(1, "exit code 1"), (2, "bad input"), (-9, "signal 9")])
def test_what_fails_together_is_tried_again_alone(sweep, run_all, code, cause):
    """Whether it fails the whole process or itself alone; what fails together does not count."""
    made = sweep()
    states, started, _ = run_all(made, code, lambda labels, label: len(labels) > 1, retries=0)
    assert set(states.values()) == {"done"}
    assert [len(labels) for labels in started] == [4, 1, 1, 1, 1, 4, 1, 1, 1, 1]
    assert [a.cause for a in read_attempts(made.runs[0].folder)] == [f"{cause} (together)", "done"]


def test_a_trial_that_fails_alone_too_has_failed(sweep, run_all):
    made = sweep()
    states, started, _ = run_all(made, 1, lambda labels, label: label == BAD, retries=0)
    assert states.pop(BAD) == "failed" and set(states.values()) == {"done"}
    assert [BAD] in started and len(started) == 3
