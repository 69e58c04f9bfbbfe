"""`ftjax score`: corpus values and intervals to the terminal, each row's to a file."""

import json

import pytest

from ftjax.cli import score
from ftjax.cli.main import main
from ftjax.data.tasks import TASKS
from ftjax.metrics import measure

ROWS = [
    {"prediction": "Blue Spice is a coffee shop.", "references": ["Blue Spice is a coffee shop in town.", "A shop."]},
    {"prediction": "The pub is cheap.", "references": ["The pub is not cheap."], "id": 7},
    {"prediction": "", "references": ["Nothing was said."]},
]


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """run(*flags, rows, file) -> (exit code, stdout, the lines of ours on stderr); there is no METEOR."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    def call(*flags, rows=ROWS, file="in.jsonl"):
        lines = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / file).write_text(lines)
        code = main(["score", f"--predictions={tmp_path / file}", *flags])
        said = capsys.readouterr()
        return code, said.out, [line for line in said.err.splitlines() if line.startswith("ftjax: ")]

    return call


def test_a_task(run, tmp_path):
    code, out, err = run("--task=e2e", f"--per_example={tmp_path / 'rows.jsonl'}")
    assert code == 0 and len(err) == 1 and "no meteor: pycocoevalcap is not installed" in err[0]
    said, predictions = json.loads(out), [row["prediction"] for row in ROWS]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    names = ["bleu", "nist", "rouge_l", "cider", "chrf"]
    assert said["rows"] == 3 and all(list(row) == names for row in rows)
    for name in names:
        found = measure(name, predictions, [row["references"] for row in ROWS])
        assert said[name] == found.value and [row[name] for row in rows] == found.rows
        assert said.get(f"{name}_interval") == (list(found.interval() or ()) or None)


@pytest.mark.parametrize("flags, names", [
    (["--metrics=exact_match,rouge1"], {"exact_match", "rouge1"}),
    (["--task=e2e", "--metrics=chrf"], {"chrf"}),
    (["--task=squad"], {"squad_exact_match", "squad_f1"}),
    (["--task=summarisation"], {"rouge1", "rouge2", "rougeL"}),
    (["--task=translation"], {"bleu_cased", "chrf"}),
    (["--task=classification"], {"exact_match"}),
])  # fmt: skip
def test_which_metrics(run, flags, names):
    code, out, err = run(*flags)
    assert code == 0 and not err
    assert {name for name in json.loads(out) if not name.endswith("_interval")} == {"rows", *names}


@pytest.mark.parametrize("task, run, bleu", [
    ("e2e", "e2e", "bleu"), ("webnlg", "webnlg", "bleu"), ("dart", "dart", "bleu_cased"),
    ("translation", "multi30k", "bleu_cased"),
])  # fmt: skip
def test_a_task_is_scored_as_its_runs_are(task, run, bleu):
    of_runs = [name for name in TASKS[run].metrics if name != "perplexity"]
    assert {*of_runs} <= {*score.TASKS[task]} and [name for name in of_runs if name.startswith("bleu")] == [bleu]


@pytest.mark.parametrize("flags, words", [
    ([], ["--task", "--metrics"]),
    (["--task=nothing"], ["--task", "e2e"]),
    (["--metrics=bleu,f1"], ["f1", "rouge_l"]),
    (["--metrics=meteor"], ["no METEOR", "pycocoevalcap"]),
    (["--task=e2e", "--per_example=nowhere/out.jsonl"], ["nowhere/out.jsonl", "a folder that is there"]),
    (["--task=e2e", "--predictions=nowhere.jsonl"], ["nowhere.jsonl", "no such file"]),
])  # fmt: skip
def test_bad_input(run, flags, words):
    code, out, err = run(*flags)
    assert code == 2 and not out and len(err) == 1 and all(word in err[0] for word in words), err


@pytest.mark.parametrize("row, word", [
    ('{"references": ["a"]}', "no text under 'prediction'"),
    ('{"prediction": 3, "references": ["a"]}', "no text under 'prediction'"),
    ('{"prediction": "a"}', "no list of texts under 'references'"),
    ('{"prediction": "a", "references": "a"}', "no list of texts under 'references'"),
    ('{"prediction": "a", "references": ["a", null]}', "no list of texts under 'references'"),
    ('{"prediction": "a", "references": []}', "'references' is empty"),
    ('["a"]', "not a JSON object"),
    ('{"prediction": ', "not JSON"),
])  # fmt: skip
def test_bad_rows_are_named(run, row, word):
    code, _, err = run("--task=e2e", rows=json.dumps(ROWS[0]) + "\n\n" + row + "\n")
    assert code == 2 and len(err) == 1 and "in.jsonl:3: " in err[0] and word in err[0], err


def test_bad_files(run):
    code, _, err = run("--task=e2e", rows="\n")
    assert code == 2 and len(err) == 1 and "in.jsonl: has no rows" in err[0]
    code, _, err = run("--task=e2e", file="in.csv")
    assert code == 2 and "in.csv: give a .jsonl file" in err[0]
