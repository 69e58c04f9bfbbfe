"""Tables of records, by hand."""

import csv
import io
import os
import re

import pytest

from ftjax.errors import UserError
from ftjax.sweep.record import read
from ftjax.sweep.table import charts, check_code, make_table, write
from ftjax.sweep.workdir import claim, open_sweep, plan


@pytest.fixture
def table_of(finish):
    """table_of(sweep, values of the first runs, **finish's) -> its table."""

    def make(sweep, *values, **more):
        for run, value in zip(sweep.runs, values):
            finish(run, value, **more)
        return make_table(sweep, [read(run) for run in sweep.runs])

    return make


def test_text(sweep, table_of):
    text = " ".join(write(table_of(sweep(), 0.5, 0.6, 0.25), "text", "abc", None).split())
    assert "| one | 55.0 ± 7.1 (2) | 25.0 (1 of 2) | | theirs | 70.0 | |" in text
    assert "| two | missing (0 of 2) | missing (0 of 2) |" in text
    assert "3 of 8 runs done; commit abc." in text and "Seeds 0, 1" in text
    assert "missing: one, r=8, seed 1 (waiting)" in text and text.count("missing: ") == 5
    assert "Accuracy at each run's best evaluation, in %" in text


def test_markdown_latex_and_csv(sweep, table_of):
    table = table_of(sweep(), 0.5, 0.6)
    text = write(table, "markdown", "abc", None)
    assert text.startswith("# A table\n\nWhat it is about.\n\n`ftjax sweep ") and "- missing: two, r=2, seed 0" in text
    text = write(table, "latex", "abc", None)
    assert r"one & 55.0 $\pm$ 7.1 (2) & missing (0 of 2) \\" in text and r"\begin{tabular}{lrr}" in text
    rows = list(csv.DictReader(io.StringIO(write(table, "csv", "abc", None))))
    assert [(r["row"], r["column"], r["n"], r["planned"], r["theirs"]) for r in rows[:2]] == [
        ("one", "r=2", "2", "2", "70.0"), ("one", "r=8", "0", "2", ""),
    ]  # fmt: skip
    assert float(rows[0]["mean"]) == 55 and float(rows[0]["sd"]) == pytest.approx(50**0.5) and rows[1]["mean"] == ""


def test_page_with_curves_and_links(sweep, table_of, tmp_path):
    curves = 'curves = {"eval/accuracy": {"their curve": [(0, 1.0)]}}\n'
    table = table_of(sweep(('paper = {"', f'{curves}paper = {{"')), 0.4, 0.8)
    text = write(table, "html", "abc", tmp_path / "runs")
    links = re.findall(r'href="([^"]+)"', text)
    assert any((tmp_path / "runs" / link).samefile(table.sweep.runs[0].folder) for link in links if ".json" not in link)
    assert all(".." not in link and not link.startswith("/") for link in links)
    assert len(links) == 16 and "their curve" in text and "one: train/loss" in text
    assert charts(table)[1].count("<circle") == 3  # the mean over two seeds at two steps, and theirs


def test_a_trials_own_metrics(sweep, finish):
    own = '"steps": 4}, {"loss": "loss", "f1": "f1"} if row == "two" else {})'
    made = sweep(('"steps": 4})', own))
    for run in made.runs:
        finish(run, 0.5, {"accuracy": 0.5, "loss": 0.25, "f1": 0.75})
    table = make_table(made, [read(run) for run in made.runs])
    assert table.columns == ["r=2", "r=8", "r=2 loss", "r=2 f1", "r=8 loss", "r=8 f1"]
    assert table.cells["one", "r=2"].mean == 50 and ("two", "r=2") not in table.cells
    assert table.cells["two", "r=8 loss"].mean == 25 and table.cells["two", "r=8 f1"].mean == 75
    assert "Final loss, f1; accuracy at each run's best evaluation, in %" in write(table, "text", "abc", None)


def test_named_metrics_are_columns(sweep, table_of):
    named = ("percent = True", 'metrics = ("bleu", "nist")'), ('("one", "r=2")', '("one", "r=2 nist")')
    made = sweep(*named)
    table = table_of(made, 0.5, 0.5, metrics={"bleu": 70.1234, "nist": 8.5})
    assert table.columns == ["r=2 bleu", "r=2 nist", "r=8 bleu", "r=8 nist"]
    text = write(table, "text", "abc", None)
    assert "70.12 ± 0 (2)" in text and "Final bleu, nist: mean" in text
    with pytest.raises(UserError, match=r"one, r=2, seed 0 has no nist \(there are bleu\)"):
        table_of(made, 0.5, metrics={"bleu": 1.0})


def test_what_is_wrong_is_named(sweep, table_of, tmp_path):
    made = sweep()
    table_of(made, 0.5, None, 0.5)
    (made.runs[2].folder / "result.json").write_text("{")
    stray = tmp_path / "runs" / "0123" / "seed0"
    stray.mkdir(parents=True)
    (stray / "config.json").write_text("{}")
    text = write(make_table(made, [read(run) for run in made.runs]), "text", "abc", None)
    assert f"damaged: one, r=8, seed 0: {made.runs[2].folder / 'result.json'}" in text
    assert "no value: one, r=2, seed 1" in text and "50.0 (1 of 2)" in text
    assert f"no trial of this experiment as it is now: {stray}" in text


def test_other_code(sweep, table_of, finish):
    made = sweep()
    table = table_of(made, 0.5)
    check_code(table.records, "abc")
    finish(made.runs[1], 0.5, commit="def")
    table = table_of(made)
    assert "commit abc (1), def (1); not all by the code as it is now, abc." in write(table, "text", "abc", None)
    for records, now in ((table.records, "abc"), (table.records[:1], "other"), (table.records[:1], None)):
        with pytest.raises(UserError, match="other code"):
            check_code(records, now)
    finish(made.runs[0], 0.5, commit="abc+")
    with pytest.raises(UserError, match=r"abc\+"):
        check_code(table_of(made).records[:1], "abc+")


def test_render_adds_markdown(sweep, table_of):
    more = '\n\ndef render(records):\n    return f"{len(records)} records"\n'
    text = write(table_of(sweep(("]\n", "]\n" + more)), 0.5), "markdown", "abc", None)
    assert text.endswith("1 records\n")


def test_a_folder_knows_its_sweep(sweep, write_experiment_elsewhere, tmp_path):
    made = sweep()
    claim(made, "configs/default.py")
    assert open_sweep(tmp_path / "runs").runs == made.runs
    experiment = made.experiment.path
    more = (experiment, "nano", ["--config.steps=3"])
    for other in ((experiment, "paper", []), (write_experiment_elsewhere, "nano", []), more):
        with pytest.raises(UserError, match="another sweep"):
            plan(other[0], other[1], "configs/default.py", other[2], tmp_path / "runs")
    flags = ["--config.steps=3", "--config.method.rank=2"]
    claim(plan(experiment, "nano", "configs/default.py", flags, tmp_path / "other"), "configs/default.py")
    respelled = os.path.relpath(experiment), "nano", "./configs/default.py", flags[::-1]
    assert {run.folder for run in plan(*respelled, tmp_path / "other").runs} == {
        run.folder for run in open_sweep(tmp_path / "other").runs
    }
    for text in ("{", "[]", '{"scale": 1}'):
        (tmp_path / "runs" / "sweep.json").write_text(text)
        with pytest.raises(UserError, match=r"sweep\.json"):
            open_sweep(tmp_path / "runs")
    with pytest.raises(UserError, match=r"no sweep\.json"):
        open_sweep(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*/file/x: "):
        claim(made._replace(workdir=tmp_path / "file" / "x"), "")


@pytest.fixture
def write_experiment_elsewhere(tmp_path):
    """The path of another experiment."""
    return str(tmp_path / "other.py")
