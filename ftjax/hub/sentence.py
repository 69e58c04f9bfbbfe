"""How a sentence-transformers folder makes a vector of a text's hidden states."""

import json
import os
from typing import NamedTuple

from ftjax.errors import UserError
from ftjax.hub import files

MODULES = {"Transformer", "Pooling", "Normalize"}
POOLINGS = {"cls_token": "first", "mean_tokens": "mean", "max_tokens": "max", "lasttoken": "last"}


class Sentence(NamedTuple):
    """What the folder says; of another folder the defaults."""

    pooling: str = "mean"
    normalise: bool = False
    max_length: int | None = None


def read_sentence(path_or_id: str | os.PathLike, pooling: str | None = None) -> Sentence:
    """What modules.json and the files of its modules say of a checkpoint's vectors.

    Args:
      pooling: in place of the folder's, whose modules may then be any.
    Raises:
      UserError: a module or a pooling that is not here.
    """
    folder = files.resolve(path_or_id, weights=False)
    file = folder / "modules.json"
    if not file.exists():
        return Sentence(pooling or "mean")
    try:
        listed = json.loads(file.read_text("utf-8"))
        modules = {each["type"].rpartition(".")[2]: folder / each["path"] for each in listed}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: a list of modules with type and path is needed ({error})") from None
    if pooling is None:
        if other := sorted(modules.keys() - MODULES):
            raise UserError(f"{file}: {', '.join(other)} is not here; --pooling gives the vectors without it")
        config = files.read_json(modules.get("Pooling", folder / "1_Pooling") / "config.json")
        names = [
            key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on
        ]
        if len(names) != 1 or names[0] not in POOLINGS:
            raise UserError(
                f"{file}: pooling by {' and '.join(names) or 'nothing'}; here it is by one of {', '.join(POOLINGS)};"
                " set --pooling"
            )
        pooling = POOLINGS[names[0]]
    lengths = folder / "sentence_bert_config.json"
    longest = files.read_json(lengths).get("max_seq_length") if lengths.exists() else None
    return Sentence(pooling, "Normalize" in modules, longest)
