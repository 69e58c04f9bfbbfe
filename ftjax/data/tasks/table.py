"""What the tasks share: from a config to rows whose columns are roles."""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ftjax.data.bad import BadRows
from ftjax.data.sources import FORMATS, Row, find_split, is_hub_id, load_hub, none_left, place, read_rows
from ftjax.data.tasks.task import Labelled, Scored, Split, Task, class_of
from ftjax.errors import UserError

Columns = Mapping[str, str]  # role -> column; 'a|b' where files differ; 'a|' where it may be absent
STEMS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def read_table(path: str | Path, columns: Columns, bad: BadRows, **how: Any) -> list[Row]:
    """`read_rows` of a file of which the columns are wanted; a .txt has those that may not be absent."""
    names = [column.split("|")[0] for column in columns.values() if not column.endswith("|")]
    wanted = [name for column in columns.values() for name in column.split("|")]
    return read_rows(path, names, bad, columns=wanted, **how)


read_bare = partial(read_table, bare=True)


def as_text(value: Any) -> str:
    """A text or a number as text. Raises ValueError for anything else."""
    if value is None or not isinstance(value, (str, int, float)) or value != value:
        raise ValueError("it must be text or a number")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half a surrogate pair, which is no character") from None
    return text


def as_texts(value: Any) -> list[str]:
    """A list of texts. Raises ValueError for anything else."""
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError("it must be a list of texts")
    return [as_text(one) for one in value]


class Source(NamedTuple):
    """Where a task's rows are, and how what is read becomes roles.

    Attributes:
        columns: role -> column.
        check: looks at a row of roles, and raises UserError where it is not right.
        files: split -> names that a directory's file may have, before the usual ones (train.jsonl, dev.tsv, ...).
        formats: suffixes of the usual names.
        hub: split -> the hub's name for it, where it is another.
        read: (path, columns, bad) -> rows of a file.
        expand: a row as it was read -> the rows that it holds.
        take: role -> what makes its value of a column's; it raises ValueError.
        ragged: whether rows may differ in the roles that they have.
    """

    columns: Columns
    check: Callable[[Row], Any]
    files: Mapping[str, Sequence[str]] = {}
    formats: Sequence[str] = FORMATS
    hub: Mapping[str, str] = {}
    read: Callable[[Path, Columns, BadRows], list[Row]] = read_table
    expand: Callable[[Row], Iterable[Row]] = lambda row: (row,)
    take: Mapping[str, Callable[[Any], Any]] = {}
    ragged: bool = False


def file_of(cfg: Any, split: Split) -> str:
    """`cfg.files.<split>`, '' where the task's own data serve.

    Raises:
        UserError: the split's file is absent though files.train is given.
    """
    paths = {name: getattr(cfg.files, name) for name in STEMS}  # read as one: a run's splits can be evaluated later
    if not paths[split] and paths["train"]:
        raise UserError(
            f"task.files.{split} is not set though task.files.train is ({paths['train']}); "
            f"give the {split} rows as a file of their own"
        )
    return paths[split]


def columns_of(cfg: Any, defaults: Columns) -> dict[str, str]:
    """role -> column, `cfg.columns.<role>` before the task's default."""
    return {role: getattr(cfg.columns, role, "") or default for role, default in defaults.items()}


def limited(rows: list[Row], cfg: Any, split: Split) -> list[Row]:
    """The first max_train_rows or max_eval_rows; 0 takes all."""
    name = "max_train_rows" if split == "train" else "max_eval_rows"
    limit = getattr(cfg, name)
    if limit < 0:
        raise UserError(f"task.{name}={limit}: give 0 (all) or more")
    return rows[:limit] if limit else rows


def load_table(cfg: Any, split: Split, bad: BadRows, source: Source) -> list[Row]:
    """Rows of a split from cfg.files, or from the directory or hub id cfg.data.

    Raises:
        UserError: nothing to read, what is read is not right, or no row is left.
    """
    return limited(load_all(cfg, split, bad, source), cfg, split)


def load_all(cfg: Any, split: Split, bad: BadRows, source: Source) -> list[Row]:
    """`load_table`, whatever max_train_rows and max_eval_rows are."""
    columns, before = columns_of(cfg, source.columns), len(bad.messages)
    path = file_of(cfg, split)
    if path:
        rows = source.read(Path(path), columns, bad)
    elif not cfg.data:
        raise UserError(f"task.data and task.files.{split} are empty; give a directory, a hub id or files")
    elif is_hub_id(cfg.data):
        rows = load_hub(cfg.data, source.hub.get(split, split))
    elif Path(cfg.data).is_dir():
        usual = (stem + suffix for stem in STEMS[split] for suffix in source.formats)
        path = find_split(cfg.data, split, (*source.files.get(split, ()), *usual))
        rows = source.read(path, columns, bad)
    elif Path(cfg.data).is_file():
        raise UserError(f"{cfg.data}: a file, but task.data is a directory or hub id; use task.files.{split}")
    else:
        raise UserError(f"{cfg.data}: no such directory; set task.data to an existing one or to a hub id")
    return to_roles(rows, columns, bad, source, path or cfg.data, before)


def to_roles(
    rows: Iterable[Row], columns: Columns, bad: BadRows, source: Source, name: str | Path, before: int
) -> list[Row]:
    """Rows of roles, checked; other columns are left out.

    Args:
        name: where they are from.
        before: how many messages `bad` had before they were read.

    Raises:
        UserError: a row without the column, or with a value that is not right; no row is left.
    """
    out: list[Row] = []
    usual: set[str] | None = None
    for row in rows:
        with bad:
            found = [_roles(one, columns, source.take) for one in source.expand(row)]
            for one in found:
                roles = set(one)
                if not source.ragged and (odd := roles ^ (usual or roles)):
                    there = "a" if odd <= roles else "no"
                    raise UserError(
                        f"{one.where}: {there} column for '{min(odd)}', unlike the rows before; give all rows the same"
                    )
                source.check(one)
                usual = usual or roles
            out += found
    if not out:
        raise none_left(name, bad.messages[before:])
    return out


def _roles(row: Row, columns: Columns, take: Mapping[str, Callable[[Any], Any]]) -> Row:
    out = Row({}, place(row))
    for role, column in columns.items():
        names = column.split("|")
        name = next((name for name in names if name in row), "")
        if name:
            try:
                out[role] = take.get(role, as_text)(row[name])
            except ValueError as error:
                raise UserError(f"{place(row)}: column '{name}' is {row[name]!r:.40}: {error}") from None
        elif names[-1]:
            wanted, there = "' or '".join(names), ", ".join(row) or "none"
            raise UserError(f"{place(row)}: no column '{wanted}' (columns: {there}); set task.columns.{role}")
    return out


def cut(rows: list[Row], cfg: Any, split: Split, name: str | Path) -> list[Row]:
    """A split of rows that are in one list: shuffled by random.Random(123) and cut 80/10/10.

    Raises:
        UserError: nothing is left for it.
    """
    random.Random(123).shuffle(rows)
    return part_of(rows, (int(0.8 * len(rows)), int(0.9 * len(rows))), cfg, split, name)


def part_of(rows: list[Row], bounds: tuple[int, int], cfg: Any, split: Split, name: str | Path) -> list[Row]:
    """The rows before, between or after the bounds, those of train, validation or test; `limited`."""
    edges, index = (0, *bounds, len(rows)), ("train", "validation", "test").index(split)
    part = rows[edges[index] : edges[index + 1]]
    if not part:
        raise UserError(f"{name}: the {split} split is empty ({len(rows)} rows in all); give more rows")
    return limited(part, cfg, split)


def found_classes(cfg: Any, source: Source, role: str) -> tuple[str, ...]:
    """cfg.classes, or where there are none all that the training rows hold: sorted, numbers by size.

    Raises:
        UserError: fewer than two, or one twice.
    """
    if given := tuple(map(str, cfg.classes)):
        if len(given) < 2 or len(set(given)) < len(given):
            raise UserError(f"task.classes={given}: give two or more different ones, as ('no','yes')")
        return given
    bad = BadRows("skip")  # what is wrong with the rows is told where they are loaded, if there are classes
    rows = load_all(cfg, "train", bad, source)
    return sorted_classes((row[role] for row in rows), bad)


def sorted_classes(labels: Iterable[str | list[str]], bad: BadRows) -> tuple[str, ...]:
    """The distinct labels, sorted, numbers by size.

    Raises:
        UserError: fewer than two; where rows were bad, with what is wrong with the first.
    """
    found = set(chain.from_iterable([one] if isinstance(one, str) else one for one in labels))
    if len(found) < 2:
        lost = f"; {len(bad.messages)} more rows are bad, the first: {bad.messages[0]}" if bad.messages else ""
        raise UserError(
            f"task.classes is empty and the training rows hold {sorted(found)} alone; give two or more{lost}"
        )
    numbers = all(name.isascii() and name.isdecimal() for name in found)
    return tuple(sorted(found, key=int if numbers else str))


def classification_task(
    columns: Columns,
    classes: Sequence[str],
    files: Mapping[str, Sequence[str]] | None = None,
    metrics: tuple[str, ...] = ("accuracy",),
    aliases: Mapping[str, str] | None = None,
    numbers: bool = True,
    load: Callable[..., list[Row]] = load_table,
    read: Callable[[Path, Columns, BadRows], list[Row]] = read_bare,
    **how: Any,
) -> Task:
    """A task of one class for a text, or for a pair where there is a column `text_pair`.

    Args:
        columns: of text, label and, of pairs, text_pair.
        classes: their names.
        files: split -> names of a directory's file.
        metrics: the first chooses the best checkpoint.
        aliases: what files call a class -> its name.
        numbers: whether a label may be the class's index. Not where data sets of the same name count differently.
        load: in place of `load_table`, whose arguments it has.
        read: the `Source`'s.
        how: further fields of the `Source`.
    """
    names = aliases or {}

    def example(row: Mapping[str, Any], eos: str) -> Labelled:
        """The text, or the pair, as it stands, and the class's index."""
        given: str = row["label"].strip()
        label = class_of(names.get(given, given), classes, place(row), numbers)
        pair = row.get("text_pair")
        return Labelled(row["text"].strip(), label, None if pair is None else pair.strip())

    source = Source(columns, partial(example, eos=""), files or {}, read=read, **how)
    kinds = ("classification", *(("similarity",) if "text_pair" in columns else ()), "words", "choice")
    return Task(
        objectives=kinds,
        columns=dict(columns),
        load=partial(load, source=source),
        example=example,
        metrics=metrics,
        classes=lambda cfg: tuple(classes),
    )


def filled(row: Mapping[str, Any], role: str) -> str:
    """The role's text without the space around it. UserError where nothing is left."""
    text = row[role].strip()
    if not text:
        raise UserError(f"{place(row)}: the {role} is empty; give it text")
    return text


def scored(row: Mapping[str, Any], eos: str) -> Scored:
    """The text, or the pair, and its number.

    Raises:
        UserError: `score` is no finite number.
    """
    try:
        score = float(row["score"])
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f"{place(row)}: the score is '{row['score']}'; it must be a finite number")
    pair = row.get("text_pair")
    return Scored(row["text"].strip(), score, None if pair is None else pair.strip())
