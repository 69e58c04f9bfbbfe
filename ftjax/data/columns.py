"""Files of one word a line with its tags in columns, a blank line after each sentence (CoNLL), and schemes of tags."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ftjax.data.bad import BadRows
from ftjax.data.sources import Row, none_left, read_text, suffix
from ftjax.errors import UserError

UNIVERSAL = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")  # of a .conllu file


def read_columns(path: str | Path, bad: BadRows) -> list[Row]:
    """A row for each sentence: column -> list of texts, a row's place the line of its first word.

    Columns are called '0', '1', ... and from the end '-1', '-2', ...; those of a .conllu also by their names. They are
    apart by a tab where a line has one, else by spaces. Sentences of -DOCSTART- are left out, and of a .conllu
    comments, tokens of several words and empty nodes.

    Raises:
        UserError: a file without sentences, or a line with more or fewer columns than the first.
    """
    path, before = Path(path), len(bad.messages)
    universal = suffix(path) == ".conllu"
    width, rows = len(UNIVERSAL) if universal else 0, []
    for line, sentence in _sentences(read_text(path), universal):
        fields = [text.split("\t" if "\t" in text else None) for text in sentence]
        width = width or len(fields[0])
        if fields[0][0] == "-DOCSTART-":
            line, fields = line + 1, fields[1:]
        if not fields:
            continue
        with bad:
            for number, values in enumerate(fields, line):
                if len(values) != width:
                    raise UserError(f"{path}:{number}: {len(values)} columns, not {width} as in the file's other lines")
            if universal:
                fields = [values for values in fields if values[0].isdecimal()]
            columns = [list(values) for values in zip(*fields)]
            names = [*map(str, range(width)), *map(str, range(-width, 0)), *(UNIVERSAL if universal else ())]
            rows.append(Row(dict(zip(names, columns * 3)), f"{path}:{line}"))
    if not rows:
        raise none_left(path, bad.messages[before:])
    return rows


def _sentences(text: str, comments: bool) -> Iterator[tuple[int, list[str]]]:
    """(line of the first word, the lines of a sentence)."""
    first, lines = 0, []
    for number, line in enumerate([*text.split("\n"), ""], 1):
        if not line.strip():
            if lines:
                yield first, lines
            lines = []
        elif not (comments and line.startswith("#")):
            first = first if lines else number
            lines.append(line.rstrip("\r"))


def in_scheme(tags: Sequence[str], scheme: str) -> list[str]:
    """Tags as they are ('none', 'bio'), or IOB1 tags as BIO ('iob1').

    In IOB1 a phrase begins with B- only where another of its kind ends right before (Ramshaw & Marcus 1995); in BIO
    each begins so.

    Raises:
        ValueError: a tag that is not of the scheme.
    """
    if scheme == "none":
        return list(tags)
    out, before = [], "O"
    for tag in tags:
        if tag != "O" and not (tag[:2] in ("B-", "I-") and tag[2:]):
            raise ValueError(f"the tag '{tag}' is none of the scheme {scheme}: write O, B-KIND, I-KIND")
        begins = scheme == "iob1" and tag[:2] == "I-" and before[2:] != tag[2:]
        out.append(f"B-{tag[2:]}" if begins else tag)
        before = tag
    return out
