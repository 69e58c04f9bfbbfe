"""Rows from local files and from the Hugging Face hub, each knowing where it came from."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from ftjax.errors import UserError

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".txt")
SEPARATOR = "||"  # between the columns of a .txt line (Hu et al. 2021, the NLG data of LoRA)


class Row(dict[str, Any]):
    """A record that knows its place: `where` is 'file:row', the 1-based line of the file.

    A header counts as row 1; in a .json array `row` is the item's number.
    """

    def __init__(self, values: dict[str, Any], where: str):
        super().__init__(values)
        self.where = where


def place(row: dict[str, Any]) -> str:
    """Where a row came from, for messages; rows made by hand have no place."""
    return getattr(row, "where", "a row")


def suffix(path: str | Path) -> str:
    """The format suffix of a path, looking through .gz: 'a.tsv.gz' -> '.tsv'."""
    path = Path(path)
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def read_text(path: str | Path) -> str:
    """The whole text of a UTF-8 file, plain or .gz.

    Raises:
        UserError: a missing, corrupt or non-UTF-8 file.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a directory, not a file" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {kind}; give the path of an existing file")
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch or compress the file again") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8; convert the file to UTF-8") from None


def read_rows(path: str | Path, line_columns: Sequence[str] = ("context", "completion")) -> list[Row]:
    """Reads .jsonl, .json (an array of objects), .csv, .tsv (with a header) or .txt, each optionally .gz.

    Args:
        path: the file.
        line_columns: names of the `||`-separated columns of a .txt line, which has no header;
            with one name the whole line is the column. The last column keeps further separators.

    Returns:
        The rows in the file's order; blank lines are skipped.

    Raises:
        UserError: a missing or empty file, an unknown format, or a line that cannot be read.
    """
    path = Path(path)
    if path.is_file() and suffix(path) not in FORMATS:
        formats = ", ".join(FORMATS)
        raise UserError(f"{path}: unknown format '{suffix(path)}'; use one of {formats}, each optionally .gz")
    stream = io.StringIO(read_text(path), newline="")  # the csv module wants line ends as they are
    match suffix(path):
        case ".jsonl":
            rows = list(_jsonl(stream, path))
        case ".json":
            rows = list(_json(stream, path))
        case ".csv":
            rows = list(_table(stream, path, delimiter=",", strict=True))
        case ".tsv":  # GLUE's files hold bare quotes
            rows = list(_table(stream, path, delimiter="\t", quoting=csv.QUOTE_NONE))
        case _:
            rows = list(_lines(stream, path, line_columns))
    if not rows:
        raise UserError(f"{path}: has no rows; give a file with at least one")
    return rows


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f'{where}: not a JSON object; write one like {{"text": "..."}}')
    return Row(value, where)


def _jsonl(stream: TextIO, path: Path) -> Iterator[Row]:
    for number, line in enumerate(stream, 1):
        if line.strip():
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not JSON ({error.msg}); one object per line") from None
            yield _object(value, f"{path}:{number}")


def _json(stream: TextIO, path: Path) -> Iterator[Row]:
    try:
        values = json.load(stream)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg}); write an array of objects") from None
    if not isinstance(values, list):
        raise UserError(f"{path}:1: not a JSON array; write an array of objects, or one per line in a .jsonl")
    for number, value in enumerate(values, 1):
        yield _object(value, f"{path}:{number}")


def _table(stream: TextIO, path: Path, **dialect: Any) -> Iterator[Row]:
    reader = csv.reader(stream, **dialect)
    header: list[str] = []
    line = 1  # a quoted field may span lines: a row is named by its first
    try:
        for fields in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            if not fields:
                continue
            if not header:
                header = [name.strip() for name in fields]
                if len(set(header)) < len(header):
                    raise UserError(f"{where}: a column name appears twice in the header; rename one")
                continue
            if len(fields) != len(header):
                columns = ", ".join(header)
                raise UserError(f"{where}: {len(fields)} fields, not the header's {len(header)} ({columns})")
            yield Row(dict(zip(header, fields, strict=True)), where)
    except csv.Error as error:
        raise UserError(f"{path}:{line}: cannot be read ({error}); mend the quoting of this row") from None


def _lines(stream: TextIO, path: Path, columns: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        fields = line.rstrip("\r\n").split(SEPARATOR, len(columns) - 1)
        if len(fields) < len(columns):
            raise UserError(f"{path}:{number}: {len(fields)} column(s); write '{SEPARATOR.join(columns)}'")
        yield Row(dict(zip(columns, fields, strict=True)), f"{path}:{number}")


def find_split(directory: str | Path, split: str, names: Sequence[str]) -> Path:
    """The first of `names` in `directory`, each also looked for with .gz.

    Raises:
        UserError: there is none; the message names what was looked for and what is there.
    """
    directory = Path(directory)
    for name in names:
        for candidate in (directory / name, directory / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    there = sorted(p.name for p in directory.iterdir())
    shown = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
    wanted = " or ".join(names) if names else "a known file"
    raise UserError(
        f"{directory}: no {wanted} for the {split} split (there: {shown or 'nothing'}); set task.files.{split}"
    )


def is_hub_id(data: str) -> bool:
    """Whether `data` can only name a hub data set: 'name', 'owner/name' or '<id>:<configuration>'."""
    if Path(data).exists() or data.startswith((".", "/", "~")):
        return False
    return data.count("/") <= 1 and suffix(data) not in FORMATS


def load_hub(data: str, split: str) -> list[Row]:
    """One split of a hub data set, 'owner/name' or 'owner/name:configuration'.

    Raises:
        UserError: the data set or the split cannot be loaded, or the split is empty.
    """
    import datasets  # costs a second, and local files do not need it

    name, _, configuration = data.partition(":")
    try:
        table = datasets.load_dataset(name, configuration or None, split=split)
    except Exception as error:  # the hub's client raises many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{data}: no such local path, and the hub gave no '{split}' split ({reason}); "
            "set task.data to a directory, a file or a hub id"
        ) from None
    rows = [Row(dict(value), f"{data}[{split}]:{number}") for number, value in enumerate(table, 1)]
    if not rows:
        raise UserError(f"{data}[{split}]: has no rows; set task.files.{split}")
    return rows
