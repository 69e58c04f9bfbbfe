"""Reversing the letters of a name."""

from typing import Any

from ftjax.data.tasks.names import COLUMNS, load_names
from ftjax.data.tasks.task import Task, Text


def example(row: dict[str, Any], eos: str) -> Text:
    """emma -> 'Reverse the name: emma. Answer:' and ' amme'."""
    name = row["name"].strip()
    return Text(f"Reverse the name: {name}. Answer:", f" {name[::-1]}{eos}")


TASK = Task(("lm",), COLUMNS, load_names, example, metrics=("exact_match", "perplexity"))
