"""Answers that are a part of a context, in any file, and SQuAD's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftjax.data.bad import BadRows
from ftjax.data.sources import Row, none_left, place, read_json, suffix
from ftjax.data.tasks.table import Columns, Source, as_text, limited, load_all, read_table
from ftjax.data.tasks.task import Question, Split, Task
from ftjax.errors import UserError

COLUMNS = {"id": "id|", "question": "question", "context": "context", "answers": "answers|answer"}


def read(path: Path, columns: Columns, bad: BadRows) -> list[Row]:
    """A table, or one row for each question of SQuAD's JSON, its place the question's number."""
    if suffix(path) != ".json" or not isinstance(value := read_json(path), dict):
        return read_table(path, columns, bad)
    rows, before = [], len(bad.messages)
    for number, (title, context, question) in enumerate(_questions(value, path), 1):
        where = f"{path}:{number}"
        with bad:
            if not isinstance(question, dict) or not isinstance(context, str):
                raise UserError(f"{where}: no question with a context, as SQuAD's files have them")
            if not question.get("answers") and not question.get("is_impossible"):
                raise UserError(f"{where}: no answers, and is_impossible is not true")
            rows.append(Row({"title": title, "context": context, **question}, where))
    if not rows:
        raise none_left(path, bad.messages[before:])
    return rows


def _questions(value: dict[str, Any], path: Path) -> Iterator[tuple[Any, Any, Any]]:
    try:
        for article in value["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    yield article.get("title"), paragraph["context"], question
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not SQuAD's format, data[] > paragraphs[] > context, qas[] ({error!r})") from None


def answers(value: Any) -> list[tuple[str, int | None]]:
    """(text, first character or None) each, of SQuAD's list of objects, the hub's object of lists, or a text.

    Raises:
        ValueError: it is none of them.
    """
    if isinstance(value, str):
        return [(as_text(value), None)]
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        texts, starts = value["text"], value.get("answer_start", [None] * len(value["text"]))
        if not isinstance(starts, list) or len(starts) != len(texts):
            raise ValueError("it has not one answer_start for each text")
    elif isinstance(value, list) and all(isinstance(one, dict) for one in value):
        texts, starts = [one.get("text") for one in value], [one.get("answer_start") for one in value]
    else:
        raise ValueError("write [{'text': ..., 'answer_start': ...}, ...], or [] where there is no answer")
    if any(start is not None and type(start) is not int for start in starts):
        raise ValueError("answer_start is the number of the answer's first character")
    return [(as_text(text), start) for text, start in zip(texts, starts)]


def check(row: Row) -> None:
    """Finds each answer in the context.

    Raises:
        UserError: it is not where it is said to be, or, where nothing is said, not there exactly once.
    """
    found = []
    for text, start in row["answers"]:
        times = row["context"].count(text) if text else 0
        if start is None and times == 1:
            start = row["context"].index(text)
        if not text or start is None:
            raise UserError(f"{row.where}: the answer '{text:.40}' is {times} times in the context; set answer_start")
        if start < 0 or row["context"][start : start + len(text)] != text:
            there = row["context"][max(start, 0) :][: len(text)]
            raise UserError(f"{row.where}: at character {start} the context has '{there:.40}', not '{text:.40}'")
        found.append((text, start))
    row["answers"] = found


SOURCE = Source(COLUMNS, check, read=read, take={"answers": answers})


def load(cfg: Any, split: Split, bad: BadRows, source: Source = SOURCE) -> list[Row]:
    """Rows with the roles `question`, `context`, `answers`, a list of (text, first character), and maybe `id`.

    Raises:
        UserError: as `load_table`; two rows of one id.
    """
    rows, first = [], {}
    for row in load_all(cfg, split, bad, source):
        with bad:
            name = row.get("id", row.where)
            if name in first:
                raise UserError(f"{row.where}: the id '{name}' is that of {first[name]} already; give each its own")
            first[name] = row.where
            rows.append(row)
    return limited(rows, cfg, split)


def example(row: dict[str, Any], eos: str) -> Question:
    """Question and context as they stand; a question without an id has its place for one."""
    return Question(row.get("id", place(row)), row["question"], row["context"], tuple(map(tuple, row["answers"])))


TASK = Task(("span", "lm"), COLUMNS, load, example, ("squad_f1", "squad_exact_match"))
