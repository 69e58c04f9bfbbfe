"""Full and read-only disks: real ones, small, mounted for a test (as root); one line and exit code 2."""

import subprocess
import sys

import pytest

from ftjax.cli.main import main
from ftjax.errors import UserError
from ftjax.files import Growing
from ftjax.sweep.workdir import claim, plan
from ftjax.train.log import Log

SMALL = [
    "--config.batch_size=4", "--config.eval_batch_size=4", "--config.data.buckets=1", "--config.model.layers=(0,)",
    "--config.method.targets=('attn/q',)", *(f"--config.task.{x}_size=8" for x in ("train", "validation", "test")),
]  # fmt: skip
TRAIN = ["train", "--config=configs/default.py:task=vowels", *SMALL]
EXPERIMENT = '''"""One trial."""

from ftjax.sweep import Trial


def trials(scale):
    """One cell."""
    return [Trial("row", "", 0, "task=vowels")]
'''


@pytest.fixture
def disk(tmp_path):
    """disk(options) -> a folder on a new disk of these options of tmpfs."""
    mounted = []

    def mount(options, folder=tmp_path / "disk"):
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no right to mount a disk")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder):
    """Leaves no room."""
    with pytest.raises(OSError, match="No space left"), (folder / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def expect(err, *words):
    """One line of ours, with these words."""
    mine = [line for line in err.splitlines() if line.startswith("ftjax: ")]
    assert len(mine) == 1 and all(word in mine[0] for word in words), err


def test_a_checkpoint_that_does_not_fit(disk):
    folder = disk("size=32k")
    command = [sys.executable, "-m", "ftjax", *TRAIN, "--config.steps=2", f"--workdir={folder / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2  # beside the line may stand what tensorstore's threads say of their own end
    expect(done.stderr, f"cannot write to {folder / 'run'}", "No space left on device")


def test_rows_that_do_not_fit(disk):
    folder = disk("size=64k")
    (folder / "filler").write_bytes(bytes(32768))
    log = Log(Growing(folder), 0, 1000, "", {}, "name")
    with pytest.raises(UserError, match=f"cannot write to {folder}: No space left on device"):
        for step in range(1000):
            log.write(step, {"train/loss": 1.0})
    (folder / "filler").unlink()
    log.close()


@pytest.fixture
def experiment(tmp_path):
    """Its file."""
    (tmp_path / "one.py").write_text(EXPERIMENT)
    return str(tmp_path / "one.py")


def test_full_from_the_start(disk, experiment, capsys):
    folder = disk("size=16k")
    fill(folder)
    for command in (["sweep", experiment], [*TRAIN, "--config.steps=2"]):
        assert main([*command, f"--workdir={folder / 'run'}"]) == 2
        expect(capsys.readouterr().err, f"cannot write to {folder / 'run'}", "No space left on device")


def test_read_only(disk, experiment, capsys):
    folder = disk("size=64k")
    workdir = f"--workdir={folder / 'run'}"
    claim(plan(experiment, "nano", "configs/default.py", [], folder / "run"), "configs/default.py")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    assert main(["status", workdir]) == 0 and "1 waiting" in capsys.readouterr().out
    assert main(["table", workdir]) == 0 and "missing: row, seed 0 (waiting)" in capsys.readouterr().out
    for command in (["table", "--format=html"], ["sweep", experiment], [*TRAIN, "--config.steps=2"]):
        place = folder / ("other" if command[0] == "train" else "run")
        assert main([*command, f"--workdir={place}"]) == 2
        expect(capsys.readouterr().err, f"cannot write to {place}", "Read-only file system")
