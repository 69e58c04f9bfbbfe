"""A tag for each word, in any file: columns of words and tags, or rows with a list of each.

`task.scheme` says what the tags are: bio, iob1, which is made bio, or none, tags that are single words' own.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ftjax.data.bad import BadRows
from ftjax.data.columns import in_scheme, read_columns
from ftjax.data.sources import Row, suffix
from ftjax.data.tasks.table import Columns, Source, as_texts, found_classes, load_table, read_table
from ftjax.data.tasks.task import Split, Tagged, Task
from ftjax.errors import UserError

COLUMNS = {"words": "words|tokens|form|0", "tags": "tags|ner_tags|-1"}
SUFFIXES = (".conll", ".conllu", ".tsv", ".txt", ".jsonl", ".json")


def read(path: Path, columns: Columns, bad: BadRows) -> list[Row]:
    """Rows of JSON, or the sentences of a file of columns, whatever its suffix."""
    return (read_table if suffix(path) in (".json", ".jsonl") else _sentences)(path, columns, bad)


def _sentences(path: Path, columns: Columns, bad: BadRows) -> list[Row]:
    return read_columns(path, bad)


def check(row: Row, scheme: str = "none", classes: Sequence[str] | None = None) -> None:
    """Brings the tags into the scheme.

    Raises:
        UserError: an empty word, not one tag for each word, or a tag that is none of the scheme or the classes.
    """
    words, tags = row["words"], row["tags"]
    if len(words) != len(tags):
        raise UserError(f"{row.where}: {len(words)} words and {len(tags)} tags; give each word one")
    if empty := [number for number, word in enumerate(words, 1) if not word.strip()]:
        raise UserError(f"{row.where}: word {empty[0]} is empty; leave it out with its tag")
    try:
        row["tags"] = in_scheme(tags, scheme)
    except ValueError as error:
        raise UserError(f"{row.where}: {error}") from None
    if classes is not None and (other := [tag for tag in row["tags"] if tag not in classes]):
        raise UserError(f"{row.where}: the tag '{other[0]}' is none of the classes ({', '.join(classes)})")


def load_tagged(cfg: Any, split: Split, bad: BadRows, source: Source, classes: Sequence[str] | None) -> list[Row]:
    """Rows with the roles `words` and `tags`, lists of equal length; tags of cfg.scheme, among `classes` if given."""
    return load_table(cfg, split, bad, source._replace(check=_check(cfg, classes)))


def _check(cfg: Any, classes: Sequence[str] | None) -> Any:
    if cfg.scheme not in ("bio", "iob1", "none"):
        raise UserError(f"task.scheme={cfg.scheme!r}: give bio, iob1 or none")
    return partial(check, scheme=cfg.scheme, classes=classes)


def example(row: dict[str, Any], eos: str) -> Tagged:
    """Words and tags as they stand."""
    return Tagged(tuple(row["words"]), tuple(row["tags"]))


def tagging_task(
    columns: Columns, classes: Sequence[str], files: dict[str, Sequence[str]], metrics: tuple[str, ...]
) -> Task:
    """A task of tags that are known beforehand."""
    source = Source(columns, check, files, SUFFIXES, read=read, take=dict.fromkeys(columns, as_texts))
    return Task(
        objectives=("tagging",),
        columns=dict(columns),
        load=partial(load_tagged, source=source, classes=classes),
        example=example,
        metrics=metrics,
        classes=lambda cfg: tuple(classes),
    )


SOURCE = Source(COLUMNS, check, formats=SUFFIXES, read=read, take=dict.fromkeys(COLUMNS, as_texts))


def load(cfg: Any, split: Split, bad: BadRows) -> list[Row]:
    """`load_tagged` with the classes of the config; of those of the training rows, whoever encodes the tags knows."""
    return load_tagged(cfg, split, bad, SOURCE, classes(cfg) if cfg.classes else None)


def classes(cfg: Any) -> tuple[str, ...]:
    """cfg.classes, or the tags of the training rows, sorted; with a B-KIND its I-KIND, O where there is a scheme.

    Raises:
        UserError: a class that is none of the scheme's; as `found_classes`.
    """
    found = found_classes(cfg, SOURCE._replace(check=_check(cfg, None)), "tags")
    if cfg.scheme == "none":
        return found
    try:
        kinds = sorted({tag[2:] for tag in in_scheme(found, cfg.scheme)} - {""})
    except ValueError as error:
        raise UserError(f"task.classes: {error}, or set task.scheme=none") from None
    return ("O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI"))


TASK = Task(("tagging",), COLUMNS, load, example, ("accuracy", "entity_f1"), classes)
