"""A table's trials from what all of them share and what each cell changes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ftjax.errors import UserError
from ftjax.sweep import Trial
from ftjax.sweep.trial import columns

Cells = Mapping[tuple[str, str], tuple[str, Mapping[str, Any]]]  # (row, column) -> its axes (method=...), its fields
Numbers = Mapping[str, Mapping[tuple[str, str], float]]  # a paper's: series -> (row, column) -> value
UNTOUCHED = {"epochs": None, "steps": 1, "eval_every": 1, "optimizer.learning_rate": 0.0, "optimizer.warmup": 0.0}


class Recipe(NamedTuple):
    """What all trials of a table share at a scale."""

    axes: str  # model=...,task=...
    fields: Mapping[str, Any]
    seeds: Sequence[int]

    def trials(self, cells: Cells, metrics: Mapping[str, str] | None = None) -> list[Trial]:
        """A trial for each cell and seed, `metrics` as in `Trial`; a cell's fields come last, None takes one away."""
        whole = lambda own: {name: x for name, x in {**self.fields, **own}.items() if x is not None}  # noqa: E731
        return [
            Trial(row, column, seed, f"{self.axes},{axes}", whole(fields), metrics or {})
            for seed in self.seeds
            for (row, column), (axes, fields) in cells.items()
        ]


def at_scale(series: Numbers, trials: Callable[[str], Iterable[Trial]]) -> Callable[[str], Numbers]:
    """A table's `paper`: at each scale those of its numbers whose cells are among the trials there."""

    def paper(scale: str) -> Numbers:
        there = {(trial.row, column) for trial in trials(scale) for column in columns(trial, {})}
        return {name: {key: x for key, x in numbers.items() if key in there} for name, numbers in series.items()}

    return paper


def needed(folder: Path, names: Iterable[str]) -> None:
    """UserError where what a table's user has to put into its `prepared` folder is not there."""
    if missing := [name for name in names if not (folder / name).exists()]:
        raise UserError(f"{folder}: no {', '.join(missing)} there; put (links to) them there before the sweep")
