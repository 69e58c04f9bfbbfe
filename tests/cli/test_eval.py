"""Evaluation from the command line: what is said of a head that nothing trained."""

import json
import logging

from ftjax.cli.main import main

CONFIG = "--config=configs/default.py:model=nano-gpt,task=vowels,method=head"
SMALL = {"task.train_size": 8, "task.validation_size": 8, "task.max_length": 40, "eval_batch_size": 8}
FLAGS = [f"--config.{name}={value}" for name, value in SMALL.items()]


def said(caplog):
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return [line for line in lines if "newly initialised" in line]


def test_a_head_that_was_never_trained_is_told(tmp_path, caplog, capsys):
    assert main(["eval", CONFIG, *FLAGS]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 8
    [line] = said(caplog)
    assert "classifier/kernel; it was never trained" in line and "\n" not in line
    run = [f"--workdir={tmp_path / 'run'}", "--config.steps=1", "--config.batch_size=8"]
    assert main(["train", CONFIG, *FLAGS, *run]) == 0
    [line] = said(caplog)
    assert "never trained" not in line  # it is about to be
    assert main(["eval", run[0]]) == 0 and not said(caplog)
    own = CONFIG.replace("task=vowels,method=head", "task=reverse")
    assert main(["eval", own, *FLAGS, "--config.generate.max_new_tokens=2"]) == 0 and not said(caplog)
