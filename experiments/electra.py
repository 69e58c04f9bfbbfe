"""ELECTRA: telling which words were replaced, against filling in masked ones, at equal compute.

Clark et al. 2020, https://arxiv.org/abs/2003.10555: pretrained with as much compute, a model that says of each token
whether a small generator has replaced it is ahead of one that fills in masks, most of all where there is little
compute.

    ftjax sweep experiments/electra.py --scale=nano --workdir=runs/electra --jobs=2
    ftjax table --workdir=runs/electra --output=experiments/results/electra.md

nano, a scaled-down analogue: two layers of 128 from scratch, pretrained on made-up texts about people, then fine-tuned
on 192 sentences to tell men from women (chance: 50%), and tested on other nouns. Columns are pretraining steps of
masked words; of replaced ones a step costs 1.10 as much by a count of products (generator of a quarter of the widths,
the vocabulary's head at 15% of the tokens), and there are fewer by that. small: none; a corpus that would do is over 30
minutes. paper: the fine-tuning of the released checkpoints on GLUE's development sets by the paper's recipe (rate 1e-4,
of large 5e-5; 0.8, of large 0.9 of it a layer further down; 3 epochs, RTE and STS-B 10), beside its medians;
pretraining them takes 1M steps, by `task=text` with --config.task.objective=rtd and --config.task.generator_size=0.25.

nano: 20 runs of 100 steps after four of pretraining, four seeds of one pretraining, 10 minutes on 2 cores. Against
the paper, masked words are ahead, the more the longer (65.6 and 86.8; replaced 62.1 and 66.5; none 56.0).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.cells import Cells, Recipe, at_scale
from experiments.commands import command
from experiments.glue import GLUE, by_task
from experiments.made import NOUN_FILES, TALES, write_people, write_tales
from ftjax.files import write_json, write_text
from ftjax.hub.files import ASSETS
from ftjax.sweep import Trial

COST = 1.10  # of a step of replaced words, in steps of masked ones
STEPS = (500, 2000)
SHAPE = {
    "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 128, "embedding_size": 128,
    "intermediate_size": 512,
}  # fmt: skip
PRETRAIN: dict[str, Any] = {"batch_size": 32, "task.max_length": 64, "optimizer.learning_rate": 1e-3, "seed": 0}
ROWS = {"masked words": "mlm", "replaced words": "rtd"}
NANO = {
    **NOUN_FILES, "steps": 100, "eval_every": 100, "batch_size": 16, "task.max_length": 64,
    "optimizer.learning_rate": 3e-4, "model.init": "random", "model.path": "{prepared}/shape",
}  # fmt: skip
PAPER = {
    "epochs": 3.0, "batch_size": 32, "task.max_length": 128, "data.overlong": "truncate", "optimizer.warmup": 0.1,
    "optimizer.learning_rate": 1e-4, "optimizer.layer_decay": 0.8,
}  # fmt: skip
HUB = "google/electra-{}-discriminator"
MODELS: dict[str, dict[str, Any]] = {
    "ELECTRA small": {},
    "ELECTRA base": {"model.path": HUB.format("base")},
    "ELECTRA large": {
        "model.path": HUB.format("large"), "optimizer.learning_rate": 5e-5, "optimizer.layer_decay": 0.9,
    },
}  # fmt: skip
LONGER = {"RTE", "STS-B"}
MATCHED = {  # MRPC and QQP by accuracy here
    name: (task, "accuracy" if metric == "f1" else metric, {**fields, **({"epochs": 10.0} if name in LONGER else {})})
    for name, (task, metric, fields) in GLUE.items()
    if name != "MNLI-mm"
}

percent = True
SERIES = {
    "medians (authors' repository)": {
        (row, column): value
        for row, values in {
            "ELECTRA base": (88.8, 91.5, 93.2, 95.1, 67.7, 91.2, 89.5, 82.7),
            "ELECTRA small": (81.3, 89.0, 88.4, 91.2, 57.0, 87.5, 88.0, 66.7),
        }.items()
        for column, value in zip(MATCHED, values)
    }
}


def trials(scale: str) -> list[Trial]:
    """Rows are kinds of pretraining by compute; at the paper's scale models by task; none at scale small."""
    if scale == "paper":
        return by_task(Recipe(f"model={HUB.format('small')}", PAPER, range(5)), MODELS, MATCHED)
    if scale == "small":
        return []
    cells: Cells = {("none", f"{STEPS[0]} steps"): ("method=full", {})} | {
        (row, f"{steps} steps"): ("method=full", {"warm_start": f"{{prepared}}/{kind}{steps}"})
        for row, kind in ROWS.items()
        for steps in STEPS
    }
    return Recipe("model=nano-bert,task=classification", NANO, range(4)).trials(cells)


paper = at_scale(SERIES, trials)


def _write_shape(folder: Path) -> None:
    """A small ELECTRA with nano-bert's tokenizer, without weights: a BERT has no head that tells replaced words."""
    folder.mkdir(exist_ok=True)
    config = json.loads((ASSETS / "nano-bert" / "config.json").read_text("utf-8"))
    config |= {"model_type": "electra", "architectures": ["ElectraForPreTraining"], **SHAPE}
    write_json(folder / "config.json", config)
    for file in (ASSETS / "nano-bert").glob("tokenizer*"):
        write_text(folder / file.name, file.read_text("utf-8"))


def prepare(scale: str, folder: Path, fields: Mapping[str, Any]) -> None:
    """The corpus and what is pretrained on it, for scale nano."""
    if scale != "nano":
        return
    write_people(folder)
    write_tales(folder)
    _write_shape(folder / "shape")
    files = {name: path.format(prepared=folder) for name, path in TALES.items()}
    for kind in ROWS.values():
        for steps in STEPS:
            count = round(steps / COST) if kind == "rtd" else steps
            own = {**PRETRAIN, **files, "task.objective": kind, "model.init": "random", "steps": count}
            own |= {"model.path": str(folder / "shape"), **fields}
            own["eval_every"] = count
            command("train", "model=nano-bert,task=text,method=full", own, f"--workdir={folder / f'{kind}{steps}'}")
