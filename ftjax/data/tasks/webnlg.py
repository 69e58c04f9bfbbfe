"""WebNLG 2017: facts about one thing to a text (Gardent et al. 2017), linearised as by LoRA (Hu et al. 2021).

`task.categories` chooses: names of categories, or seen and unseen, those of the training set and the others. Metrics of
rows of both are of each as well, as `unseen/bleu`.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ftjax.data.bad import BadRows
from ftjax.data.sources import Row, read_json, suffix
from ftjax.data.tasks.e2e import described
from ftjax.data.tasks.table import Columns, Source, limited, load_all, read_table
from ftjax.data.tasks.task import Split, Task, Text
from ftjax.data.tasks.triples import linearised
from ftjax.errors import UserError

SEEN = (
    "Airport", "Astronaut", "Building", "City", "ComicsCharacter", "Food", "Monument", "SportsTeam", "University",
    "WrittenWork",
)  # fmt: skip
UNSEEN = ("Artist", "Athlete", "CelestialBody", "MeanOfTransportation", "Politician")
COLUMNS = {"context": "context", "completion": "completion", "category": "category|"}
FILES = {
    split: (f"webnlg2017_{name}.jsonl", f"{name}.json", f"lora_webnlg2017_{name}.json")
    for split, name in (("train", "train"), ("validation", "dev"), ("test", "test"))
}


def read(path: Path, columns: Columns, bad: BadRows) -> list[Row]:
    """A table, or the entries of the challenge's JSON, an entry's place its number."""
    if suffix(path) != ".json" or not isinstance(value := read_json(path), dict):
        return read_table(path, columns, bad)
    try:
        entries = [entry for numbered in value["entries"] for entry in numbered.values()]
        return [Row(dict(entry), f"{path}:{number}") for number, entry in enumerate(entries, 1)]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: not WebNLG's format, entries[] > number > an entry ({error!r})") from None


def expand(row: Row, bad: BadRows) -> Iterator[Row]:
    """A row for each good text of an entry; a row without triples stays as it is.

    An empty text (an entry of the published development set has two) is left out and counted, whatever `bad`'s policy.
    """
    name = next((name for name in ("triples", "modifiedtripleset", "modified_triple_sets") if name in row), None)
    if name is None:
        yield row
        return
    triples = row[name]
    texts = row.get("refs", row.get("lexicalisations", row.get("lex")))
    if isinstance(triples, dict):  # the hub's: sets of triples, of which the first is the text's
        sets = triples.get("mtriple_set")
        triples = sets[0] if isinstance(sets, list) and sets else None
    if isinstance(texts, dict) and all(isinstance(values, list) for values in texts.values()):
        texts = [dict(zip(texts, values)) for values in zip(*texts.values())]
    if not isinstance(texts, list) or not all(isinstance(text, dict) for text in texts):
        raise UserError(f"{row.where}: no list of texts under refs, lexicalisations or lex")
    try:
        context = linearised(triples)
    except ValueError as error:
        raise UserError(f"{row.where}: the triples are {triples!r:.40}: {error}") from None
    for text in texts:
        if text.get("comment") == "good":
            completion = text.get("text", text.get("lex"))
            if isinstance(completion, str) and not completion.strip():
                bad.messages.append(f"{row.where}: the completion is empty; give it text")
                continue
            yield Row({"context": context, "completion": completion, "category": row.get("category")}, row.where)


def load(cfg: Any, split: Split, bad: BadRows) -> list[Row]:
    """Rows with the roles `context`, `completion` and `category`, those of cfg.categories."""
    groups = {"seen": SEEN, "unseen": UNSEEN}
    wanted = {name for chosen in cfg.categories for name in groups.get(chosen, (chosen,))}
    check = partial(described, eos="")
    source = Source(COLUMNS, check, FILES, hub={"validation": "dev"}, read=read, expand=partial(expand, bad=bad))
    rows = load_all(cfg, split, bad, source)
    chosen = [row for row in rows if not wanted or row.get("category") in wanted]
    if not chosen:
        there = ", ".join(sorted({row.get("category", "none") for row in rows}))
        raise UserError(f"task.categories={tuple(cfg.categories)}: the {split} split has none of them, but {there}")
    return limited(chosen, cfg, split)


def example(row: dict[str, Any], eos: str) -> Text:
    """As E2E's, its part seen or unseen where it has a category."""
    category = row.get("category")
    part = "" if category is None else "seen" if category in SEEN else "unseen"
    return described(row, eos)._replace(part=part)


TASK = Task(("lm",), COLUMNS, load, example, ("perplexity", "bleu", "chrf"))
