"""Subject, property, object: facts as text, for the tasks that put them into words."""

from typing import Any

from ftjax.data.tasks.table import as_text


def linearised(triples: Any) -> str:
    """[[s, p, o], ...] -> 's : p : o | s : p : o', as in LoRA's data (Hu et al. 2021).

    A triple may also be an object of subject, property and object, or a text 's | p | o'.

    Raises:
        ValueError: it is none of these.
    """
    if not isinstance(triples, list) or not triples:
        raise ValueError("it must be a list of triples")
    return " | ".join(" : ".join(_parts(triple)) for triple in triples)


def _parts(triple: Any) -> list[str]:
    if isinstance(triple, dict):
        triple = [triple.get(part) for part in ("subject", "property", "object")]
    elif isinstance(triple, str):
        triple = triple.split(" | ")
    if not isinstance(triple, list) or len(triple) != 3:
        raise ValueError("a triple has a subject, a property and an object")
    return [as_text(part) for part in triple]
