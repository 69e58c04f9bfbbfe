"""Corpora of a teacher's own text: which hypothesis stands for a prompt, and which records are good enough.

A record is a dict of a row of `ftjax generate --input` (`prompt`, `continuations`, `scores`, and what the row had, such
as `references`), or one `hypothesis` of it (`prompt`, `completion`, `score`, ...). No function changes one.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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


def read_labelled(path: str | Path) -> list[Record]:
    """The rows of a file that say of a `prompt` and its `completion` whether it is `valid`; `score`, where they have
    one, as in `hypotheses`.

    Raises:
      UserError: as `read_rows`; a row without one of the three, or whose `valid` is neither true nor false (1, 0).
    """
    values = {"true": True, "1": True, "false": False, "0": False}
    records = []
    for row in read_rows(path, ("prompt", "completion", "valid")):
        for name in ("prompt", "completion"):
            if not isinstance(row.get(name), str) or not row[name].strip():
                raise UserError(f"{place(row)}: no text under '{name}'; a labelled row has prompt, completion, valid")
        if (valid := values.get(str(row.get("valid")).strip().lower())) is None:
            raise UserError(f"{place(row)}: valid is {row.get('valid')!r:.40}; write true or false")
        score = {"score": _score(row["score"], place(row))} if "score" in row else {}
        rest = {name: value for name, value in row.items() if name != "critic"}  # another one's, it may be
        records.append({**rest, "valid": valid, **score})
    return records


def _score(value: Any, where: str = "") -> float:
    """Null, as JSON has it, is -inf."""
    try:
        return -math.inf if value is None else float(value)
    except (TypeError, ValueError):
        raise UserError(f"{where}: score is {value!r:.40}, no number") from None


def hypotheses(record: Record) -> list[Record]:
    """A record for each continuation, in order, with its `completion` and `score` (null, as JSON has it, is -inf), and
    what else the row had."""
    rest = {name: value for name, value in record.items() if name not in ("continuations", "scores", "tokens")}
    pairs = zip(record["continuations"], record["scores"], strict=True)
    return [{**rest, "completion": text, "score": _score(score)} for text, score in pairs]


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
    _check_recall(recall)
    good = np.sort(np.asarray(ratings, np.float64)[np.asarray(valid, bool)])[::-1]
    if not len(good):
        raise UserError(f"none of {len(ratings)} labelled records is valid; label some that are")
    return float(good[math.ceil(recall * len(good) - 1e-9) - 1])


def quality_curve(ratings: Sequence[float], valid: Sequence[bool], most: int = 200) -> list[dict[str, float]]:
    """Quality against quantity over labelled records `[n]`: for each `threshold` from the highest, what share is
    `kept`, the share of valid ones in it (`precision`), and of the valid ones (`recall`). Of more than `most` different
    thresholds so many, evenly over them, the first and the last among them.

    Raises:
      UserError: nothing valid.
    """
    rated, good = np.asarray(ratings, np.float64), np.asarray(valid, bool)
    if not good.any():
        raise UserError(f"none of {len(rated)} labelled records is valid; label some that are")
    order = np.argsort(-rated, kind="stable")
    last = np.flatnonzero(np.append(rated[order][1:] != rated[order][:-1], True))  # of each rating
    last = last[np.unique(np.linspace(0, len(last) - 1, min(most, len(last))).round().astype(int))]
    kept, hits = last + 1, np.cumsum(good[order])[last]
    columns = rated[order][last], kept / len(rated), hits / kept, hits / good.sum()
    return [dict(zip(("threshold", "kept", "precision", "recall"), map(float, row))) for row in zip(*columns)]


class Least(NamedTuple):
    """What keeps answers by a rating, `score` or `critic`: its least value, or the recall that is to be left."""

    rating: str
    value: float
    by_recall: bool

    def over(self, labelled: Sequence[Record]) -> float:
        """The least value; where it goes by recall, the `threshold` of labelled records."""
        if not self.by_recall:
            return self.value
        return threshold([record[self.rating] for record in labelled], [r["valid"] for r in labelled], self.value)


def least(what: str, field: str) -> Least | None:
    """`score:LEAST`, `critic:LEAST`, or of either `critic:recall=SHARE`; None where it begins with neither.

    Raises:
      UserError: another thing after the colon; `field` is where it was given.
    """
    rating, _, rest = what.partition(":")
    if rating not in ("score", "critic"):
        return None
    by_recall = rest.startswith("recall=")
    try:
        value = float(rest.removeprefix("recall="))
    except ValueError:
        raise UserError(f"{field}={what}: give {rating}:LEAST, a number, or {rating}:recall=SHARE") from None
    if by_recall:
        _check_recall(value)
    return Least(rating, value, by_recall)


def at_least(rating: str, value: float) -> Verifier:
    """Whether a record's rating is `value` or more."""
    return lambda record: record[rating] >= value


def _check_recall(recall: float) -> None:
    if not 0 < recall <= 1:
        raise UserError(f"recall={recall}: give a share above 0, up to 1")


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
    raise UserError(f"{field}={what}: give reference, sql, json, json:FIELD,FIELD or pattern:REGEX")


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
