"""Prompts and what follows them, in any file, as they stand: a space between the two is the file's own.

Where the rows of an evaluation have a column `part`, its metrics are said of each part as well, as `part/exact_match`.
"""

from functools import partial
from typing import Any

from ftjax.data.sources import place
from ftjax.data.tasks.table import Source, load_table
from ftjax.data.tasks.task import Task, Text
from ftjax.errors import UserError

COLUMNS = {"prompt": "prompt|context|question", "completion": "completion|answer|response", "part": "part|"}


def example(row: dict[str, Any], eos: str) -> Text:
    """The two as they stand, eos at the end. UserError for an empty completion."""
    if not row["completion"]:
        raise UserError(f"{place(row)}: the completion is empty; give it text")
    return Text(row["prompt"], row["completion"] + eos, row.get("part", ""))


SOURCE = Source(COLUMNS, partial(example, eos=""))
TASK = Task(
    ("lm",), COLUMNS, partial(load_table, source=SOURCE), example, ("perplexity", "exact_match", "bits_per_byte")
)
