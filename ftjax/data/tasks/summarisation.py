"""Summaries of documents, in any file; the columns of SAMSum, CNN/DailyMail and XSum are known."""

from functools import partial
from typing import Any

from ftjax.data.tasks.table import Source, load_table
from ftjax.data.tasks.task import Task, Text

COLUMNS = {"document": "document|dialogue|article|text", "summary": "summary|highlights|target"}


def example(row: dict[str, Any], eos: str) -> Text:
    """'...\\nSummary:' and the summary after a space."""
    return Text(f"{row['document'].strip()}\nSummary:", f" {row['summary'].strip()}{eos}")


SOURCE = Source(COLUMNS, partial(example, eos=""))
TASK = Task(("lm",), COLUMNS, partial(load_table, source=SOURCE), example, ("perplexity", "rouge1", "rouge2", "rougeL"))
