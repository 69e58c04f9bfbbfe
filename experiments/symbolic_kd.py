"""Symbolic knowledge distillation: does a critic's choice of a teacher's answers make a better student?

West et al. 2022, https://arxiv.org/abs/2110.07178: GPT-3 writes common sense, a classifier trained on some of it that
people labelled drops what is likely wrong, and a student trained on the rest exceeds its teacher (87.5% of accepted
statements against 73.3%). Here teacher and students are the shipped nano-gpt, and the task is to write how many vowels
a name has. The teacher is trained briefly, and draws four answers a prompt. Students are trained on one answer for each
of equally many prompts: the first one drawn (unfiltered); the likeliest; the first of those above the threshold at
which the critic keeps 80% or half of the right ones (the paper's two); the best by probability times acceptability
(augmented); the first that is right (verifier, a perfect critic). The critic is the teacher with a
classifier's head, trained on labelled answers about other names.

    ftjax sweep experiments/symbolic_kd.py --scale=nano --workdir=runs/symbolic_kd --jobs=2
    ftjax table --workdir=runs/symbolic_kd --output=experiments/results/symbolic_kd.md

Exact match on names that nobody was trained on. The teacher's row is its run of seed 0 again, which is the one that
writes and that the critic starts from, and two more; corpora are made once, so the students' spread is of their
training alone. (Names spelled backwards did not do: of critics trained on 2,000 labelled answers none was right about
more than 64%, by chance 56%, whatever was pooled.) small, paper: none, for want of GPT-3 and of people's labels.

nano: 21 runs, three seeds, 11 minutes of processes, without the teacher's and the critic's: found, what is right makes
the better student (verifier 81, the teacher 69); a critic does not find it: likeliest and augmented (58) are ahead of
unfiltered (56), a threshold is not.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.commands import command
from ftjax.data.names import names
from ftjax.distill import sequence
from ftjax.errors import UserError
from ftjax.files import write_rows
from ftjax.sweep import Trial
from ftjax.sweep.record import Record
from ftjax.sweep.render import text_table
from ftjax.sweep.trial import prepared_in

HELD_OUT, SIZE, SEEDS = 500, 800, range(3)  # names to be tested on, rows of a student's corpus
NAMES = {"validation": HELD_OUT, "teacher": 3500, "labelled": 650, "judged": 150, "asked": 2200}
AXES = "model=nano-gpt,task=lm,method=full"
DATA = {f"task.files.{split}": f"{{prepared}}/{name}.jsonl"
        for split, name in (("train", "teacher"), ("validation", "validation"))}  # fmt: skip
COMMON: dict[str, Any] = {"task.max_length": 32, "generate.examples": HELD_OUT, "log_every": 20}
TEACHER = {**DATA, **COMMON, "steps": 60, "eval_every": 60}
STUDENT = {**DATA, **COMMON, "steps": 120, "eval_every": 120, "task.max_train_rows": SIZE}
CRITIC = {"task.max_length": 32, "steps": 300, "eval_every": 75, "optimizer.learning_rate": 5e-4}
COLUMNS = {"text": "prompt", "text_pair": "completion", "label": "valid"}
DRAWS = ("--sequences", "--do_sample", "--num_return_sequences=4", "--batch_size=128")
CHOICES = {  # corpus -> how ftjax teach chooses of the answers, of which the first one of a prompt is taken
    "unfiltered": ("--choose=all", "--labelled=reference"),
    "likeliest": ("--choose=score",),
    "critic 0.8": ("--choose=all", "--keep=critic:recall=0.8"),
    "critic 0.5": ("--choose=all", "--keep=critic:recall=0.5"),
    "augmented": ("--choose=augmented",),
    "verifier": ("--choose=all", "--keep=reference"),
}
RECALLS = (0.2, 0.5, 0.8, 0.9, 1.0)

metrics = ("exact_match",)
percent = True


def trials(scale: str) -> list[Trial]:
    """The teacher, and a student for each corpus."""
    if scale != "nano":
        return []
    corpora = {name: {**STUDENT, "distill.corpus": f"{{prepared}}/{name}.jsonl"} for name in CHOICES}
    return [
        trial
        for seed in SEEDS
        for trial in (
            Trial("teacher", "", seed, AXES, TEACHER),
            *(Trial(f"student, {name}", "", seed, f"{AXES},distill=sequence", corpora[name]) for name in corpora),
        )
    ]


def prepare(scale: str, folder: Path, fields: Mapping[str, Any]) -> None:
    """Trains the teacher and the critic, and writes the corpora.

    Raises:
      UserError: fields, with which teacher and critic would not be the ones of the trials; fewer than SIZE rows.
    """
    if fields:
        raise UserError(f"{', '.join(fields)}: set for all trials, but teacher and critic are prepared without")
    made = iter(names(sum(NAMES.values()), seed=0))
    for name, count in NAMES.items():
        write_rows(folder / f"{name}.jsonl", [_row(next(made)) for _ in range(count)])
    here = {k: v.format(prepared=folder) if isinstance(v, str) else v for k, v in TEACHER.items()}
    command("train", AXES, here, f"--workdir={folder / 'teacher'}")

    def teach(asked: str, output: str, *flags: str) -> list[dict[str, Any]]:
        config = {"distill.teacher": folder / "teacher", "task.max_length": 32}
        given = [*DRAWS, f"--hypotheses={folder / f'{asked}-answers.jsonl'}", f"--output={folder / f'{output}.jsonl'}"]
        config["task.files.train"] = folder / f"{asked}.jsonl"
        command("teach", "model=nano-gpt,task=lm,distill=sequence", config, *given, *flags)
        return _rows(folder / f"{output}.jsonl")

    for name in ("labelled", "judged"):
        teach(name, f"{name}-valid", "--choose=all", "--labelled=reference")
    data = {"task.files.train": folder / "labelled-valid.jsonl", "task.files.validation": folder / "judged-valid.jsonl"}
    data |= {f"task.columns.{role}": column for role, column in COLUMNS.items()}
    start = {"warm_start": folder / "teacher"}
    command("train", "model=nano-gpt,task=classification,method=full", data | CRITIC | start,
            f"--workdir={folder / 'critic-run'}")  # fmt: skip

    for name, flags in CHOICES.items():
        known = () if name == "unfiltered" else (f"--labelled={folder / 'judged-valid.jsonl'}",)
        rows = sequence.best(
            teach("asked", name, f"--critic={folder / 'critic-run'}", *flags, *known), lambda record: 0.0
        )
        if len(rows) < SIZE:
            raise UserError(f"{folder / name}.jsonl: {len(rows)} rows, fewer than the {SIZE} that students take")
        write_rows(folder / f"{name}.jsonl", rows)


def render(records: Sequence[Record]) -> str:
    """How much of each corpus is right, and quality against quantity of the ratings."""
    if not records:
        return ""
    folder = prepared_in(records[0].run.folder.parents[1])
    corpora = []
    for name in CHOICES:
        rows = _rows(folder / f"{name}.jsonl")
        right = sum(map(sequence.matches_reference, rows[:SIZE])) / SIZE
        [(_, most)] = Counter(row["completion"] for row in rows[:SIZE]).most_common(1)
        corpora.append([name, f"{len(rows):,}", f"{100 * right:.1f}", f"{100 * most / SIZE:.1f}"])
    known = json.loads((folder / "unfiltered.jsonl.curve.json").read_text())
    points = []
    for rating in ("score", "critic", "augmented"):
        found = [next(row for row in known[rating] if row["recall"] >= recall) for recall in RECALLS]
        points.append([rating, *(f"{100 * row['precision']:.0f} ({100 * row['kept']:.0f})" for row in found)])
    valid = [row["valid"] for row in _rows(folder / "judged-valid.jsonl")]
    result = json.loads((folder / "critic-run" / "result.json").read_text())
    return "\n\n".join([
        f"Of {len(valid)} answers about names that it was not trained on, which chose its checkpoint, the critic is"
        f" right about {100 * result['best']['value']:.1f}%; {100 * sum(valid) / len(valid):.1f}% of them are"
        f" acceptable. The corpora, one answer a prompt, of which each student sees the first {SIZE:,}:",
        text_table(["corpus", "rows", "right, %", "of one answer, %"], corpora, left=1),
        f"Quality against quantity: of all {known['labelled']:,} answers, {100 * known['valid']:.1f}% of which are"
        " right, the share of right ones among those that are kept, and in brackets the share that is kept, in %. By"
        " the teacher's log-probability, the critic, and the two together:",
        text_table(["rated by", *(f"recall {recall}" for recall in RECALLS)], points, left=1),
    ])  # fmt: skip


def _row(name: str) -> dict[str, Any]:
    return {"prompt": f"Vowels in {name}:", "completion": f" {sum(letter in 'aeiou' for letter in name)}"}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
