"""Rows that are one name each, read or made."""

from pathlib import Path
from typing import Any

from ftjax.data.bad import BadRows
from ftjax.data.names import names
from ftjax.data.sources import Row, find_split, is_hub_id
from ftjax.data.tasks.table import Source, columns_of, cut, file_of, load_table, part_of, to_roles
from ftjax.data.tasks.task import Split
from ftjax.errors import UserError

COLUMNS = {"name": "name"}


def load_names(cfg: Any, split: Split, bad: BadRows) -> list[Row]:
    """Names from cfg.files, else from the one list in cfg.data, else from the generator.

    A single list (a file, or a directory with names.txt) is shuffled by random.Random(123) and cut
    80/10/10. Generated names are cut by train_size, validation_size and test_size.

    Raises:
        UserError: as `load_table`, or a list too short to cut.
    """
    source = Source(COLUMNS, check=lambda row: None)
    if file_of(cfg, split) or (cfg.data and is_hub_id(cfg.data)):
        return load_table(cfg, split, bad, source)
    if cfg.data:
        columns, before = columns_of(cfg, COLUMNS), len(bad.messages)
        path = find_split(cfg.data, split, ("names.txt",)) if Path(cfg.data).is_dir() else Path(cfg.data)
        return cut(to_roles(source.read(path, columns, bad), columns, bad, source, path, before), cfg, split, path)
    for name in ("train_size", "validation_size", "test_size"):
        if getattr(cfg, name) < 0:
            raise UserError(f"task.{name}={getattr(cfg, name)}: give 0 or more")
    made = names(cfg.train_size + cfg.validation_size + cfg.test_size, cfg.seed)
    rows = [Row({"name": name}, f"generated names:{number}") for number, name in enumerate(made, 1)]
    return part_of(rows, (cfg.train_size, cfg.train_size + cfg.validation_size), cfg, split, "generated names")
