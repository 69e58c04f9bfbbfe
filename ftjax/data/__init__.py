"""From files to batches: sources, tasks, encoding, layouts and the loader. Numpy on the host, no JAX."""

from ftjax.data.encode import encode_classification, encode_lm, encode_text_chunks
from ftjax.data.encoded import IGNORED, Encoded
from ftjax.data.loader import Loader
from ftjax.data.sources import Row, place, read_rows
from ftjax.data.tasks import TASKS, Labelled, Task, Text

__all__ = [
    "IGNORED",
    "TASKS",
    "Encoded",
    "Labelled",
    "Loader",
    "Row",
    "Task",
    "Text",
    "encode_classification",
    "encode_lm",
    "encode_text_chunks",
    "place",
    "read_rows",
]
