"""How many labels does pretraining save? From scratch, pretrained, and pretrained on the task's own text as well.

Howard & Ruder 2018 (ULMFiT), https://arxiv.org/abs/1801.06146, figure 3: validation error against the number of labels
on IMDb, TREC-6 and AG. It is a figure, so no numbers stand beside the table; from memory, 100 labels with language
model fine-tuning on all unlabelled text are worth 50 to 100 times as many from scratch. Its AWD-LSTM is a transformer
here: what can be reproduced is the order (own text >= pretrained > scratch) and that the gap closes with more labels.

    ftjax sweep experiments/label_efficiency.py --scale=nano --workdir=runs/label_efficiency --jobs=2
    ftjax table --workdir=runs/label_efficiency --output=experiments/results/label_efficiency.md

nano, a scaled-down analogue: nano-bert tells from a sentence ("the nun came into the room and sat down.") whether it is
about a man or a woman (chance: 50%), of 48 nouns; it has read novels, and the own text are these sentences, each
followed by one that says he or she (of the tested sentences too, so that text without labels has the answer in it: the
most that it could give), 200 steps of masked words. small: MiniLM on SST-2, its own text the first 20,000
sentences, as masked words, with --config.model.path=DIR --config.task.data=DIR. paper: BERT-base on AG News (its own
text: all of it, one epoch of masked words) by ULMFiT's schedule: slanted triangles, a rate 2.6 times lower a layer
further down, a layer more an epoch; its concat pooling is left out.

nano: 36 runs of 100 steps, three seeds, 11 minutes on 2 cores: found, own text > pretrained > scratch with 24, 72 and
192 labels, and the gap closes; with 8 labels all rows say one class.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.default import get_config
from experiments.cells import Recipe
from experiments.commands import command
from experiments.made import PEOPLE_FILES, TEXT_FILES, write_people
from ftjax.data.tasks import TASKS
from ftjax.files import write_rows
from ftjax.sweep import Trial
from ftjax.train.build import read_examples
from ftjax.train.fields import Fields

STARTS: dict[str, dict[str, Any]] = {
    "scratch": {"model.init": "random"},
    "pretrained": {},
    "pretrained, own text": {"warm_start": "{prepared}/own"},
}
NANO = {
    **PEOPLE_FILES, "task.max_length": 32, "steps": 100, "eval_every": 25, "batch_size": 16,
    "optimizer.learning_rate": 5e-4,
}  # fmt: skip
SMALL = {
    "steps": 126, "eval_every": 42, "task.max_eval_rows": 872, "data.overlong": "truncate", "model.pooling": "mean",
    "model.dropout": 0.0, "optimizer.learning_rate": 1e-4,
}  # fmt: skip
PAPER = {
    "epochs": 20.0, "batch_size": 64, "task.data": "fancyzhx/ag_news", "data.overlong": "truncate",
    "optimizer.learning_rate": 5e-5, "optimizer.schedule": "slanted_triangular", "optimizer.warmup": 0.0,
    "optimizer.layer_decay": 1 / 2.6, "optimizer.unfreeze_every": 1.0,
}  # fmt: skip
RECIPES = {
    "nano": Recipe("model=nano-bert,task=classification", NANO, range(3)),
    "small": Recipe("model=sentence-transformers/all-MiniLM-L6-v2,task=sst2", SMALL, range(1)),
    "paper": Recipe("model=google-bert/bert-base-uncased,task=agnews", PAPER, range(3)),
}
METHOD = {"nano": "full", "small": "full", "paper": "gradual"}
COUNTS = {"nano": (8, 24, 72, 192), "small": (100, 500, 2000), "paper": (100, 200, 500, 1000, 2000, 5000, 10000)}
OWN: dict[str, dict[str, Any]] = {  # of the pretraining on the task's own text
    "nano": {"task.objective": "mlm", "steps": 200, "batch_size": 32, "task.max_length": 64},
    "small": {"task.objective": "mlm", "steps": 400, "batch_size": 32, "optimizer.learning_rate": 1e-4},
    "paper": {"task.objective": "mlm", "epochs": 1.0, "batch_size": 64, "optimizer.learning_rate": 5e-5},
}
TEXTS = {"small": 20000, "paper": 0}  # how many of them, 0: all

percent = True


def trials(scale: str) -> list[Trial]:
    """Rows are where a model starts, columns how many labels it has."""
    return RECIPES[scale].trials({
        (row, f"{count:,}"): (f"method={METHOD[scale]}", {**start, "task.max_train_rows": count})
        for row, start in STARTS.items()
        for count in COUNTS[scale]
    })  # fmt: skip


def prepare(scale: str, folder: Path, fields: Mapping[str, Any]) -> None:
    """The task's texts without labels, and the model pretrained on them."""
    if scale == "nano":
        write_people(folder)
    else:
        texts = _texts(scale, fields)
        for split, part in (("train", texts[len(texts) // 50 :]), ("validation", texts[: len(texts) // 50])):
            write_rows(folder / f"texts-{split}.jsonl", [{"text": text} for text in part])
    own = {name: value.format(prepared=folder) for name, value in TEXT_FILES.items()} | OWN[scale] | {"seed": 0}
    own |= {name: value for name, value in fields.items() if name.startswith("model.")}
    model = RECIPES[scale].axes.split(",")[0]
    command("train", f"{model},task=text,method=full", own, f"--workdir={folder / 'own'}")


def _texts(scale: str, fields: Mapping[str, Any]) -> list[str]:
    config = get_config(RECIPES[scale].axes)
    config.update_from_flattened_dict({**RECIPES[scale].fields, **fields, "task.max_train_rows": TEXTS[scale]})
    task = TASKS[config.task.name]
    return [example.text for example in read_examples(Fields(config), task, "train", "")[0]]
