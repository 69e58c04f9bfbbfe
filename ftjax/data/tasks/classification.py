"""Classes of texts, or of pairs of texts, in any file: `task.classes`, or what the training rows hold."""

from typing import Any

from ftjax.data.bad import BadRows
from ftjax.data.sources import Row
from ftjax.data.tasks.table import Source, found_classes, load_table
from ftjax.data.tasks.task import Labelled, Split, Task, class_of
from ftjax.errors import UserError

COLUMNS = {"text": "text|sentence|sentence1|premise", "text_pair": "text_pair|sentence2|hypothesis|", "label": "label"}


def check(row: Row) -> None:
    """UserError without a label."""
    row["label"] = row["label"].strip()
    if not row["label"]:
        raise UserError(f"{row.where}: the label is empty; give it a class")


SOURCE = Source(COLUMNS, check)


def load(cfg: Any, split: Split, bad: BadRows) -> list[Row]:
    """Rows with the roles `text`, `label`, a class's name, and, where the file has them, `text_pair`.

    The name is one of `cfg.classes`, by it or by its index. Where there are none, the label stands as it is: whoever
    encodes the rows knows what was found, and no other split is read for it here.
    """
    if not cfg.classes:
        return load_table(cfg, split, bad, SOURCE)
    known = classes(cfg)

    def name(row: Row) -> None:
        row["label"] = known[class_of(row["label"], known, row.where)]

    return load_table(cfg, split, bad, SOURCE._replace(check=name))


def example(row: dict[str, Any], eos: str) -> Labelled:
    """The text, or the pair, as it stands, and the class's name."""
    pair = row.get("text_pair")
    return Labelled(row["text"].strip(), row["label"], None if pair is None else pair.strip())


def classes(cfg: Any) -> tuple[str, ...]:
    """cfg.classes, or the labels of the training rows, sorted, numbers by size."""
    return found_classes(cfg, SOURCE, "label")


TASK = Task(
    ("classification", "similarity", "words", "choice"), COLUMNS, load, example, ("accuracy", "macro_f1"), classes
)
