"""An experiment's records as a table: mean, spread and number of each cell, the paper's numbers beneath, and by name
what is missing, damaged or of other code."""

import csv
import io
import os
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ftjax.errors import UserError
from ftjax.files import in_bucket
from ftjax.sweep.prepare import prepared_by
from ftjax.sweep.record import Record, curve
from ftjax.sweep.render import html_table, latex_table, page, svg, text_table
from ftjax.sweep.trial import columns
from ftjax.sweep.workdir import Sweep

FORMATS = {"text": ".txt", "markdown": ".md", "latex": ".tex", "csv": ".csv", "html": ".html"}


class Cell(NamedTuple):
    """What was measured for a row and column, and of how many runs; no value is made up for those that are missing."""

    values: tuple[float, ...]
    planned: int

    @property
    def mean(self) -> float | None:
        """None without a value."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def sd(self) -> float | None:
        """Of the sample (n - 1); None of fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


class Table(NamedTuple):
    """`cells[row, column]`, with rows and columns in the order of the trials, and the records they come from."""

    sweep: Sweep
    records: list[Record]
    rows: list[str]
    columns: list[str]
    cells: dict[tuple[str, str], Cell]


def make_table(sweep: Sweep, records: Sequence[Record]) -> Table:
    """Gathers the cells; `records` in the order of the sweep's runs.

    Raises:
      UserError: a metric that the experiment names and that a run does not have.
    """
    planned: Counter[tuple[str, str]] = Counter()
    found: dict[tuple[str, str], list[float]] = {}
    for run, record in zip(sweep.runs, records, strict=True):
        values = _values(sweep, record) if record.state == "done" else []
        names = columns(run.trial, sweep.experiment.metrics)
        for i, name in enumerate(names):
            key = run.trial.row, name
            planned[key] += 1
            found.setdefault(key, []).extend(v for v in values[i : i + 1] if v is not None)
    cells = {key: Cell(tuple(values), planned[key]) for key, values in found.items()}
    rows, names = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    return Table(sweep, list(records), rows, names, cells)


def _values(sweep: Sweep, record: Record) -> list[float | None]:
    metrics, result = record.run.trial.metrics or sweep.experiment.metrics, record.result
    if wrong := [name for name in metrics.values() if name not in result["metrics"]]:
        there = ", ".join(result["metrics"])
        raise UserError(f"{sweep.experiment.path}: metrics: {record.run.label} has no {wrong[0]} (there are {there})")
    found = [result["metrics"][name] for name in metrics.values()] or [result["best"]["value"]]
    return [None if value is None else value * (100 if sweep.experiment.percent else 1) for value in found]


def check_code(records: Sequence[Record], now: str | None) -> None:
    """UserError where a result was made by other code than `now`, or by a changed working tree."""
    made = Counter(r.result["commit"] for r in records if r.state == "done")
    if wrong := [f"{code} ({count})" for code, count in made.items() if code != now or not code or code.endswith("+")]:
        raise UserError(f"results by other code than commit {now}: {', '.join(wrong)}; take another --workdir")


def grid(table: Table) -> tuple[list[str], list[list[str]]]:
    """(header, rows): each measured row, and beneath it a row for each series of the paper's that has it."""
    number = _number(table)
    rows = []
    for row in table.rows:
        rows.append([row, *(_shown(table.cells.get((row, name)), number) for name in table.columns)])
        for series, numbers in table.sweep.experiment.paper.items():
            if any((row, name) in numbers for name in table.columns):
                values = (numbers.get((row, name)) for name in table.columns)
                rows.append([series, *("" if value is None else number(value) for value in values)])
    return ["", *table.columns], rows


def _number(table: Table) -> Callable[[float], str]:
    return (lambda x: f"{x:.1f}") if table.sweep.experiment.percent else (lambda x: f"{x:.4g}")


def _shown(cell: Cell | None, number: Callable[[float], str]) -> str:
    if cell is None:
        return ""
    if cell.mean is None:
        return f"missing (0 of {cell.planned})"
    n, spread = len(cell.values), "" if cell.sd is None else f" ± {number(cell.sd)}"
    return f"{number(cell.mean)}{spread} ({n}{'' if n == cell.planned else f' of {cell.planned}'})"


def facts(table: Table, now: str | None) -> list[str]:
    """Command, seeds, code, machine, time and what the numbers are, each a sentence; `now` is the code's commit."""
    done = [r for r in table.records if r.state == "done"]
    attempts = [a for r in table.records for a in r.attempts]
    commits = Counter(str(r.result["commit"]) for r in done)
    code = ", ".join(f"{commit} ({n})" if len(commits) > 1 else commit for commit, n in commits.items()) or "none yet"
    mismatch = f"; not all by the code as it is now, {now}" if done and set(commits) != {str(now)} else ""
    experiment, seeds = table.sweep.experiment, sorted({r.run.trial.seed for r in table.records})
    processes = {(a.host, a.processes[-1]) if len(a.processes) > 1 else id(a): a for a in attempts}  # some share one
    seconds = sum((a.ended or a.started) - a.started for a in processes.values())
    final = dict.fromkeys(name for r in table.records for name in (r.run.trial.metrics or experiment.metrics).values())
    what = f"Final {', '.join(final)}" if final else ""
    if best := [r for r in table.records if not (r.run.trial.metrics or experiment.metrics)]:
        names = ", ".join(sorted({r.result["best"]["metric"] for r in best if r.state == "done"})) or "main metric"
        what = "; ".join(filter(None, [what, f"{names} at each run's best evaluation"]))
        what = what[0].upper() + what[1:]
    return [
        f"`{table.sweep.command}`",
        f"Seeds {', '.join(map(str, seeds))}; {len(done)} of {len(table.records)} runs done; commit {code}{mismatch}."
        + (f" Prepared by commit {prepared}." if (prepared := prepared_by(table.sweep)) else ""),
        f"Machine: {', '.join(sorted({a.machine for a in attempts})) or 'none yet'}; {seconds:.0f} s in all processes, "
        "start-up and compilation included.",
        f"{what}{', in %' if experiment.percent else ''}: mean ± standard deviation over seeds (number of runs).",
    ]


def notes(table: Table) -> list[str]:
    """What is missing, damaged or foreign, by name."""
    lines = [f"damaged: {r.run.label}: {r.problem}" for r in table.records if r.state == "damaged"]
    lines += [f"missing: {r.run.label} ({r.state})" for r in table.records if r.state not in ("done", "damaged")]
    lines += [f"no value: {r.run.label}: its metric was never a number" for r in table.records
              if r.state == "done" and None in _values(table.sweep, r)]  # fmt: skip
    return lines + [f"no trial of this experiment as it is now: {folder}" for folder in table.sweep.strays()]


def write(table: Table, form: str, now: str | None, home: Path) -> str:
    """The table as text, Markdown, LaTeX, CSV or an HTML page.

    Args:
      now: the code's commit; home: the folder that a page's links start from.
    """
    header, rows = grid(table)
    known, wrong = facts(table, now), notes(table)
    title, _, rest = table.sweep.experiment.doc.partition("\n")
    more = table.sweep.experiment.render([r for r in table.records if r.state == "done"]).strip()
    if form == "csv":
        return _csv(table)
    if form == "latex":
        said = "".join(f"% {line}\n" for line in [*known, *wrong])
        return f"{said}{latex_table(header, rows)}\n"
    if form == "html":
        said = [rest.strip(), "\n".join(known), "\n".join(wrong), more]
        parts = [html_table(header, rows), *charts(table), _runs(table, home)]
        return page(title, "\n\n".join(filter(None, said)), parts)
    body = [text_table(header, rows, left=1), *(["\n".join(f"- {line}" for line in wrong)] if wrong else [])]
    body += [more] if more else []
    if form == "text":
        return "\n\n".join(["\n".join([title, *known]), *body]) + "\n"
    return "\n\n".join([f"# {title.rstrip('.')}", rest.strip(), *known, *body]) + "\n"


def _csv(table: Table) -> str:
    """A line a cell, numbers in full."""
    series = table.sweep.experiment.paper
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(["row", "column", "mean", "sd", "n", "planned", *series])
    for (row, name), cell in table.cells.items():
        numbers = (cells.get((row, name), "") for cells in series.values())
        blank = lambda x: "" if x is None else x  # noqa: E731
        lines.writerow([row, name, blank(cell.mean), blank(cell.sd), len(cell.values), cell.planned, *numbers])
    return out.getvalue()


def charts(table: Table) -> list[str]:
    """For each row of the table its loss and metrics over steps: a curve a column, the mean over the seeds at the steps
    that all have; the paper's curves over them."""
    done = [r for r in table.records if r.state == "done"]
    metrics = tuple(table.sweep.experiment.metrics.values()) or tuple(
        dict.fromkeys(r.result["best"]["metric"] for r in done)
    )
    out = []
    for row in table.rows:
        for name in ("train/loss", *(f"eval/{metric}" for metric in metrics)):
            curves = {}
            for column in dict.fromkeys(r.run.trial.column for r in done if r.run.trial.row == row):
                mine = [dict(curve(r.run.folder, name)) for r in done
                        if (r.run.trial.row, r.run.trial.column) == (row, column)]  # fmt: skip
                steps = sorted(set.intersection(*map(set, mine)))
                curves[column or row] = [(step, statistics.fmean(c[step] for c in mine)) for step in steps]
            curves |= table.sweep.experiment.curves.get(name, {})
            out.append(svg(f"{row}: {name}", "step", name, curves))
    return out


def _runs(table: Table, home: Path) -> str:
    rows = []
    for run, record in zip(table.sweep.runs, table.records):
        trial = run.trial
        values = _values(table.sweep, record) if record.state == "done" else []
        shown = ", ".join("none" if v is None else _number(table)(v) for v in values) or record.state
        folder, config = (run.folder.parent.name, _link(run.folder, home)), run.folder / "config.json"
        logs = [attempt.log(run.folder) for attempt in record.attempts[-1:]]
        log = [(logs[0].name, _link(logs[0], home))] if logs else [""]
        rows.append([trial.row, trial.column, str(trial.seed), shown, folder, (config.name, _link(config, home)), *log])
    return html_table(["row", "column", "seed", "value", "run", "config", "log"], rows)


def _link(path: Path, home: Path) -> str:
    """From a page in `home`; from elsewhere a bucket's place as it is called."""
    return str(path) if in_bucket(path) and not in_bucket(home) else os.path.relpath(path, home)
