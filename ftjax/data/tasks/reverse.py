"""Reversing the letters of a name."""

from typing import Any

from ftjax.data.sources import Row
from ftjax.data.tasks.table import load_names
from ftjax.data.tasks.task import Split, Task, Text, no_classes

COLUMNS = {"name": "name"}


def load(cfg: Any, split: Split) -> list[Row]:
    """Rows with the role `name`."""
    return load_names(cfg, split, COLUMNS)


def example(row: dict[str, str], eos: str) -> Text:
    """emma -> 'Reverse the name: emma. Answer:' and ' amme'."""
    name = row["name"].strip()
    return Text(f"Reverse the name: {name}. Answer:", f" {name[::-1]}{eos}")


TASK = Task(
    objective="lm",
    columns=COLUMNS,
    load=load,
    example=example,
    classes=no_classes,
    metrics=("exact_match", "perplexity"),
    main_metric=("exact_match", "max"),
)
