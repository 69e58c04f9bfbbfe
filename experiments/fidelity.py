"""The same training run here and in transformers: MiniLM on SST-2, full fine-tuning, fp32, without dropout.

    python -m experiments.fidelity --model=MINILM_DIR --data=SST2_DIR      # needs torch: pip install -e '.[test]'

Both sides start from one saved model (its new head included) and take the same batches, AdamW at a constant rate and a
clip at norm 1. Expected: the losses of the first 50 steps agree within 1e-4, and after 200 steps at least 99% of the
validation sentences are classified alike. Writes `experiments/results/fidelity.md`.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.default import get_config
from ftjax import hub, tree
from ftjax.files import write_text
from ftjax.sweep.render import text_table
from ftjax.train.build import Data, build, load_data
from ftjax.train.fields import Fields
from ftjax.train.optimizer import make_optimizer
from ftjax.train.report import commit
from ftjax.train.step import init_state, make_step

RATE, CLOSE = 5e-5, 50
Batches = list[dict[str, np.ndarray]]


def ours(f: Any, parts: Any, batches: Batches, held: Batches) -> tuple[np.ndarray, np.ndarray]:
    """(losses [steps], predictions [n]) of the project's own step."""
    train, frozen = tree.split(parts.variables, parts.labels)
    labels = tree.split(parts.labels, parts.labels)[0]
    tx, _ = make_optimizer(f.optimizer, labels, len(batches), len(batches), parts.model.cfg.rows)
    state, step = init_state(train, tx), jax.jit(make_step(parts.objective.loss, tx, 1))
    losses = []
    for batch in batches:
        state, metrics = step(state, frozen, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    outputs = jax.jit(parts.objective.outputs)
    variables = tree.join(state["train"], frozen)
    found = [np.asarray(outputs(variables, batch)["logits"]).argmax(-1)[batch["example"] >= 0] for batch in held]
    return np.asarray(losses), np.concatenate(found)


def theirs(folder: Path, batches: Batches, held: Batches) -> tuple[np.ndarray, np.ndarray]:
    """The same by transformers and torch."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)

    def logits(batch: dict[str, np.ndarray]) -> Any:
        real = batch["example"] >= 0
        ids, mask = (torch.from_numpy(batch[name][real]).long() for name in ("input_ids", "segment_ids"))
        return model(input_ids=ids, attention_mask=mask).logits

    model.train()
    losses = []
    for batch in batches:
        labels = torch.from_numpy(batch["labels"][batch["example"] >= 0]).long()
        loss = torch.nn.functional.cross_entropy(logits(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        return np.asarray(losses), np.concatenate([logits(batch).argmax(-1).numpy() for batch in held])


def main() -> None:
    """Runs both sides, prints and writes the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = get_config(f"model={args.model},task=sst2,method=full")
    config.update_from_flattened_dict({
        "seed": args.seed, "task.data": args.data, "task.max_train_rows": 32 * args.steps, "model.dropout": 0.0,
        "data.overlong": "truncate", "optimizer.learning_rate": RATE, "optimizer.schedule": "constant",
        "optimizer.warmup": 0.0,
    })  # fmt: skip
    f = Fields(config)
    parts = build(f)
    training: Data = load_data(f, parts, "train", training=True)
    stream, held = iter(training.loader), list(load_data(f, parts, "validation", training=False).loader)
    batches = [next(stream) for _ in range(args.steps)]
    with tempfile.TemporaryDirectory() as folder:
        hub.save(folder, parts.model, parts.variables["params"])
        other_losses, other_found = theirs(Path(folder), batches, held)
    losses, found = ours(f, parts, batches, held)
    gap = np.abs(losses - other_losses)
    right = np.concatenate([batch["labels"][batch["example"] >= 0] for batch in held])  # in the batches' order
    rows = [
        [f"largest difference of the loss, steps 1 to {CLOSE}", "1e-4", f"{gap[:CLOSE].max():.1e}"],
        [f"largest difference of the loss, steps 1 to {args.steps}", "", f"{gap.max():.1e}"],
        ["predictions that agree after the last step", "99%", f"{100 * np.mean(found == other_found):.2f}%"],
        [
            "accuracy here, there",
            "",
            f"{100 * np.mean(found == right):.2f}%, {100 * np.mean(other_found == right):.2f}%",
        ],
        [
            "mean loss of the last 20 steps here, there",
            "",
            f"{losses[-20:].mean():.4f}, {other_losses[-20:].mean():.4f}",
        ],
    ]
    table = text_table(("", "aim", "measured"), rows)
    command = "python -m experiments.fidelity --model=all-MiniLM-L6-v2 --data=DIR"
    facts = f"`{command}`, {args.steps} steps of 32, seed {args.seed}, commit {commit()}."
    write_text(Path(__file__).parent / "results" / "fidelity.md", f"# Fidelity to transformers\n\n{facts}\n\n{table}\n")
    print(table)


if __name__ == "__main__":
    main()
