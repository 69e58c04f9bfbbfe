"""ftjax score --task=e2e --predictions=FILE.jsonl: metrics of texts against their references.

Each line has a `prediction` and `references`, a list of texts: {"prediction": "...", "references": ["...", "..."]}.
Corpus values, with 95% bootstrap intervals where they are cheap, are printed as JSON; each row's own values go to
--per_example=OUT.jsonl, by the same names (there `bleu` is smoothed, and `nist` counts the row's references alone).
"""

import json
import sys
from pathlib import Path
from typing import Any

from absl import flags

from ftjax.errors import UserError
from ftjax.files import check_other, local, write_rows

DATA_TO_TEXT = ("bleu", "nist", "rouge_l", "cider", "chrf", "meteor")
TASKS = {
    "e2e": DATA_TO_TEXT,
    "webnlg": DATA_TO_TEXT,
    "dart": ("bleu_cased", *DATA_TO_TEXT[1:]),
    "summarisation": ("rouge1", "rouge2", "rougeL"),
    "translation": ("bleu_cased", "chrf"),
    "squad": ("squad_exact_match", "squad_f1"),
    "classification": ("exact_match",),
}


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The command's flags."""
    flags.DEFINE_enum("task", None, [*TASKS], "whose metrics to take", flag_values=values)
    flags.DEFINE_list("metrics", None, "metrics to take, in place of a task's: bleu,nist", flag_values=values)
    flags.DEFINE_string("predictions", None, "the file (JSON lines)", flag_values=values)
    flags.DEFINE_string("per_example", None, "file for each row's values (JSON lines)", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Prints corpus values, and writes each row's."""
    from ftjax.metrics import WRITTEN, measure
    from ftjax.metrics.meteor import why_absent

    get: Any = lambda name: values[name].value  # noqa: E731
    task, names, source = get("task"), get("metrics"), get("predictions")
    if not source or not (task or names):
        raise UserError("give --predictions=FILE.jsonl and --task=NAME or --metrics=NAME,...")
    if unknown := [name for name in names or () if name not in WRITTEN]:
        raise UserError(f"--metrics={','.join(unknown)}: give some of {', '.join(WRITTEN)}")
    output = local(get("per_example"), "--per_example") if get("per_example") else None
    check_other(Path(source), output, "--per_example")
    predictions, references = _read(Path(source))
    wanted = names or TASKS[task]
    if "meteor" in wanted and not names and (reason := why_absent()):
        print(f"ftjax: no meteor: {reason}", file=sys.stderr)
        wanted = [name for name in wanted if name != "meteor"]
    result: dict[str, Any] = {"rows": len(predictions)}
    rows: list[dict[str, Any]] = [{} for _ in predictions]
    for name in wanted:
        found = measure(name, predictions, references)
        result[name] = found.value
        if interval := found.interval():
            result[f"{name}_interval"] = list(interval)
        for row, value in zip(rows, found.rows or ()):
            row[name] = value
    if output:
        write_rows(output, rows)
    print(json.dumps(result, indent=2))


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    from ftjax.data.sources import place, read_rows, suffix

    if suffix(path) != ".jsonl":
        raise UserError(f"{path}: give a .jsonl file, a prediction and its references a line")
    predictions, references = [], []
    for row in read_rows(path):
        golds = row.get("references")
        if not isinstance(row.get("prediction"), str):
            raise UserError(f"{place(row)}: no text under 'prediction'")
        if not isinstance(golds, list) or not all(isinstance(gold, str) for gold in golds):
            raise UserError(f"{place(row)}: no list of texts under 'references'")
        if not golds:
            raise UserError(f"{place(row)}: 'references' is empty; give at least one text, '' where none is right")
        predictions.append(row["prediction"])
        references.append(golds)
    return predictions, references
