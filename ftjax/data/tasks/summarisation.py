"""Summaries of documents, in any file; the columns of SAMSum, CNN/DailyMail and XSum are known."""

from functools import partial
from typing import Any

from ftjax.data.tasks.table import Source, filled, load_table
from ftjax.data.tasks.task import Task, Text

COLUMNS = {"document": "document|dialogue|article|text", "summary": "summary|highlights|target"}


def example(row: dict[str, Any], eos: str) -> Text:
    """'...\\nSummary:' and the summary after a space. UserError where one is empty."""
    return Text(f"{filled(row, 'document')}\nSummary:", f" {filled(row, 'summary')}{eos}")


SOURCE = Source(COLUMNS, partial(example, eos=""))
TASK = Task(("lm",), COLUMNS, partial(load_table, source=SOURCE), example, ("perplexity", "rouge1", "rouge2", "rougeL"))
