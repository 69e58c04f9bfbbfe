"""Rows from local files and from the Hugging Face hub, each knowing where it came from."""

import bz2
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ftjax.data.bad import BadRows
from ftjax.errors import UserError
from ftjax.lean import show_torch

csv.field_size_limit(2**31 - 1)  # a field may be a whole document

PACKED: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".bz2": bz2.decompress}
FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".txt")
SEPARATOR = "||"  # between the columns of a .txt line (Hu et al. 2021, the NLG data of LoRA)


class Row(dict[str, Any]):
    """A record that knows its place: `where` is 'file:row', the 1-based line of the file.

    A header counts as row 1; in a .json array `row` is the item's number.
    """

    def __init__(self, values: dict[str, Any], where: str):
        super().__init__(values)
        self.where = where


def place(row: Mapping[str, Any]) -> str:
    """Where a row came from, for messages; rows made by hand have no place."""
    return getattr(row, "where", "a row")


def suffix(path: str | Path) -> str:
    """The format suffix of a path, looking through .gz and .bz2: 'a.tsv.gz' -> '.tsv'."""
    path = Path(path)
    return path.with_suffix("").suffix if path.suffix in PACKED else path.suffix


def read_text(path: str | Path, encoding: str = "utf-8-sig") -> str:
    """The whole text of a file, plain, .gz or .bz2; line ends as they are.

    Raises:
        UserError: a missing or corrupt file, or one that is not in the encoding.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a directory, not a file" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {kind}; give the path of an existing file")
    try:
        data = path.read_bytes()
        data = PACKED[path.suffix](data) if path.suffix in PACKED else data
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch or compress the file again") from None
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8; convert the file to UTF-8") from None


def read_json(path: str | Path) -> Any:
    """The value of a .json file.

    Raises:
        UserError: as `read_text`, or what is there is not JSON.
    """
    return _parse(read_text(path), Path(path), 1)


def _parse(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{line + error.lineno - 1}: not JSON ({error.msg}); mend it") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise UserError(f"{path}:{line}: not JSON that can be read ({error}); mend it") from None


def read_rows(
    path: str | Path,
    line_columns: Sequence[str] = ("context", "completion"),
    bad: BadRows | None = None,
    *,
    header: Sequence[str] = (),
    columns: Sequence[str] = (),
    tabbed: bool = False,
    bare: bool = False,
) -> list[Row]:
    """Reads .jsonl, .json (an array of objects), .csv, .tsv (with a header) or .txt, each optionally .gz or .bz2.

    A .tsv's fields are what is between tabs, quotes and all.

    Args:
        path: the file.
        line_columns: names of the `||`-separated columns of a .txt line, which has no header;
            with one name the whole line is the column. The last column keeps further separators.
        bad: what happens to a row that cannot be read; the error by default.
        header: the columns of a .csv or .tsv whose first line names none of `columns`, and so is a row already;
            a last '...' allows fields beyond them, which are left out.
        columns: names of which a header has at least one.
        tabbed: a .csv or .txt whose first line has a tab is read as .tsv.
        bare: a .tsv's field that looks quoted as a .csv's ("so ""it"" is") is taken as it stands too, as GLUE's are;
            else it is an error.

    Returns:
        The rows in the file's order; blank lines are skipped.

    Raises:
        UserError: a missing or empty file, an unknown format, no header, or a line that cannot be read.
    """
    path, bad = Path(path), bad or BadRows()
    if path.is_file() and suffix(path) not in FORMATS:
        formats = ", ".join(FORMATS)
        raise UserError(f"{path}: unknown format '{suffix(path)}'; use one of {formats}, each optionally .gz")
    text, known, before = read_text(path), suffix(path), len(bad.messages)
    if tabbed and known in (".csv", ".txt") and "\t" in text.partition("\n")[0]:
        known = ".tsv"
    match known:
        case ".jsonl":
            rows = list(_jsonl(text, path, bad))
        case ".json":
            rows = list(_json(text, path, bad))
        case ".csv":
            rows = list(_table(text, path, bad, header, columns, True, delimiter=",", strict=True))
        case ".tsv":
            rows = list(_table(text, path, bad, header, columns, bare, delimiter="\t", quoting=csv.QUOTE_NONE))
        case _:
            rows = list(_lines(text, path, bad, line_columns))
    if not rows:
        raise none_left(path, bad.messages[before:])
    return rows


def none_left(where: str | Path, messages: Sequence[str]) -> UserError:
    """The error where no row is left: `messages` say what was wrong with those that were left out."""
    if not messages:
        return UserError(f"{where}: has no rows; give it at least one")
    return UserError(f"{where}: all {len(messages)} rows are bad; the first: {messages[0]}")


def read_parallel(paths: Mapping[str, str | Path], bad: BadRows) -> list[Row]:
    """Rows of files whose lines belong together: column -> path. A row's place is the first file's line.

    Raises:
        UserError: files of different length, or an empty line.
    """
    lines = {column: read_text(path).split("\n") for column, path in paths.items()}
    for found in lines.values():
        if not found[-1]:
            found.pop()
    counts = {str(paths[column]): len(found) for column, found in lines.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{path} has {count} lines" for path, count in counts.items())
        raise UserError(f"{said}: they do not belong together; give files of which each line translates the other's")
    rows, first, before = [], next(iter(paths.values())), len(bad.messages)
    for number, values in enumerate(zip(*lines.values()), 1):
        with bad:
            row = Row({column: value.rstrip("\r") for column, value in zip(lines, values)}, f"{first}:{number}")
            for column, value in row.items():
                if not value.strip():
                    raise UserError(f"{paths[column]}:{number}: an empty line; give every line a text")
            rows.append(row)
    if not rows:
        raise none_left(first, bad.messages[before:])
    return rows


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f'{where}: not a JSON object; write one like {{"text": "..."}}')
    return Row(value, where)


def _jsonl(text: str, path: Path, bad: BadRows) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            with bad:
                yield _object(_parse(line, path, number), f"{path}:{number}")


def _json(text: str, path: Path, bad: BadRows) -> Iterator[Row]:
    values = _parse(text, path, 1)
    if not isinstance(values, list):
        raise UserError(f"{path}:1: not a JSON array; write an array of objects, or one per line in a .jsonl")
    for number, value in enumerate(values, 1):
        with bad:
            yield _object(value, f"{path}:{number}")


def _table(
    text: str, path: Path, bad: BadRows, header: Sequence[str], columns: Sequence[str], bare: bool, **dialect: Any
) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), **dialect)  # the csv module wants line ends as they are
    names: list[str] = []
    line = 1  # a quoted field may span lines: a row is named by its first
    while True:
        where, fields, wrong = f"{path}:{line}", [], None
        try:
            fields = next(reader, None)
        except csv.Error as error:
            wrong = UserError(f"{where}: cannot be read ({error}); mend the quoting of this row")
            if not names or (reader.line_num > line and "end of data" in str(error)):  # a quote that is never closed
                raise wrong from None
        line = reader.line_num + 1
        if fields is None:
            return
        if fields and not names:
            names = [name.strip() for name in fields]
            headless = header and not set(names) & set(columns)
            names = list(header) if headless else names
            if not bare:
                _refuse_quoted(names, where)
            if len(set(names)) < len(names):
                raise UserError(f"{where}: a column name appears twice in the header; rename one")
            fields = fields if headless else []
        with bad:
            if wrong:
                raise wrong
            if fields:
                fitting = _fitting(fields, names, where)
                if not bare:
                    _refuse_quoted(fitting, where, '""')  # without one it may be a quotation
                yield Row(dict(zip(names, fitting)), where)


def _fitting(fields: list[str], names: list[str], where: str) -> list[str]:
    more = names[-1] == "..."
    if len(fields) == len(names) or (more and len(fields) >= len(names) - 1):
        return fields[: len(names) - more]
    raise UserError(f"{where}: {len(fields)} fields, not the header's {len(names)} ({', '.join(names)}); mend the row")


def _refuse_quoted(fields: list[str], where: str, within: str = "") -> None:
    """UserError where a field is quoted as a .csv's, and has `within` inside."""
    for field in fields:
        inside = field[1:-1]
        if len(field) > 1 and field[0] == field[-1] == '"' and within in inside and '"' not in inside.replace('""', ""):
            raise UserError(
                f"{where}: {field:.40} is quoted as a .csv's, and a .tsv is read as it stands; write a .csv"
            )


def _lines(text: str, path: Path, bad: BadRows, columns: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        with bad:
            fields = line.rstrip("\r").split(SEPARATOR, len(columns) - 1)
            if len(fields) < len(columns):
                raise UserError(f"{path}:{number}: {len(fields)} column(s); write '{SEPARATOR.join(columns)}'")
            yield Row(dict(zip(columns, fields)), f"{path}:{number}")


def find_split(directory: str | Path, split: str, names: Sequence[str]) -> Path:
    """The first of `names` in `directory`, each also looked for with .gz and .bz2.

    Raises:
        UserError: there is none; the message names what was looked for and what is there.
    """
    directory = Path(directory)
    for name in names:
        for candidate in (directory / name, *(directory / f"{name}{packed}" for packed in PACKED)):
            if candidate.is_file():
                return candidate
    there = sorted(p.name for p in directory.iterdir())
    shown = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
    wanted = " or ".join(names[:4]) + (" or ..." if len(names) > 4 else "") if names else "a known file"
    raise UserError(
        f"{directory}: no {wanted} for the {split} split (there: {shown or 'nothing'}); set task.files.{split}"
    )


def is_hub_id(data: str) -> bool:
    """Whether `data` can only name a hub data set: 'name', 'owner/name' or '<id>:<configuration>'."""
    if Path(data).exists() or data.startswith((".", "/", "~")):
        return False
    return data.count("/") <= 1 and suffix(data) not in FORMATS


def load_hub(data: str, split: str) -> list[Row]:
    """One split of a hub data set, 'owner/name' or 'owner/name:configuration'; classes by their names, not numbers.

    Raises:
        UserError: the data set or the split cannot be loaded, or the split is empty.
    """
    import datasets  # costs a second, and local files do not need it

    show_torch()  # it takes the name for the module
    name, _, configuration = data.partition(":")
    try:
        table = datasets.load_dataset(name, configuration or None, split=split)
    except Exception as error:  # the hub's client raises many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{data}: no such local path, and the hub gave no '{split}' split ({reason}); "
            "set task.data to a directory or a hub id, or task.files to files"
        ) from None
    features = getattr(table, "features", None) or {}
    rows = [
        Row(
            {column: _named(value, features.get(column)) for column, value in dict(values).items()},
            f"{data}[{split}]:{number}",
        )
        for number, values in enumerate(table, 1)
    ]
    if not rows:
        raise UserError(f"{data}[{split}]: has no rows; set task.files.{split}")
    return rows


def _named(value: Any, feature: Any) -> Any:
    if isinstance(value, list):
        return [_named(one, getattr(feature, "feature", None)) for one in value]
    names = getattr(feature, "names", None)
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value
