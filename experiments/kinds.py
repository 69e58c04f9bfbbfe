"""Kinds of tasks, trained on real data: MiniLM, and the shipped nano models, against what needs no training.

    python -m experiments.kinds --model=MINILM_DIR --data=DATA_ROOT --workdir=runs/kinds [--only=tagging,span]

DATA_ROOT holds the data sets in folders: sst2, sick_nli, stsb, conll2003, ud_ewt, wikisql, multi30k,
tinyshakespeare/input.txt, lama_trex/pararel_trex_lms_vocab, and always e2e and
instructions/raschka_instruction-data.json, of which files are made first. A row trains on at most 2,000 rows (nano
models: 4,000; queries: 16,000; texts: all) for an epoch or two (facts: eight), one seed, one guess of the rate; 96
minutes of training on 2 CPU cores. `untrained` is the same model before the first step (a new head guesses), `majority`
the commonest answer of the training rows. The questions are made of E2E's own rows: what an attribute's value is, where
the sentence says it in its words, and none where the attribute is absent. An interrupted table goes on where it
stopped.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from configs.default import get_config
from ftjax.data.bad import BadRows
from ftjax.data.sources import read_rows
from ftjax.files import write_json, write_rows, write_text
from ftjax.sweep.render import text_table
from ftjax.train.build import build, read_examples
from ftjax.train.evaluate import evaluate_split
from ftjax.train.fields import Fields
from ftjax.train.loop import train
from ftjax.train.report import commit
from ftjax.train.restore import load_run

MINILM = {
    "task.max_train_rows": 2000, "task.max_eval_rows": 500, "batch_size": 32, "epochs": 2.0, "eval_every": 63,
    "data.overlong": "truncate", "model.dropout": 0.0, "optimizer.learning_rate": 1e-4,
}  # fmt: skip
NANO = {
    "task.max_train_rows": 4000, "task.max_eval_rows": 200, "batch_size": 32, "epochs": 1.0, "eval_every": 1000,
    "data.overlong": "drop", "optimizer.learning_rate": 1e-3,
}  # fmt: skip
QUESTIONS = {
    "Type": "what type of place is it ?", "food": "what food is served ?", "price": "what are the prices ?",
    "area": "where is it ?", "near": "what is it near ?", "customer rating": "how is it rated ?",
}  # fmt: skip


class Row(NamedTuple):
    """One line of the table: a kind, its task and model, and fields that differ from the common ones."""

    kind: str
    model: str
    task: str
    data: str  # folder or file under the data root; `made/` is under the workdir
    metrics: tuple[str, ...]
    fields: dict[str, Any]
    majority: Callable[[list[Any], list[Any]], float] | None = None


def commonest(train: list[Any], held: list[Any]) -> float:
    """The share of the commonest training label among the held-out ones."""
    [(label, _)] = Counter(x.label for x in train).most_common(1)
    return sum(x.label == label for x in held) / len(held)


def commonest_tag(train: list[Any], held: list[Any]) -> float:
    """The share of words that have the tag which is commonest in training."""
    [(tag, _)] = Counter(tag for x in train for tag in x.tags).most_common(1)
    tags = [mine for x in held for mine in x.tags]
    return tags.count(tag) / len(tags)


def commonest_word(train: list[Any], held: list[Any]) -> float:
    """The share of the commonest word of training's gaps in the held-out ones."""
    [(word, _)] = Counter(x.answer for x in train).most_common(1)
    return sum(x.answer == word for x in held) / len(held)


def never(train: list[Any], held: list[Any]) -> float:
    """A constant, or no entity at all."""
    return 0.0


def unanswered(train: list[Any], held: list[Any]) -> float:
    """Saying that there is no answer."""
    return sum(not x.answers for x in held) / len(held)


TEXT = {
    "task.max_length": 128, "batch_size": 16, "task.max_train_rows": 0, "task.max_eval_rows": 0,
    "data.overlong": "error",
}  # fmt: skip
ROWS = [
    Row("classification", "minilm", "sst2", "sst2", ("accuracy",), {}, commonest),
    Row("classification, pairs", "minilm", "sick", "sick_nli", ("accuracy",), {}, commonest),
    Row("regression", "minilm", "stsb", "stsb", ("spearman", "pearson"), {}, never),
    Row("tagging, names", "minilm", "conll2003", "conll2003", ("entity_f1",), {"optimizer.learning_rate": 3e-4}, never),
    Row("tagging, parts of speech", "minilm", "ud", "ud_ewt", ("accuracy",), {"optimizer.learning_rate": 3e-4},
        commonest_tag),
    Row("similarity, cosine", "minilm", "stsb", "stsb", ("spearman",),
        {"task.objective": "similarity", "optimizer.learning_rate": 2e-5}, never),
    Row("similarity, softmax", "minilm", "sick", "sick_nli", ("accuracy",),
        {"task.objective": "similarity"}, commonest),
    Row("span", "minilm", "qa", "made/questions", ("squad_f1", "squad_exact_match"),
        {"task.max_length": 128, "task.doc_stride": 16, "optimizer.learning_rate": 3e-4, "data.overlong": "error"},
        unanswered),
    Row("lm, data to text", "nano-gpt", "e2e", "e2e", ("perplexity", "bleu", "rouge_l"), {"generate.examples": 60}),
    Row("lm, text to SQL", "nano-gpt", "wikisql", "wikisql", ("perplexity", "lf_accuracy"),
        {"generate.examples": 200, "task.max_train_rows": 16000, "epochs": 2.0}),
    Row("lm, translation", "nano-gpt", "multi30k", "multi30k", ("perplexity", "chrf"), {"generate.examples": 30}),
    Row("lm, raw text", "nano-gpt", "text", "tinyshakespeare/input.txt", ("bits_per_byte",), TEXT),
    Row("lm, instructions", "nano-gpt", "instructions", "made/instructions", ("perplexity", "rougeL"),
        {"generate.examples": 30}),
    Row("lm, chat", "nano-gpt", "chat", "made/chat", ("perplexity",), {"task.chat_template": "plain"}),
    Row("choice", "nano-gpt", "sst2", "sst2", ("accuracy",), {"task.objective": "choice"}, commonest),
    Row("words", "nano-bert", "sst2", "sst2", ("accuracy",), {"task.objective": "words"}, commonest),
    Row("cloze", "minilm", "lama", "lama_trex/pararel_trex_lms_vocab", ("hit@1",),
        {"task.relation": "P17", "task.template": "[X] is located in [Y] .", "epochs": 8.0}, commonest_word),
    Row("masked words", "nano-bert", "text", "tinyshakespeare/input.txt", ("loss",), {**TEXT, "task.objective": "mlm"}),
]  # fmt: skip


def questions(data: Path, split: str, most: int) -> list[dict[str, Any]]:
    """Rows for the task `qa` of E2E's: three answers that are in the sentence for one that is not there."""
    name = {"train": "lora_train.txt.gz", "validation": "lora_valid.txt"}[split]
    rows: list[dict[str, Any]] = []
    absent = 0
    for number, row in enumerate(read_rows(data / "e2e" / name, ("context", "completion"), BadRows())):
        facts = dict(part.split(" : ", 1) for part in row["context"].split(" | "))
        sentence = row["completion"].strip()
        for key, question in QUESTIONS.items():
            value = facts.get(key, "").strip()
            at = sentence.find(value) if value else -1
            if (value and at < 0) or (not value and 3 * absent >= len(rows) - absent):
                continue
            absent += not value
            answers = {"text": [value], "answer_start": [at]} if value else {"text": [], "answer_start": []}
            rows.append({"id": f"{number}-{key}", "question": question, "context": sentence, "answers": answers})
            if len(rows) == most:
                return rows
    return rows


def make_files(data: Path, folder: Path) -> None:
    """Questions, and instruction data cut into splits, as instructions and as conversations."""
    for name in ("questions", "instructions", "chat"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for split, most in (("train", 2000), ("validation", 500)):
        write_rows(folder / "questions" / f"{split}.jsonl", questions(data, split, most))
    rows = json.loads((data / "instructions" / "raschka_instruction-data.json").read_text())
    for split, part in (("train", rows[100:]), ("validation", rows[:100])):
        write_rows(folder / "instructions" / f"{split}.jsonl", part)
        chats = [
            {"messages": [{"role": "user", "content": f"{r['instruction']} {r['input']}".strip()},
                          {"role": "assistant", "content": r["output"]}]}
            for r in part
        ]  # fmt: skip
        write_rows(folder / "chat" / f"{split}.jsonl", chats)


def measure(row: Row, args: argparse.Namespace) -> dict[str, Any]:
    """Trains one row, or finds it done: {untrained, trained: the metrics, majority, seconds, commit}."""
    workdir = args.workdir / f"{row.kind}-{row.task}".replace(", ", "-").replace(" ", "-")
    done = workdir / "row.json"
    if done.exists():
        return json.loads(done.read_text())
    axes = f"model={args.model if row.model == 'minilm' else row.model},task={row.task},method=full"
    default, config = get_config(axes), get_config(axes)
    source = args.workdir / row.data if row.data.startswith("made/") else args.data / row.data
    common = MINILM if row.model == "minilm" else NANO
    config.update_from_flattened_dict({**common, "seed": args.seed, "task.data": str(source), **row.fields})
    f = Fields(config)
    parts = build(f)
    before, _ = evaluate_split(f, parts, "validation")
    found = {"untrained": {name: before[name] for name in row.metrics}, "commit": commit()}
    if row.majority is not None:
        held, *_ = read_examples(f, parts.task, "validation", "")
        found["majority"] = row.majority(parts.setting.demonstrations(), held)
    result = train(config, default, workdir)
    after, _ = evaluate_split(*load_run(workdir), "validation")
    found["trained"] = {name: after[name] for name in row.metrics}
    found["interval"] = after.get(f"{row.metrics[0]}_interval")
    write_json(done, found | {"seconds": result["wall_seconds"], "examples": before["examples"]})
    return json.loads(done.read_text())


def main() -> None:
    """Runs what is missing, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, default=Path("runs/kinds"))
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make_files(args.data, args.workdir / "made")
    lines, commits = [], set()
    for row in ROWS:
        if args.only and not any(row.kind.startswith(name) for name in args.only.split(",")):
            continue
        print(f"\n== {row.kind}: {row.task}", flush=True)
        found = measure(row, args)
        commits.add(str(found["commit"])[:9])
        for i, name in enumerate(row.metrics):
            low, high = found["interval"] or (None, None)
            lines.append([
                row.kind if i == 0 else "", row.task if i == 0 else "", row.model if i == 0 else "", name,
                f"{found['majority']:.3f}" if i == 0 and "majority" in found else "",
                f"{found['untrained'][name]:.3f}", f"{found['trained'][name]:.3f}",
                f"{low:.3f} to {high:.3f}" if i == 0 and low is not None else "",
                f"{found['examples']:,}", f"{found['seconds']:.0f}" if i == 0 else "",
            ])  # fmt: skip
            print(" ".join(lines[-1]), flush=True)
    header = ("kind", "task", "model", "metric", "majority", "untrained", "trained", "95% interval", "examples", "s")
    table = text_table(header, lines)
    print("\n" + table)
    if not args.only:
        command = "python -m experiments.kinds --model=all-MiniLM-L6-v2 --data=ROOT"
        facts = f"`{command}`, seed {args.seed}, commit {', '.join(sorted(commits))}."
        text = f"# Kinds of tasks\n\n{(__doc__ or '').strip()}\n\n{facts}\n\n{table}\n"
        write_text(Path(__file__).parent / "results" / "kinds.md", text)


if __name__ == "__main__":
    main()
