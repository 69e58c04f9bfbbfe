"""STS-B: how alike two sentences are, from 0 to 5 (Cer et al. 2017, in GLUE)."""

from functools import partial
from typing import Any

from ftjax.data.sources import Row
from ftjax.data.tasks.table import Source, load_table, read_table, scored
from ftjax.data.tasks.task import Task
from ftjax.errors import UserError

COLUMNS = {"text": "sentence1", "text_pair": "sentence2", "score": "score|label"}
FILES = {"train": ("sts-train.csv",), "validation": ("sts-dev.csv",), "test": ("sts-test.csv",)}
HEADER = ("genre", "file", "year", "id", "score", "sentence1", "sentence2", "...")  # of the files above, which lack it


def check(row: Row) -> Any:
    """UserError where the score is none from 0 to 5."""
    if not 0 <= scored(row, "").score <= 5:
        raise UserError(f"{row.where}: the score is {row['score']}; it must be from 0 to 5")


SOURCE = Source(
    COLUMNS,
    check,
    FILES,
    read=partial(read_table, header=HEADER, tabbed=True, bare=True),
)
TASK = Task(
    ("regression", "similarity", "words"), COLUMNS, partial(load_table, source=SOURCE), scored, ("spearman", "pearson")
)
