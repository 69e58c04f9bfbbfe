"""An experiment of eight trials, and runs of it that are made without training."""

import itertools
import json

import pytest
from fake_gcs import serve

from ftjax.files import write_json
from ftjax.sweep.trial import resolve
from ftjax.sweep.workdir import plan

EXPERIMENT = '''"""A table.

What it is about.
"""

from ftjax.sweep import Trial

percent = True
paper = {"theirs": {("one", "r=2"): 70.0}}


def trials(scale):
    """Two rows, two ranks, two seeds."""
    targets = {"one": ("attn/q",), "two": ("attn/q", "attn/v")}
    return [
        Trial(row, f"r={rank}", seed, "task=vowels", {"method.rank": rank, "method.targets": targets[row], "steps": 4})
        for row in targets
        for rank in (2, 8)
        for seed in (0, 1)
    ]
'''


@pytest.fixture
def write(tmp_path):
    """write(text=EXPERIMENT, old=new, ...) -> the path of an experiment's file."""

    def make(text=EXPERIMENT, *changes):
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "table.py").write_text(text)
        return str(tmp_path / "table.py")

    return make


@pytest.fixture
def sweep(write, tmp_path):
    """sweep(*changes of the experiment's text) -> the sweep in tmp_path/runs."""
    return lambda *changes: plan(write(EXPERIMENT, *changes), "nano", "configs/default.py", [], tmp_path / "runs")


def _finish(run, value, metrics=None, commit="abc"):
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.folder / "config.json", resolve(run.flags[:-1]).to_dict())
    rows = [{"step": n, "train/loss": 1.0 / n, "eval/accuracy": (value or 0) * n / 4} for n in (2, 4)]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    best = {"metric": "accuracy", "value": value, "step": 4}
    result = {"metrics": metrics or {"accuracy": value}, "best": best, "steps": 4, "seed": run.trial.seed}
    write_json(run.folder / "result.json", {**result, "commit": commit, "wall_seconds": 1.0})


@pytest.fixture(scope="session")
def finish():
    """finish(run, accuracy, metrics, commit) leaves what a finished training run leaves."""
    return _finish


FAKE = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none", "NO_GCE_CHECK": "true"}
NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def storage():
    """The Cloud Storage of gcsfs and tensorstore while it is there, in processes that a test starts too: one over HTTP
    on this machine."""
    store, url, stop = serve()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**FAKE, "STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url}.items():
            patch.setenv(name, value)
        yield store
    stop()


@pytest.fixture
def bucket(storage):
    """The text of a path in a bucket of its own."""
    return f"gs://bucket-{next(NUMBERS)}/all/runs"
