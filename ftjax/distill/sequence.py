"""Corpora of a teacher's own text: which hypothesis stands for a prompt, and which records are good enough.

A record is a dict of a row of `ftjax generate --input` (`prompt`, `continuations`, `scores`, and what the row had, such
as `references`), or one `hypothesis` of it (`prompt`, `completion`, `score`, ...). No function changes one.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sqlglot
from sqlglot.errors import SqlglotError
from sqlglot.expressions import Query

from ftjax import metrics
from ftjax.data.bad import BadRows
from ftjax.data.sources import place, read_rows
from ftjax.data.tasks.task import Text
from ftjax.errors import UserError

Record = dict[str, Any]
Rate = Callable[[Record], float]
Verifier = Callable[[Record], bool]


def read_corpus(path: str | Path, eos: str, limit: int, bad: BadRows) -> tuple[list[Text], list[str]]:
    """The `prompt` and `completion` of each of the first `limit` rows of a file (0: of all), and where each is from.

    Raises:
      UserError: as `read_rows`; a row without one of the two, or with an empty completion.
    """
    texts, where = [], []
    rows = read_rows(path, ("prompt", "completion"), bad)
    for row in rows[:limit] if limit else rows:
        with bad:
            for name in ("prompt", "completion"):
                if not isinstance(row.get(name), str) or (name == "completion" and not row[name].strip()):
                    raise UserError(f"{place(row)}: no text under '{name}'; ftjax teach --sequences writes such rows")
            texts.append(Text(row["prompt"], row["completion"] + eos))
            where.append(place(row))
    return texts, where


def hypotheses(record: Record) -> list[Record]:
    """A record for each continuation, in order, with its `completion` and `score` (null, as JSON has it, is -inf), and
    what else the row had."""
    rest = {name: value for name, value in record.items() if name not in ("continuations", "scores", "tokens")}
    pairs = zip(record["continuations"], record["scores"], strict=True)
    return [{**rest, "completion": text, "score": -math.inf if score is None else score} for text, score in pairs]


def best(records: Sequence[Record], rate: Rate) -> list[Record]:
    """The record of each prompt that is rated highest, the first among equals; prompts in order of appearance.

    By `score`: sequence-level distillation (Kim & Rush 2016); by `closeness`: their Seq-Inter; by a critic or a
    verifier: best of n.
    """
    chosen: dict[str, tuple[float, Record]] = {}
    for record in records:
        rating = rate(record)
        if record["prompt"] not in chosen or rating > chosen[record["prompt"]][0]:
            chosen[record["prompt"]] = rating, record
    return [record for _, record in chosen.values()]


def by_score(record: Record) -> float:
    """What the teacher's decoding gave it."""
    return record["score"]


def augmented(record: Record) -> float:
    """log of p_LM(y | x) A(x, y) (West et al. 2022): `score` is the log-probability, `critic` the acceptability."""
    return record["score"] + (math.log(record["critic"]) if record["critic"] > 0 else -math.inf)


def closeness(characters: bool = False) -> Rate:
    """Smoothed sentence BLEU of `completion` with its `references` (`metrics.sentence_bleu`: one is added
    to each count). `characters` in place of words, for texts of a word or two."""

    def apart(text: str) -> str:
        return " ".join(text.strip()) if characters else text

    def rate(record: Record) -> float:
        references = [apart(text) for text in record["references"]]
        return metrics.sentence_bleu([apart(record["completion"])], [references], lowercase=False)[0]

    return rate


def keep(records: Sequence[Record], right: Verifier, what: str) -> list[Record]:
    """The records that pass; `what` names the filter.

    Raises:
      UserError: none is left.
    """
    kept = [record for record in records if right(record)]
    if not kept:
        raise UserError(f"{what}: none of {len(records)} records passes; loosen it, or let the teacher write more")
    return kept


def threshold(ratings: Sequence[float], valid: Sequence[bool], recall: float) -> float:
    """The highest rating at which, of labelled records `[n]`, at least a share `recall` of the valid ones is kept (West
    et al. 2022 choose their critic's so, by recalls of 0.8 and 0.5).

    Raises:
      UserError: a recall outside (0, 1], or nothing valid.
    """
    if not 0 < recall <= 1:
        raise UserError(f"recall={recall}: give a share above 0, up to 1")
    good = np.sort(np.asarray(ratings, np.float64)[np.asarray(valid, bool)])[::-1]
    if not len(good):
        raise UserError(f"none of {len(ratings)} labelled records is valid; label some that are")
    return float(good[math.ceil(recall * len(good) - 1e-9) - 1])


def quality_curve(ratings: Sequence[float], valid: Sequence[bool]) -> list[dict[str, float]]:
    """Quality against quantity over labelled records `[n]`: for each `threshold` from the highest, what share is
    `kept`, the share of valid ones in it (`precision`), and of the valid ones (`recall`).

    Raises:
      UserError: nothing valid.
    """
    rated, good = np.asarray(ratings, np.float64), np.asarray(valid, bool)
    if not good.any():
        raise UserError(f"none of {len(rated)} labelled records is valid; label some that are")
    order = np.argsort(-rated, kind="stable")
    last = np.flatnonzero(np.append(np.diff(rated[order]) != 0, True))  # of each rating
    kept, hits = last + 1, np.cumsum(good[order])[last]
    columns = rated[order][last], kept / len(rated), hits / kept, hits / good.sum()
    return [dict(zip(("threshold", "kept", "precision", "recall"), map(float, row))) for row in zip(*columns)]


def verifier(what: str, field: str) -> Verifier:
    """The check of an answer that a name stands for; no generated code is executed.

    Raises:
      UserError: no such check; `field` is where the name was given.
    """
    name, _, rest = what.partition(":")
    if what == "reference":
        return matches_reference
    if what == "sql":
        return is_query
    if name == "json":
        return is_json(rest.split(",") if rest else ())
    if name == "pattern" and rest:
        return matches_pattern(rest)
    try:
        least = float(rest if name == "score" else "")
    except ValueError:
        raise UserError(
            f"{field}={what}: give reference, sql, json, json:FIELD,FIELD, pattern:REGEX or score:LEAST"
        ) from None
    return lambda record: record["score"] >= least


def matches_reference(record: Record) -> bool:
    """Whether `completion` is one of the `references`, spaces at the ends apart."""
    return metrics.exact_match([record["completion"]], [record["references"]])[0] == 1


def matches_pattern(pattern: str) -> Verifier:
    """Whether a regular expression matches all of `completion`, spaces at the ends apart.

    Raises:
      UserError: no regular expression.
    """
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise UserError(f"pattern {pattern!r}: no regular expression ({error})") from None
    return lambda record: compiled.fullmatch(record["completion"].strip()) is not None


def is_query(record: Record) -> bool:
    """Whether `completion` parses as one SQL query (SELECT, WITH, UNION); nothing is executed."""
    try:
        statements = sqlglot.parse(record["completion"])
    except (SqlglotError, RecursionError):
        return False
    return len(statements) == 1 and isinstance(statements[0], Query)


def is_json(fields: Sequence[str] = ()) -> Verifier:
    """Whether `completion` is strict JSON, and, where `fields` are named, an object with just these."""

    def right(record: Record) -> bool:
        try:
            value = json.loads(record["completion"], parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return False
        return not fields or (isinstance(value, dict) and set(value) == set(fields))

    return right


def _no_constant(name: str) -> None:
    raise ValueError(name)
