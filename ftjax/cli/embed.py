"""ftjax embed --model=NAME --input=FILE --output=OUT.jsonl|OUT.npy: a vector for each text of a file.

A sentence-transformers folder is pooled, cut and normalised as its files say, where no flag says otherwise.

ftjax embed --workdir=RUN ... takes a run's best checkpoint. --input is .txt, a text a line, or JSONL, CSV or TSV with a
column `text` (--column names another). OUT.jsonl has the rows, each with its `vector`; with --level=word, its `words`
and their `vectors`. OUT.npy is an array [rows, width].

ftjax embed --model=NAME --input=FILE --query="..." prints the rows nearest to the query: cosine, place, text. With
--level=word it looks up each word of the query among all words. --index=OUT.jsonl searches vectors that are there
already; --index=OUT.npy, beside the --input that they are of, as well.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from ftjax.data.bad import BadRows
from ftjax.data.sources import Row, place, read_parallel, read_rows, suffix
from ftjax.errors import UserError
from ftjax.files import as_path, check_other, local, write_rows

ADDED = ("vector", "words", "vectors")


class Index(NamedTuple):
    """What a query may find: texts or words, where each is from, and their vectors `[n, D]`."""

    texts: list[str]
    places: list[str]
    vectors: np.ndarray

    def nearest(self, vector: np.ndarray, top: int) -> list[dict[str, Any]]:
        """`cosine`, `place`, `text` of the nearest ones, the nearest first.

        Raises:
          UserError: a vector of another width.
        """
        if self.vectors.shape[1] != len(vector):
            raise UserError(
                f"the index is {self.vectors.shape[1]} wide, this model {len(vector)}; take the index's own"
            )
        cosines = _units(self.vectors) @ _units(vector)
        best = np.argsort(-cosines, kind="stable")[:top]
        return [{"cosine": float(cosines[i]), "place": self.places[i], "text": self.texts[i]} for i in best]


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The command's flags."""
    flags.DEFINE_string("workdir", None, "a run's folder", flag_values=values)
    flags.DEFINE_string("model", None, "a model, in place of a run", flag_values=values)
    flags.DEFINE_string("input", None, "the texts: .txt, .jsonl, .csv, .tsv", flag_values=values)
    flags.DEFINE_string("column", "text", "the texts' column", flag_values=values)
    flags.DEFINE_string("output", None, "where the vectors go: .jsonl or .npy", flag_values=values)
    flags.DEFINE_enum("level", "sentence", ["sentence", "word"], "what has a vector", flag_values=values)
    flags.DEFINE_enum(
        "pooling", None, ["mean", "first", "last", "max"], "of a text's tokens; mean, or as a run was trained for"
        " similarity, or as a sentence-transformers folder says", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_bool(
        "normalise", None, "vectors of length 1; as a sentence-transformers folder says, else not", flag_values=values
    )
    flags.DEFINE_integer("batch_size", 64, "texts at a time", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "max_length", None, "tokens of a text; a run's task.max_length, a sentence-transformers folder's own, or what"
        " the model has room for",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_multi_string("query", [], "find what is nearest to this text; repeat for more", flag_values=values)
    flags.DEFINE_string("index", None, "search what an earlier --output holds", flag_values=values)
    flags.DEFINE_integer("top", 5, "how many to find", lower_bound=1, flag_values=values)
    flags.DEFINE_bool("json", False, "print JSON, an object a query", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Writes vectors, or prints what is near."""
    get: Any = lambda name: values[name].value  # noqa: E731
    words, paths = (
        get("level") == "word",
        {name: get(name) and local(get(name), f"--{name}") for name in ("input", "output", "index")},
    )
    _check(get, words, **paths)
    source, output = paths["input"], paths["output"]
    rows = read(source, get("column")) if source else []
    if output and (taken := [name for name in ADDED if name in rows[0]]):
        raise UserError(f"{source}: has {', '.join(taken)} already, which this command adds; rename them")
    known = read_index(paths["index"], rows, get("column"), words) if paths["index"] else None
    run = _embedder(get, words)
    if known is None:
        texts, places = [row[get("column")] for row in rows], [place(row) for row in rows]
        found = run(texts, where=places)
        if output:
            write(output, rows, found)
            print(f"{output}: {len(rows)} rows")
        known = _index(texts, places, found, words)
    for query in get("query"):
        [asked] = run([query], where=[f"--query={query!r}"])
        for text, vector in zip(*asked) if words else [(query, asked)]:
            near = known.nearest(vector, get("top"))
            if get("json"):
                print(json.dumps({"query": text, "nearest": near}))
                continue
            print(f"{text}:", *(f"{x['cosine']:.4f}  {x['place']}  {x['text']}" for x in near), sep="\n")


def _check(get: Any, words: bool, input: Path | None, output: Path | None, index: Path | None) -> None:
    if bool(get("workdir")) == bool(get("model")):
        raise UserError("give either --workdir=RUN or --model=NAME")
    if not output and not get("query"):
        raise UserError('give --output=FILE for the vectors, or --query="..." to search')
    if words and get("pooling"):
        raise UserError("--pooling is of a text's tokens; a word's vector is the mean of its own")
    formats = (".jsonl",) if words else (".jsonl", ".npy")
    for name, path in (("output", output), ("index", index)):
        if path and path.suffix not in formats:
            raise UserError(f"--{name}={path}: of --level={get('level')} it is {' or '.join(formats)}")
    check_other(input, output, "--output")
    if index and output:
        raise UserError("--index is for a search, and --output for the vectors of --input; give one of them")
    if bool(input) == bool(index and index.suffix == ".jsonl"):
        raise UserError("give --input=FILE, unless there is --index=FILE.jsonl, which has its texts")
    if output and not output.parent.is_dir():
        raise UserError(f"--output={output}: no folder {output.parent}")


def read(path: Path, column: str) -> list[Row]:
    """Rows whose `column` is a text.

    Raises:
      UserError: as `read_rows`; a row without a text, or an empty line of a .txt.
    """
    if suffix(path) == ".txt":
        return read_parallel({column: path}, BadRows())
    rows = read_rows(path)
    for row in rows:
        if not isinstance(row.get(column), str):
            raise UserError(f"{place(row)}: no text under '{column}' (columns: {', '.join(row)}); set --column")
    return rows


def read_index(path: Path, rows: list[Row], column: str, words: bool) -> Index:
    """What an earlier call wrote; of an .npy the rows are those of its --input.

    Raises:
      UserError: not such a file, or not of these rows.
    """
    if path.suffix == ".npy":
        try:
            vectors = np.load(path)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: cannot be read ({error})") from None
        if not isinstance(vectors, np.ndarray):
            raise UserError(f"{path}: not one array; give what --output=FILE.npy wrote")
        if vectors.ndim != 2 or len(vectors) != len(rows):
            raise UserError(f"{path}: an array {list(vectors.shape)}, and --input has {len(rows)} rows; give its own")
        return _index([row[column] for row in rows], [place(row) for row in rows], list(vectors), False)
    rows, wanted = read(path, column), ("words", "vectors") if words else ("vector",)
    for row in rows:
        if lost := [name for name in wanted if name not in row]:
            raise UserError(f"{place(row)}: no {', '.join(lost)}; give a file of this command with the same --level")
    try:
        vectors = [np.asarray(row[wanted[-1]], np.float32) for row in rows]
        found = [(row["words"], own) for row, own in zip(rows, vectors)] if words else vectors
        return _index([row[column] for row in rows], [place(row) for row in rows], found, words)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: vectors that are not lists of as many numbers each ({error})") from None


def _index(texts: list[str], places: list[str], found: Any, words: bool) -> Index:
    if not words:
        return Index(texts, places, np.stack(found))
    where = [place for place, (each, _) in zip(places, found) for _ in each]
    return Index([word for each, _ in found for word in each], where, np.concatenate([own for _, own in found]))


def write(path: Path, rows: list[Row], found: Any) -> None:
    """The vectors as an array, or the rows with theirs; aside, then renamed."""
    if path.suffix == ".jsonl":
        plain = lambda x: [float(str(value)) for value in x]  # noqa: E731  # fp32's digits, and no more
        if isinstance(found, np.ndarray):
            added: Any = [{"vector": plain(vector)} for vector in found]
        else:
            added = [{"words": words, "vectors": [plain(vector) for vector in own]} for words, own in found]
        write_rows(path, [{**row, **more} for row, more in zip(rows, added)])
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("wb") as file:
        np.save(file, found)
    aside.rename(path)


def _embedder(get: Any, words: bool) -> Callable[..., Any]:
    """(texts, where=places) -> `[n, D]`, or the `Words` of each text."""
    from functools import partial

    from ftjax import hub
    from ftjax.decode.embed import embed, embed_words
    from ftjax.hub.sentence import read_sentence

    options: dict[str, Any] = {"batch_size": get("batch_size")}
    if get("model"):
        pooling, normalise, longest = read_sentence(get("model"), "mean" if words else get("pooling"))
        model, params = hub.load(get("model"), head="none")
        tokenizer = hub.tokenizer(get("model"), model.cfg.vocab_size)
    else:
        from ftjax.train.restore import load_run

        f, parts = load_run(as_path(get("workdir")))
        model, params, tokenizer, longest = parts.model, parts.variables["params"], parts.tokenizer, f.task.max_length
        options |= {"adapters": parts.method.expand(parts.variables["adapters"], params), "around": parts.around}
        pooling, normalise = model.cfg.pooling if model.cfg.head == "none" else "mean", False
    options["max_length"] = get("max_length") or longest
    options["normalise"] = normalise and not words if get("normalise") is None else get("normalise")
    if not words:
        return partial(embed, model, params, tokenizer, pooling=get("pooling") or pooling, **options)
    return partial(embed_words, model, params, tokenizer, **options)


def _units(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.finfo(np.float64).tiny)
