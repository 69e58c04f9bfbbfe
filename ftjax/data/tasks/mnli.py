"""MNLI: what a premise says of a hypothesis (Williams et al. 2018, in GLUE).

`task.genre` is matched or mismatched: the validation and test split of the genres of training, or of others, which are
in files of that name alone.
"""

from typing import Any

from ftjax.data.bad import BadRows
from ftjax.data.sources import Row
from ftjax.data.tasks.table import Source, classification_task, file_of, load_table
from ftjax.data.tasks.task import Split
from ftjax.errors import UserError


def load(cfg: Any, split: Split, bad: BadRows, source: Source) -> list[Row]:
    """Rows with the roles `text`, `text_pair` and `label`.

    Raises:
        UserError: a genre that is none, or other genres beside a file that is named; as `load_table`.
    """
    if cfg.genre not in ("matched", "mismatched"):
        raise UserError(f"task.genre={cfg.genre!r}: give matched or mismatched")
    if cfg.genre == "mismatched" and split != "train":
        if file_of(cfg, split):
            raise UserError(f"task.genre=mismatched: task.files.{split} says which rows; remove one of them")
        source = source._replace(formats=())  # no usual name
    files = {"validation": (f"dev_{cfg.genre}.tsv",), "test": (f"test_{cfg.genre}.tsv",)}
    hub = {split: f"{split}_{cfg.genre}" for split in ("validation", "test")}
    return load_table(cfg, split, bad, source._replace(files=files, hub=hub))


TASK = classification_task(
    columns={"text": "sentence1|premise", "text_pair": "sentence2|hypothesis", "label": "gold_label|label"},
    classes=("entailment", "neutral", "contradiction"),
    load=load,
)
