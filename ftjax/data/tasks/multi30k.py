"""Multi30k: descriptions of pictures in another language (Elliott et al. 2016).

`task.source` and `task.target` are languages (en, de, fr, cs), `task.test_set` the name of the test files.
"""

from functools import partial
from pathlib import Path
from typing import Any

from ftjax.data.bad import BadRows
from ftjax.data.sources import FORMATS, Row, read_parallel, suffix
from ftjax.data.tasks.table import Columns, Source, filled, load_table, read_table
from ftjax.data.tasks.task import Split, Task, Text
from ftjax.errors import UserError

COLUMNS = {"source": "en", "target": "de"}  # task.source and task.target


def read(path: Path, columns: Columns, bad: BadRows) -> list[Row]:
    """A table with a column for each language, or a file of the source language's lines beside one of the target's."""
    if suffix(path) in FORMATS:
        return read_table(path, columns, bad)
    source, target = (column.split("|")[0] for column in (columns["source"], columns["target"]))
    if suffix(path) != f".{source}":
        raise UserError(f"{path}: give the source language's file, with the suffix .{source}, or a table")
    stem, _, packing = path.name.rpartition(f".{source}")
    return read_parallel({source: path, target: path.with_name(f"{stem}.{target}{packing}")}, bad)


def expand(row: Row) -> tuple[Row]:
    """The hub's {"translation": {"en": ..., "de": ...}} is what it holds."""
    inside = row.get("translation")
    return (Row(inside, row.where) if isinstance(inside, dict) else row,)


def load(cfg: Any, split: Split, bad: BadRows) -> list[Row]:
    """Rows with the roles `source` and `target`."""
    if not cfg.source or not cfg.target or cfg.source == cfg.target:
        raise UserError(f"task.source={cfg.source!r} task.target={cfg.target!r}: give two languages, such as en and de")
    names = {"train": ("train",), "validation": ("val",), "test": (cfg.test_set,)}
    source = SOURCE._replace(
        columns={"source": cfg.source, "target": cfg.target},
        files={split: tuple(f"{name}.{cfg.source}" for name in stems) for split, stems in names.items()},
    )
    return load_table(cfg, split, bad, source)


def example(row: dict[str, Any], eos: str) -> Text:
    """'A boy.\\nTranslation:' and ' Ein Junge.', as written. UserError where one is empty."""
    return Text(f"{filled(row, 'source')}\nTranslation:", f" {filled(row, 'target')}{eos}")


SOURCE = Source(COLUMNS, partial(example, eos=""), read=read, expand=expand)
TASK = Task(
    ("lm",), COLUMNS, load, example, ("perplexity", "bleu_cased", "chrf"),
    languages=lambda cfg: (cfg.source, cfg.target),
)  # fmt: skip
