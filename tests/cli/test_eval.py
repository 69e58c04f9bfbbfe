"""Evaluation from the command line: what is said of a head that nothing trained, and of fields that nothing reads."""

import json
import logging
import re

import jax
import pytest

from ftjax.cli.main import main
from ftjax.train.evaluate import Evaluator

CONFIG = "--config=configs/default.py:model=nano-gpt,task=vowels,method=head"
REVERSE = CONFIG.replace("task=vowels,method=head", "task=reverse")
SMALL = {
    "task.train_size": 8,
    "task.validation_size": 8,
    "task.max_length": 40,
    "eval_batch_size": 8,
    "model.layers": (0,),
}
FLAGS = [f"--config.{name}={value}" for name, value in SMALL.items()]
CLASSES = [CONFIG, *FLAGS, "--config.data.buckets=1"]


def said(caplog):
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return [line for line in lines if "newly initialised" in line]


def test_a_head_that_was_never_trained_is_told(tmp_path, caplog, capsys):
    assert main(["eval", *CLASSES]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 8
    [line] = said(caplog)
    assert "classifier/kernel; it was never trained" in line and "\n" not in line
    run = [f"--workdir={tmp_path / 'run'}", "--config.steps=1", "--config.batch_size=8"]
    assert main(["train", *CLASSES, *run]) == 0
    report = capsys.readouterr().err
    assert report.count("newly initialised: classifier/") == 1 and "never trained" not in report  # it is about to be
    more = [f"--workdir={tmp_path / 'more'}", f"--config.warm_start={tmp_path / 'run'}", *run[1:]]
    assert main(["train", *CLASSES, *more]) == 0 and "newly initialised" not in capsys.readouterr().err
    (tmp_path / "three.csv").write_text("name\nAnna\nBob\nCyd\n")
    other = f"--config.task.files.test={tmp_path / 'three.csv'}"
    assert main(["eval", run[0], "--split=test", other]) == 0  # the run has none
    assert json.loads(capsys.readouterr().out)["examples"] == 3
    assert main(["eval", run[0], other]) == 2 and "give --split=test" in capsys.readouterr().err
    assert main(["eval", run[0], "--config.generate.num_beams=3"]) == 2
    assert "config.generate.num_beams=3: set, but nothing" in capsys.readouterr().err
    devices, config = len(jax.devices()), tmp_path / "run" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"mesh": dict(data=2, fsdp=1, tensor=2 * devices)}))
    assert main(["eval", run[0]]) == 0  # where a mesh that there is not here has trained it
    assert f"trained on {4 * devices} devices, evaluated on all that are here, {devices}" in caplog.text
    wanted = f"mesh 1x{2 * devices}x1 needs {2 * devices} devices, the machine has {devices}"
    capsys.readouterr()
    assert main(["eval", run[0], f"--config.mesh.fsdp={2 * devices}"]) == 2 and wanted in capsys.readouterr().err
    older = json.loads(config.read_text())
    del older["eval_batch_size"]
    config.write_text(json.dumps(older))
    wanted = "config.eval_batch_size does not exist.*; to a run older than the field add it in config.json"
    assert main(["eval", run[0]]) == 2 and re.search(wanted, capsys.readouterr().err)
    assert main(["eval", REVERSE, *FLAGS, "--config.generate.max_new_tokens=2"]) == 0 and not said(caplog)


@pytest.mark.parametrize("field", ["warm_start=run", "task.shots=2", "generate.num_beams=3", "generate.samples=2"])
def test_a_field_that_nothing_reads_is_told_before_the_evaluation(field, capsys, monkeypatch):
    monkeypatch.setattr(Evaluator, "__call__", None)
    assert main(["eval", *CLASSES, f"--config.{field}"]) == 2
    assert f"config.{field.partition('=')[0]}=" in (err := capsys.readouterr().err) and "nothing in this run" in err
