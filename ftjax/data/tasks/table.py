"""What the tasks share: from a config to rows whose columns are roles."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftjax.data.names import names
from ftjax.data.sources import Row, find_split, is_hub_id, load_hub, place, read_rows
from ftjax.data.tasks.task import Split
from ftjax.errors import UserError


def file_of(cfg: Any, split: Split) -> str:
    """`cfg.files.<split>`, '' where the task's own data serve.

    Raises:
        UserError: the split's file is absent though files.train is given.
    """
    path = getattr(cfg.files, split)
    if not path and cfg.files.train:
        raise UserError(
            f"task.files.{split} is not set though task.files.train is ({cfg.files.train}); "
            f"give the {split} rows as a file of their own"
        )
    return path


def columns_of(cfg: Any, defaults: Mapping[str, str]) -> dict[str, str]:
    """role -> column, `cfg.columns.<role>` before the task's default."""
    return {role: getattr(cfg.columns, role, "") or default for role, default in defaults.items()}


def to_roles(rows: Sequence[Row], columns: Mapping[str, str]) -> list[Row]:
    """Renames columns to roles and values to strings; other columns are left out.

    Raises:
        UserError: a row without the column, or with a value that is no text.
    """
    return [Row({role: _value(row, role, columns[role]) for role in columns}, place(row)) for row in rows]


def _value(row: Row, role: str, column: str) -> str:
    name = next((name for name in column.split("|") if name in row), None)
    if name is None:
        wanted = "' or '".join(column.split("|"))
        there = ", ".join(row) or "none"
        raise UserError(f"{place(row)}: no column '{wanted}' (columns: {there}); set task.columns.{role}")
    value = row[name]
    if value is None or isinstance(value, (list, dict)):
        raise UserError(f"{place(row)}: column '{name}' is {value!r:.40}; it must be text or a number")
    return str(value)


def limited(rows: list[Row], cfg: Any, split: Split) -> list[Row]:
    """The first max_train_rows or max_eval_rows; 0 takes all."""
    limit = cfg.max_train_rows if split == "train" else cfg.max_eval_rows
    return rows[:limit] if limit else rows


def load_table(cfg: Any, split: Split, defaults: Mapping[str, str], files: Mapping[str, Sequence[str]]) -> list[Row]:
    """Rows of a split from cfg.files, or from the directory or hub id cfg.data.

    Args:
        cfg: the task's config.
        split: train, validation or test.
        defaults: role -> default column.
        files: split -> the names that a directory's file may have.

    Raises:
        UserError: nothing to read, or what is read is not right.
    """
    columns = columns_of(cfg, defaults)
    path = file_of(cfg, split)
    if path:
        rows = read_rows(path, _line_columns(columns))
    elif not cfg.data:
        raise UserError(f"task.data and task.files.{split} are empty; give a directory, a hub id or files")
    elif is_hub_id(cfg.data):
        rows = load_hub(cfg.data, split)
    elif Path(cfg.data).is_dir():
        rows = read_rows(find_split(cfg.data, split, files.get(split, ())), _line_columns(columns))
    elif Path(cfg.data).is_file():
        raise UserError(f"{cfg.data}: a file, but task.data is a directory or hub id; use task.files.{split}")
    else:
        raise UserError(f"{cfg.data}: no such directory; set task.data to an existing one or to a hub id")
    return limited(to_roles(rows, columns), cfg, split)


def _line_columns(columns: Mapping[str, str]) -> list[str]:
    return [column.split("|")[0] for column in columns.values()]


def load_labelled(
    cfg: Any, split: Split, defaults: Mapping[str, str], files: Mapping[str, Sequence[str]], classes: Sequence[str]
) -> list[Row]:
    """`load_table` of rows with the role `label`, every one of them checked."""
    rows = load_table(cfg, split, defaults, files)
    for row in rows:
        class_index(row, "label", classes)
    return rows


def load_names(cfg: Any, split: Split, defaults: Mapping[str, str]) -> list[Row]:
    """Names from cfg.files, else from the one list in cfg.data, else from the generator.

    A single list (a file, or a directory with names.txt) is shuffled by random.Random(123) and cut
    80/10/10. Generated names are cut by train_size, validation_size and test_size.

    Raises:
        UserError: as `load_table`, or a list too short to cut.
    """
    if file_of(cfg, split) or (cfg.data and is_hub_id(cfg.data)):
        return load_table(cfg, split, defaults, {})
    columns = columns_of(cfg, defaults)
    if cfg.data:
        path = find_split(cfg.data, split, ("names.txt",)) if Path(cfg.data).is_dir() else cfg.data
        rows = to_roles(read_rows(path, _line_columns(columns)), columns)
        random.Random(123).shuffle(rows)
        bounds = (0, int(0.8 * len(rows)), int(0.9 * len(rows)), len(rows))
    else:
        sizes = (cfg.train_size, cfg.validation_size, cfg.test_size)
        path = "generated names"
        made = names(sum(sizes), cfg.seed)
        rows = [Row({"name": name}, f"{path}:{number}") for number, name in enumerate(made, 1)]
        bounds = (0, sizes[0], sizes[0] + sizes[1], sum(sizes))
    index = ("train", "validation", "test").index(split)
    part = rows[bounds[index] : bounds[index + 1]]
    if not part:
        raise UserError(f"{path}: the {split} split is empty ({len(rows)} rows in all); give more names")
    return limited(part, cfg, split)


def class_index(row: dict[str, str], role: str, classes: Sequence[str]) -> int:
    """The index of a row's label, given as an index or as a class's name.

    Raises:
        UserError: the label is neither.
    """
    label = row[role].strip()
    if label in classes:
        return classes.index(label)
    if label.isdecimal() and int(label) < len(classes):
        return int(label)
    known = ", ".join(f"{index} {name}" for index, name in enumerate(classes))
    raise UserError(f"{place(row)}: label '{label}' is none of the classes ({known}); mend it or the column")
