"""Two notebooks of a course: counting a name's vowels and spelling it backwards, and what the second one narrows.

CMU Advanced NLP, spring 2026, classification and SFT notebooks: SmolLM2-135M on 25,626 names. Vowels: 96.85% of 3,204
test names. Backwards: 81.0% of 200 test names by the prompt that was trained, and of other wordings (for one name,
"sophia") one answered, two not: the model has learned the prompt along with the task.

    ftjax sweep experiments/names_course.py --scale=nano --workdir=runs/names_course --jobs=2
    ftjax table --workdir=runs/names_course --output=experiments/results/names_course.md

Exact match of greedy answers in four wordings, of which one is trained; a row trained on all four says whether they
could be learned, and the untouched base (a step at a rate of 0) what there was. Below the table what narrowing costs:
bits per byte, before and after, of text that the base itself has written, so that the difference is about how far a
model has moved from it (Kullback-Leibler, base to tuned). k-shot accuracy of the base is left out: at these sizes it is
nothing.

nano, a scaled-down analogue: nano-gpt, generated names, without LoRA, which had learned 7% in these steps. small:
stories260K (--config.model.path=DIR), names.txt. paper: the notebooks' recipe, names.txt; without their two added
tokens, the padding that they train on, and their sampling at temperature 0.1. small and paper read
WORKDIR/prepared/names.txt, to be put there before.

nano: 8 runs, two seeds, 9 minutes on 2 cores. Found: what is trained on one wording answers it (88%) and no other (0%);
trained on all four, all (76 to 80%); vowels 99.2%. The base's own text costs twice the bits afterwards (1.99; 4.07).
"""

import json
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.cells import UNTOUCHED, Cells, Recipe, needed
from experiments.commands import command
from ftjax.data.names import names
from ftjax.files import write_rows
from ftjax.sweep import Trial
from ftjax.sweep.record import Record

WORDINGS = {
    "as trained": "Reverse the name: {}. Answer:",
    "arrow": "Reverse: {} =>",
    "question": "What is {} backwards?",
    "statement": "{} reversed is:",
}
OWN = "own text"
OPENINGS = ("The", "It was", "He", "She", "In the", "One day", "When", "There was")
FILES = {"task.files.train": "{prepared}/one.jsonl", "task.files.validation": "{prepared}/asked.jsonl"}
FOUR = {**FILES, "task.files.train": "{prepared}/four.jsonl"}
SHOWN = {title: f"{title}/exact_match" for title in WORDINGS}
LIST = {"task.data": "{prepared}/names.txt"}

MODELS = {"nano": "nano-gpt", "small": "stories260K", "paper": "HuggingFaceTB/SmolLM2-135M"}
SEEDS = {"nano": range(2), "small": range(1), "paper": range(1)}
COMMON = {"task.max_length": 160, "generate.max_new_tokens": 16, "generate.examples": 1000}
ROWS = {"data.layout": "buckets", "data.buckets": 2}  # a batch is exactly so many names
REVERSE: dict[str, dict[str, Any]] = {
    "nano": {**COMMON, "steps": 400, "eval_every": 400, "batch_size": 64, "optimizer.learning_rate": 2e-3},
    "small": {**COMMON, **ROWS, "steps": 1500, "eval_every": 1500, "batch_size": 64},
    "paper": {
        **COMMON, **ROWS, "epochs": 3.0, "batch_size": 16, "optimizer.learning_rate": 5e-5, "optimizer.no_decay": "",
        "optimizer.weight_decay": 0.01, "optimizer.schedule": "cosine", "optimizer.warmup": 0.0,
    },
}  # fmt: skip
VOWELS: dict[str, dict[str, Any]] = {
    "nano": {"steps": 400, "eval_every": 400, "batch_size": 64},
    "small": {**LIST, "steps": 1500, "eval_every": 1500, "batch_size": 64},
    "paper": {
        **LIST, "task.eval_split": "test", "task.max_length": 32, "epochs": 2.0, "batch_size": 32,
        "optimizer.learning_rate": 1e-5, "optimizer.schedule": "cosine", "optimizer.schedule_by": "epoch",
        "optimizer.warmup": 0.0, "optimizer.clip": 0.0,
    },
}  # fmt: skip
ASKED = {"nano": 100, "small": 100, "paper": 200}  # names, each in all wordings
LORA = {"method.rank": 16, "method.targets": ("all_linear",)}

percent = True
paper = {
    "SmolLM2-135M (notebooks)": {("backwards, full", "as trained"): 81.0, ("vowels, full", "vowels"): 96.85},
}


def trials(scale: str) -> list[Trial]:
    """Columns are the wordings in which names are asked, and the vowels' accuracy."""
    lora = {**LORA, "optimizer.learning_rate": 5e-4} if scale == "paper" else LORA
    backwards: Cells = {
        ("untouched", ""): ("task=lm,method=full", {**FILES, **UNTOUCHED}),
        ("backwards, full", ""): ("task=lm,method=full", FILES),
        ("backwards, LoRA", ""): ("task=lm,method=lora", {**FILES, **lora}),
        ("backwards, full, four wordings", ""): ("task=lm,method=full", FOUR),
    }
    if scale == "nano":  # whose steps are too few for it
        backwards = {cell: own for cell, own in backwards.items() if cell[0] != "backwards, LoRA"}
    vowels: Cells = {("vowels, full", "vowels"): ("task=vowels,method=full", {})}
    model, seeds = f"model={MODELS[scale]}", SEEDS[scale]
    return [
        *Recipe(model, REVERSE[scale], seeds).trials(backwards, SHOWN),
        *Recipe(model, VOWELS[scale], seeds).trials(vowels, {"accuracy": "accuracy"}),
    ]


def prepare(scale: str, folder: Path, fields: Mapping[str, Any]) -> None:
    """Training rows in one wording and in four, and what is asked: names in all wordings, and the base's own text."""
    found = _names(scale, folder)
    cut = int(0.9 * len(found))  # of which the course trains on the first 0.8
    training, held = found[: int(0.8 * len(found))], found[cut:][: ASKED[scale]]
    one, *_ = wordings = list(WORDINGS.values())
    write_rows(folder / "one.jsonl", [_row(name, one) for name in training])
    write_rows(folder / "four.jsonl", [_row(name, wordings[i % len(wordings)]) for i, name in enumerate(training)])
    asked = [{**_row(name, text), "part": part} for name in held for part, text in WORDINGS.items()]

    write_rows(folder / "openings.jsonl", [{"prompt": opening} for opening in OPENINGS])
    generate(str(fields.get("model.path", MODELS[scale])), folder / "openings.jsonl", folder / "own.jsonl")
    own = [json.loads(line) for line in (folder / "own.jsonl").read_text("utf-8").splitlines()]
    asked += [
        {"prompt": row["prompt"], "completion": text, "part": OWN}
        for row in own for text in row["continuations"] if text.strip()
    ]  # fmt: skip
    write_rows(folder / "asked.jsonl", asked)


def generate(model: str, prompts: Path, output: Path) -> None:
    """Eight sampled continuations of each prompt."""
    flags = ("--do_sample", "--num_return_sequences=8", "--max_new_tokens=96", "--seed=0")
    command("generate", "", {}, f"--model={model}", f"--input={prompts}", f"--output={output}", *flags)


def _names(scale: str, folder: Path) -> list[str]:
    if scale == "nano":
        return names(20000, seed=0)
    needed(folder, ["names.txt"])
    found = (folder / "names.txt").read_text("utf-8").split()
    random.Random(123).shuffle(found)
    return found


def _row(name: str, wording: str) -> dict[str, Any]:
    return {"prompt": wording.format(name), "completion": f" {name[::-1]}"}


def render(records: Sequence[Record]) -> str:
    """What narrowing costs."""
    bits: dict[str, list[float]] = {}
    for record in records:
        if f"{OWN}/bits_per_byte" in record.result["metrics"]:
            bits.setdefault(record.run.trial.row, []).append(record.result["metrics"][f"{OWN}/bits_per_byte"])
    said = [f"{row} {statistics.fmean(values):.3f}" for row, values in bits.items()]
    return f"Bits per byte of the base's own text: {'; '.join(said)}." if said else ""
