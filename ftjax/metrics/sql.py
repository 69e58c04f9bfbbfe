"""Logical forms of WikiSQL's queries (Zhong et al. 2017)."""

import re
from collections.abc import Sequence

QUERY = re.compile(
    r"SELECT\s+(?:((?-i:MAX|MIN|COUNT|SUM|AVG))(?:\s+|\s*(?=\()))?(.+?)\s+FROM\s+TABLE(?:\s+AS\s+\S+)?"
    r"(?:\s+WHERE\s+(.+?))?\s*;?",
    re.I | re.S,
)
CONDITION = re.compile(r"(.+?)\s+([=<>])\s+(.+)", re.S)
NEXT = re.compile(r"\s+AND\s+(?=.+?\s+[=<>]\s+)", re.S)

Query = tuple[str, str, frozenset[tuple[str, str, str]]]


def canonical(sql: str) -> Query:
    """(aggregate, column, conditions) of a query of WikiSQL's kind, as its authors compare logical forms.

    The order of conditions does not matter, nor large and small letters but in aggregates and AND (both are found in
    names and values too), nor quotes around a value. What is no such query is itself, spaces and letters' size apart.
    """
    found = QUERY.fullmatch(sql.strip())
    parts = [CONDITION.fullmatch(part) for part in NEXT.split(found[3])] if found and found[3] else []
    if found is None or None in parts:
        return "", " ".join(sql.split()).lower(), frozenset()
    column = found[2][1:-1] if found[1] and found[2][0] + found[2][-1] == "()" else found[2]
    return found[1] or "", _bare(column), frozenset((_bare(p[1]), p[2], _bare(p[3])) for p in parts if p)


def _bare(text: str) -> str:
    words = " ".join(text.lower().split())
    return words[1:-1].strip() if len(words) > 1 and words[0] == words[-1] and words[0] in "\"'" else words


def lf_accuracy(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """1.0 for each query that has the logical form of one of its references."""
    return [
        float(canonical(p) in [canonical(r) for r in golds]) for p, golds in zip(predictions, references, strict=True)
    ]
