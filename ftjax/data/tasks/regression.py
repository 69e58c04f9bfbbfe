"""A number for a text, or for a pair of texts, in any file."""

from functools import partial

from ftjax.data.tasks.table import Source, load_table, scored
from ftjax.data.tasks.task import Task

COLUMNS = {"text": "text|sentence|sentence1", "text_pair": "text_pair|sentence2|", "score": "score|label"}
SOURCE = Source(COLUMNS, partial(scored, eos=""))
TASK = Task(
    ("regression", "similarity", "words"), COLUMNS, partial(load_table, source=SOURCE), scored, ("pearson", "spearman")
)
