"""WikiSQL: a question about a table to a query (Zhong et al. 2017)."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ftjax.data.bad import BadRows
from ftjax.data.sources import Row, place, read_rows
from ftjax.data.tasks.table import Columns, Source, as_texts, load_table, read_table
from ftjax.data.tasks.task import Task, Text
from ftjax.errors import UserError

COLUMNS = {"question": "question", "header": "header|", "sql": "sql"}
FILES = {
    split: (f"wikisql_{name}.jsonl", f"{name}.jsonl")
    for split, name in (("train", "train"), ("validation", "dev"), ("test", "test"))
}
AGGREGATES = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
OPERATORS = ("=", ">", "<")


def read(path: Path, columns: Columns, bad: BadRows) -> list[Row]:
    """A table; of the authors' files (train.jsonl) with the header of each row's table, from train.tables.jsonl."""
    rows = read_table(path, columns, bad)
    if isinstance(rows[0].get("sql"), dict) and "sel" in rows[0]["sql"] and "table" not in rows[0]:
        name = path.name.replace(".jsonl", ".tables.jsonl")
        headers = {table.get("id"): table.get("header") for table in read_rows(path.with_name(name), bad=bad)}
        rows = [Row({**row, "header": headers.get(row.get("table_id"))}, row.where) for row in rows]
    return rows


def expand(row: Row) -> Iterator[Row]:
    """Queries that are numbers of columns as text, and without the aliases that text2sql-data gives every column."""
    table, sql = row.get("table"), row.get("sql")
    values: dict[str, Any] = dict(row)
    if isinstance(table, dict):  # the hub's
        values["header"] = table.get("header")
    if isinstance(sql, dict):
        values["sql"] = _written(sql, values.get("header"), row.where)
    elif isinstance(sql, str):
        bare = re.sub(r"TABLEalias0\.|\sAS TABLEalias0\b|_FIELD(?=\s)", "", sql)
        values["sql"] = bare.strip().removesuffix(";").strip().replace(" FROM TABLE", " FROM table")
    yield Row(values, row.where)


def _written(sql: dict[str, Any], header: Any, where: str) -> str:
    """{sel, agg, conds} -> 'SELECT COUNT Name FROM table WHERE Year = 1951'."""
    try:
        conditions = sql["conds"]
        if isinstance(conditions, dict):  # the hub's
            names = ("column_index", "operator_index", "condition")
            conditions = list(zip(*(conditions[name] for name in names)))
        tests = [f"{header[column]} {OPERATORS[operator]} {value}" for column, operator, value in conditions]
        chosen = f"{AGGREGATES[sql['agg']]} {header[sql['sel']]}".strip()
        if min(sql["agg"], sql["sel"], *(n for column, operator, _ in conditions for n in (column, operator))) < 0:
            raise IndexError("a negative number")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{where}: sql does not fit the header {header!r:.40} ({error!r})") from None
    return f"SELECT {chosen} FROM table" + (f" WHERE {' AND '.join(tests)}" if tests else "")


def example(row: dict[str, Any], eos: str) -> Text:
    """'How many ...?\\nColumns: Name, Year\\nSQL:' and the query; UserError for an empty one."""
    if not row["sql"].strip():
        raise UserError(f"{place(row)}: the query is empty")
    columns = f"\nColumns: {', '.join(row['header'])}" if "header" in row else ""
    return Text(f"{row['question'].strip()}{columns}\nSQL:", f" {row['sql'].strip()}{eos}")


SOURCE = Source(COLUMNS, partial(example, eos=""), FILES, read=read, expand=expand, take={"header": as_texts})
TASK = Task(("lm",), COLUMNS, partial(load_table, source=SOURCE), example, ("perplexity", "exact_match", "lf_accuracy"))
