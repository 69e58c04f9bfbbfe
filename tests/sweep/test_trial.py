"""From an experiment's file to command lines, configs and folders."""

import importlib
import os
import re
from pathlib import Path

import pytest

from configs.default import get_config
from ftjax.data.tasks import TASKS
from ftjax.errors import UserError
from ftjax.kinds import KINDS
from ftjax.sweep.trial import SCALES, digest, identity, load_experiment, make_runs, plain, resolve
from tests.sweep.conftest import EXPERIMENT

CONFIG = "configs/default.py"


def runs(path, *overrides, scale="nano", workdir=None, digests=None):
    return make_runs(load_experiment(str(path), scale), scale, CONFIG, overrides, workdir, digests)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("name", "count"), [("lora_rank", 15), ("lora_targets", 7)])
def test_shipped_experiments_say_on_the_command_line_what_their_fields_say(name, count, scale, tmp_path):
    made = runs(f"experiments/{name}.py", scale=scale, workdir=tmp_path)
    seeds = {run.trial.seed for run in made}
    count *= 2 if scale == "small" else 1  # tasks
    assert len(made) == count * len(seeds) and len({run.folder for run in made}) == len(made)
    assert len({run.folder.parent for run in made}) == count
    for run in made:
        config = get_config(run.trial.axes)
        config.update_from_flattened_dict({**run.trial.fields, "seed": run.trial.seed})
        assert run.config == plain(config)


@pytest.mark.parametrize(
    ("name", "count", "scale"),
    [("kim_rush", 5, "nano"), ("kim_rush", 5, "small"), ("hinton", 6, "nano"), ("hinton", 6, "small"),
     ("symbolic_kd", 7, "nano")],
)  # fmt: skip
def test_shipped_experiments_that_prepare(name, count, scale, tmp_path):
    made = runs(f"experiments/{name}.py", scale=scale, workdir=tmp_path)
    assert len(made) == 3 * count == len({run.folder for run in made})
    assert {run.trial.seed for run in made} == {0, 1, 2}
    for run in made:
        config = get_config(run.trial.axes)
        config.update_from_flattened_dict({**run.trial.fields, "seed": run.trial.seed})
        assert run.config == plain(config)
        read = [flag for flag in run.flags[:-1] if str(tmp_path) in flag]
        taught = "distill=" in run.trial.axes and "distill=none" not in run.trial.axes
        assert bool(read) == (taught or name == "symbolic_kd")  # whose names are prepared too
        assert all(f"={tmp_path}/prepared/" in flag for flag in read) and not any("{" in flag for flag in run.flags)
    with pytest.raises(UserError, match="no trials at scale paper"):
        runs(f"experiments/{name}.py", scale="paper", workdir=tmp_path)


TABLES = [
    str(path) for path in sorted(Path("experiments").glob("*.py")) if "def trials(scale: str)" in path.read_text()
]


@pytest.mark.parametrize("table", TABLES)
def test_every_table_builds_at_every_scale(table, tmp_path):
    made, shown = 0, set()
    for scale in SCALES:
        experiment = load_experiment(table, scale)
        shown |= {(name, cell) for name, numbers in experiment.paper.items() for cell in numbers}
        if trials := experiment.trials(scale):
            # a run a cell: `make_runs` looks at its fields, and at the paper's cells
            first = experiment._replace(trials=lambda s, trials=trials: [t for t in trials if t.seed == trials[0].seed])
            found = make_runs(first, scale, CONFIG, [], tmp_path)
            assert len({run.folder for run in found}) == len(found)
            for run in found:
                task = TASKS[run.config["task.name"]]
                known = {"loss", *(KINDS[run.config["task.objective"] or task.objectives[0]].metrics or task.metrics)}
                for name in (run.trial.metrics or experiment.metrics).values():
                    assert re.sub(r"_(beam|sampled)\d+$", "", name.rpartition("/")[2]) in known, run.label
            made += len(found)
    series = getattr(importlib.import_module(f"experiments.{Path(table).stem}"), "SERIES", {})
    assert made and "{cost}" not in experiment.doc
    assert shown >= {(name, cell) for name, numbers in series.items() for cell in numbers}


def test_a_papers_numbers_may_be_of_a_scale(write, tmp_path):
    path = write(
        EXPERIMENT, ('paper = {"theirs"', 'paper = lambda scale: {scale: {}} if scale == "small" else {"theirs"')
    )
    assert load_experiment(path, "small").paper == {"small": {}}
    assert load_experiment(path, "nano").paper == {"theirs": {("one", "r=2"): 70.0}}


def test_equal_budget_is_equal(tmp_path):
    for run in runs("experiments/lora_targets.py", workdir=tmp_path):
        sites = 4 if run.config["method.targets"] == ["attention"] else len(run.config["method.targets"])
        assert sites * run.config["method.rank"] == 8


def test_identity(tmp_path):
    (tmp_path / "rows.csv").write_text("name\nemma\n")
    flags = [f"--config={CONFIG}:task=vowels", f"--config.task.data={tmp_path / 'rows.csv'}"]
    of = lambda *more: identity(plain(resolve([*flags, *more])))  # noqa: E731
    first = of()
    assert first == of("--config.seed=7") == of("--config.mesh.data=2") == of("--config.method.rank=8")
    assert len({first, of("--config.method.rank=4"), of("--config.task.max_length=63")}) == 3
    os.utime(tmp_path / "rows.csv", (0, 0))
    digest.cache_clear()
    assert of() == first
    (tmp_path / "rows.csv").write_text("name\nanna\n")
    digest.cache_clear()
    assert of() != first


def test_digests(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "a").write_bytes(b"x" * (3 << 20))
    first = digest(str(model))
    for name, content in (("a", b"x" * (3 << 20) + b"y"), ("a", b"y" + b"x" * ((3 << 20) - 1)), ("b", b"")):
        (model / name).write_bytes(content)
        digest.cache_clear()
        assert digest(str(model)) != first
        (model / "b").unlink(missing_ok=True)
        (model / "a").write_bytes(b"x" * (3 << 20))
    digest.cache_clear()
    (model / ".hidden").write_text("")
    assert digest(str(model)) == first
    assert digest("nano-gpt") and digest("nano-gpt") != digest("nano-bert")
    assert not digest("org/somewhere") and not digest("long " * 99)
    run = tmp_path / "run"
    run.mkdir()
    (run / "result.json").write_text("{}")
    before = digest(str(run))
    (run / "events").write_text("")
    digest.cache_clear()
    assert digest(str(run)) == before


def test_digests_of_the_time_serve_where_the_data_are_gone(write, tmp_path):
    data = tmp_path / "rows.csv"
    data.write_text("name\nemma\n")
    override = f"--config.task.data={data}"
    first = runs(write(), override, workdir=tmp_path)
    digests = {str(data): digest(str(data)), "nano-gpt": digest("nano-gpt")}
    data.unlink()
    digest.cache_clear()
    assert runs(write(), override, workdir=tmp_path, digests=digests) == first
    assert runs(write(), override, workdir=tmp_path)[0].folder != first[0].folder


def test_overrides_are_for_all_trials(write, tmp_path):
    made = runs(write(), "--config.method.rank=3", "--config.model.path=nano-bert", workdir=tmp_path)
    assert {(run.config["method.rank"], run.config["model.path"]) for run in made} == {(3, "nano-bert")}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("from ftjax.sweep import Trial", "import no_such_module", ("table.py: line 6", "no_such_module")),
        ("percent = True", "percent = (", ("table.py", "never closed")),
        ("def trials", "def others", ("table.py", "trials(scale)")),
        ('targets = {"one"', 'scale = scale.none; targets = {"one"', ("trials('nano')", "line 14", "none")),
        ("for rank in (2, 8)", "for rank in ()", ("no trials", "nano")),
        ("for seed in (0, 1)", "for seed in (0, 0)", ("two trials", "'one'", "r=2", "seed 0")),
        ("method.rank", "method.ranks", ("one, r=2", "rank")),
        ("task=vowels", "task=owls", ("one, r=2", "owls", "vowels")),
        ('("one", "r=2")', '("one", "r=3")', ("theirs", "r=3")),
    ],
)
def test_bad_experiments(write, tmp_path, old, new, words):
    with pytest.raises(UserError) as error:
        runs(write(EXPERIMENT, (old, new)), workdir=tmp_path)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_no_such_experiment(tmp_path):
    for path in ("nowhere.py", str(tmp_path), "README.md"):
        with pytest.raises(UserError, match="no such experiment"):
            load_experiment(path, "nano")
