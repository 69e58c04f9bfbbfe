"""`ftjax sweep`, `table` and `status`: one real trial from end to end, and the command lines that are refused."""

import json
import re

import pytest

from ftjax.cli.main import main
from ftjax.sweep.attempt import claim, keep
from ftjax.sweep.workdir import claim as claim_sweep
from ftjax.sweep.workdir import plan
from ftjax.train.report import commit

EXPERIMENT = '''"""One trial."""

from ftjax.sweep import Trial


def trials(scale):
    """One cell."""
    if scale == "paper":
        return []
    fields = {"steps": 2, "eval_every": 2, "batch_size": 4, "eval_batch_size": 4, "method.targets": ("attn/q",),
              "model.layers": (0,), "data.buckets": 1}
    sizes = {f"task.{split}_size": 8 for split in ("train", "validation", "test")}
    return [Trial("row", "", 3, "task=vowels", fields | sizes)]
'''


@pytest.fixture
def command(tmp_path, capsys):
    """command(*argv) -> (exit code, what it printed, errors); the experiment is added to sweep's."""
    (tmp_path / "one.py").write_text(EXPERIMENT)

    def run(name, *argv, workdir=tmp_path / "runs"):
        file = [str(tmp_path / "one.py")] if name == "sweep" else []
        code = main([name, *file, f"--workdir={workdir}", *argv])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_from_end_to_end(command, tmp_path):
    code, out, _ = command("sweep", "--dry_run")
    assert code == 0 and re.match(r"waiting +row, seed 3: ftjax train .*'--config.method.targets=", out)
    assert not (tmp_path / "runs").exists()
    code, out, err = command("sweep")
    assert code == 0, out + err
    assert re.match(r"done +row, seed 3: accuracy", out) and "1 of 1 runs are done" in out
    folder = next((tmp_path / "runs").glob("*/seed3"))
    assert {"attempt-1.json", "attempt-1.log", "config.json", "metrics.jsonl", "result.json"} <= {
        file.name for file in folder.iterdir()
    }
    assert json.loads((folder / "config.json").read_text())["method"]["targets"] == ["attn/q"]
    before = (folder / "result.json").stat().st_mtime_ns
    assert command("sweep")[0] == 0 and (folder / "result.json").stat().st_mtime_ns == before
    code, out, _ = command("status")
    assert code == 0 and "| row, seed 3 | done" in out and "2/2" in out and "1 done" in out
    code, out, _ = command("table")
    assert code == 0 and "1 of 1 runs done" in out and "(1)" in out
    assert command("table", f"--output={tmp_path / 'sub' / 'x.md'}")[0] == 0
    assert (tmp_path / "sub" / "x.md").read_text().startswith("# One trial\n")
    assert command("table", "--format=html")[0] == 0 and (tmp_path / "runs" / "report.html").exists()
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"commit": "0" * 40}))
    assert f"commit {'0' * 40}; not all by the code as it is now" in command("table")[1]
    for name in ("table", "sweep"):
        code, out, err = command(name, "--strict_code")
        assert code == 2 and not out and err.count("\n") == 1 and f"other code than commit {commit()}: 000" in err
    (folder / "result.json").write_text("{")
    code, out, err = command("table")
    assert code == 1 and "damaged: row, seed 3" in out and "1 damaged" in err
    code, out, err = command("sweep")
    assert code == 1 and "damaged" in out and "1 of 1 runs are not done" in err


def test_jobs_are_shown_before_they_are_submitted_and_in_the_status(command, tmp_path):
    flags = ["--on=slurm", "--launch.partition=long", "--launch.processes=2", "--config.mesh.data=0"]
    code, out, _ = command("sweep", *flags, "--preemptions=3", "--dry_run")
    assert code == 0 and out.startswith("waiting  row, seed 3: #!/bin/bash\n") and "--partition=long" in out
    assert "--distributed=auto" in out and "-le 3 ]" in out and not (tmp_path / "runs").exists()
    sweep = plan(str(tmp_path / "one.py"), "nano", "configs/default.py", ["--config.mesh.data=0"], tmp_path / "runs")
    claim_sweep(sweep, "configs/default.py")
    folder = sweep.runs[0].folder
    attempt = claim(folder, 1, "slurm", "ft-name")
    assert "| queued |" in command("status")[1] and "| slurm ft-name |" in command("status")[1]
    keep(folder, attempt._replace(id="12"))
    attempt.starts(folder).write_text("now n1 12\nlater n1 12\n")
    out = command("status")[1]
    assert "| running |" in out and "| 1 running, 1 preempted | slurm 12 |" in out and "attempt-1.0.log" in out
    code, out, _ = command("sweep", *flags, "--dry_run")
    assert code == 0 and out == "running  row, seed 3\n"


def test_bad_input_of_a_trial_is_final_and_fails_the_sweep(command):
    code, out, err = command("sweep", "--config.model.path=no/where/at/all", "--retries=3")
    assert code == 1 and out.count("bad input") == 1 and "no/where" in out and "not done" in err
    code, out, _ = command("status")
    assert code == 0 and "| failed" in out and "1 bad input" in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--scale=huge"], ("huge", "nano")),
        (["--scale=paper"], ("no trials", "paper")),
        (["--config.method.ranks=3"], ("row", "rank")),
        (["--jobs=0"], ("jobs",)),
        (["other.py"], ("unexpected", "other.py")),
        (["--config=nowhere.py"], ("nowhere.py",)),
        (["--on=moon"], ("--on=moon", "gke, slurm, tpu_vm")),
        (["--on=gke", "--launch.image=x"], ("--on=gke needs", "--launch.queue=")),
        (["--launch.gpus=99"], ("--launch.gpus=99 with --jobs=1: 99 GPUs are needed",)),
        (["--launch.partition=x"], ("--launch.partition", "local", "gpus")),
    ],
)
def test_refused(command, tmp_path, argv, words):
    code, _, err = command("sweep", *argv)
    assert code == 2 and all(word in err for word in words) and not (tmp_path / "runs").exists()


def test_no_experiment_and_no_sweep(command, capsys, tmp_path):
    assert main(["sweep", f"--workdir={tmp_path}"]) == 2
    assert main(["sweep", "nowhere.py", f"--workdir={tmp_path}"]) == 2
    assert main(["table"]) == main(["status"]) == 2
    for name in ("table", "status"):
        code, _, err = command(name)
        assert code == 2 and "sweep.json" in err
    (tmp_path / "file").write_text("")
    code, _, err = command("sweep", workdir=tmp_path / "file" / "x")
    assert code == 2 and "cannot write" in err
