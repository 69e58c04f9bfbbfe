"""TREC: the kind of answer that a question asks for, six classes (Li & Roth 2002)."""

from pathlib import Path

from ftjax.data.bad import BadRows
from ftjax.data.sources import Row, read_text, suffix
from ftjax.data.tasks.table import Columns, classification_task, read_table
from ftjax.errors import UserError


def read(path: Path, columns: Columns, bad: BadRows) -> list[Row]:
    """The original's lines, 'DESC:manner How did serfdom develop ?' in Latin-1, or a table."""
    if suffix(path) != ".label":
        return read_table(path, columns, bad)
    rows = []
    for number, line in enumerate(read_text(path, "latin-1").split("\n"), 1):
        if line.strip():
            with bad:
                kind, _, question = line.strip().partition(" ")
                label, colon, _ = kind.partition(":")
                if not colon or not question:
                    raise UserError(f"{path}:{number}: write 'CLASS:kind question'")
                text, label_column = (column.split("|")[0] for column in (columns["text"], columns["label"]))
                rows.append(Row({text: question, label_column: label}, f"{path}:{number}"))
    return rows


TASK = classification_task(
    columns={"text": "text", "label": "coarse_label|label"},
    classes=("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"),
    files={"train": ("train_5500.label",), "test": ("TREC_10.label",)},
    numbers=False,
    read=read,
)
