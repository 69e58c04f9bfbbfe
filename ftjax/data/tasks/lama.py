"""LAMA: a relation of Wikidata as a sentence with a gap (Petroni et al. 2019), on T-REx.

`task.relation` (P17) chooses the rows: relation/train.jsonl and so on (AutoPrompt's split), or one relation.jsonl,
shuffled and cut 80/10/10. The sentence is `task.template`, '[X] is located in [Y] .', or the relation's in
`task.relations_file`. Answers are words of `task.vocab_file`, where one is given.
"""

from functools import partial
from pathlib import Path
from typing import Any

from ftjax.data.bad import BadRows
from ftjax.data.sources import PACKED, Row, is_hub_id, place, read_rows, read_text
from ftjax.data.tasks.table import Source, columns_of, cut, file_of, load_table, to_roles
from ftjax.data.tasks.task import Cloze, Split, Task
from ftjax.errors import UserError

COLUMNS = {"subject": "sub_label", "object": "obj_label"}
SLOT = "{mask}"


def load(cfg: Any, split: Split, bad: BadRows) -> list[Row]:
    """Rows with the roles `subject`, `object` and `template`."""
    if not cfg.relation:
        raise UserError("task.relation is empty; give one, such as P17")
    template, known = _template(cfg), frozenset(classes(cfg))
    source = Source(COLUMNS, partial(_check, template=template, known=known), {split: _names(cfg.relation, split)})
    path = None if file_of(cfg, split) or not cfg.data or is_hub_id(cfg.data) else _one_list(cfg)
    if path is None:
        return load_table(cfg, split, bad, source)
    columns, before = columns_of(cfg, COLUMNS), len(bad.messages)
    return cut(to_roles(read_rows(path, bad=bad), columns, bad, source, path, before), cfg, split, path)


def _names(relation: str, split: Split) -> tuple[str, ...]:
    return tuple(f"{relation}/{stem}.jsonl" for stem in ({"validation": ("dev", "val")}.get(split, (split,))))


def _one_list(cfg: Any) -> Path | None:
    names = (f"{cfg.relation}.jsonl", *(f"{cfg.relation}.jsonl{packed}" for packed in PACKED))
    return next((path for name in names if (path := Path(cfg.data) / name).is_file()), None)


def _template(cfg: Any) -> str:
    template = cfg.template
    if not template and cfg.relations_file:
        rows = {row.get("relation"): row.get("template") for row in read_rows(cfg.relations_file)}
        if not isinstance(template := rows.get(cfg.relation), str):
            raise UserError(f"{cfg.relations_file}: no template of relation {cfg.relation}; set task.template")
    if template.count("[X]") != 1 or template.count("[Y]") != 1:
        raise UserError(f"task.template={template!r}: write [X] and [Y] once each, or set task.relations_file")
    return template


def _check(row: Row, template: str, known: frozenset[str]) -> None:
    row["template"] = template
    answer = row["object"].strip()
    if not row["subject"].strip() or not answer:
        raise UserError(f"{row.where}: the subject or the object is empty; give both")
    if known and answer not in known:
        raise UserError(f"{row.where}: the answer '{answer:.40}' is not in task.vocab_file; leave it out")
    example(row, "")


def example(row: dict[str, Any], eos: str) -> Cloze:
    """'Eibenstock is located in {mask} .' and 'Germany'."""
    if SLOT in row["subject"]:
        raise UserError(f"{place(row)}: the subject holds '{SLOT}', which marks the gap; write it otherwise")
    before, after = (part.replace("[Y]", SLOT) for part in row["template"].split("[X]"))
    return Cloze(before + row["subject"].strip() + after, row["object"].strip())


def classes(cfg: Any) -> tuple[str, ...]:
    """The words of cfg.vocab_file, one a line, among which the answer is sought; none where it is not set."""
    return tuple(filter(None, read_text(cfg.vocab_file).splitlines())) if cfg.vocab_file else ()


TASK = Task(("cloze",), COLUMNS, load, example, ("hit@1",), classes)
