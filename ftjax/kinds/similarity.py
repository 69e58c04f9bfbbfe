"""Vectors of texts that are near where the texts are alike (Sentence-BERT, Reimers & Gurevych 2019)."""

from typing import Any

import jax
import numpy as np

from ftjax.data.encode import class_of, pieces
from ftjax.data.encoded import Collector, Encoded
from ftjax.data.tasks.task import Labelled, Scored, Texts
from ftjax.errors import UserError
from ftjax.kinds.base import Found, Kind, Result, Setting, Write, measures_of, require
from ftjax.kinds.classification import score_classes, texts_of
from ftjax.kinds.regression import errors_of
from ftjax.metrics import measure
from ftjax.objectives.base import Objective
from ftjax.objectives.similarity import TEXTS, similarity, with_pair_classifier

LOSSES = {Scored: ("cosine",), Labelled: ("softmax",), Texts: ("in_batch", "triplet")}  # by examples


def head(f: Any, classes: tuple[str, ...]) -> dict[str, Any]:
    """The body alone; mean pooling where `model.pooling` does not say otherwise."""
    pooling = f.model.pooling or "mean"
    require("model.pooling", pooling, pooling in ("first", "last", "mean", "max"), "first, last, mean or max")
    return dict(head="none", pooling=pooling)


def loss_of(setting: Setting) -> str:
    """`task.loss`, or what suits the task's examples: softmax of classes, cosine of numbers, else in_batch."""
    default = "softmax" if setting.classes else "cosine" if "regression" in setting.task.objectives else "in_batch"
    return setting.f.task.loss or default


def params(setting: Setting, values: Any, key: jax.Array) -> Any:
    """The softmax loss has a classifier of its own."""
    if loss_of(setting) != "softmax":
        return values
    return with_pair_classifier(values, setting.model.cfg.hidden_size, len(setting.classes), key)


def encode(setting: Setting, examples: list[Any], out: Collector, training: bool) -> Encoded:
    """The texts of an example apart, as sequences of a group. 'truncate' cuts each.

    Raises:
      UserError: too long, a text without a partner, or examples that the loss cannot use.
    """
    loss, batch = loss_of(setting), 1000
    for start in range(0, len(examples), batch):
        chunk = examples[start : start + batch]
        texts = [
            example.texts if isinstance(example, Texts) else (example.text, example.text_pair) for example in chunk
        ]
        flat = pieces([(text or "", None) for group in texts for text in group], setting.tokenizer)
        at = 0
        for row, (example, group) in enumerate(zip(chunk, texts), start):
            sequences, at = flat[at : at + len(group)], at + len(group)
            with out.bad:
                if loss not in LOSSES[type(example)]:
                    raise UserError(
                        f"task.loss={loss!r}: examples of this task have {', '.join(LOSSES[type(example)])}"
                    )
                if None in group or len(group) not in TEXTS[loss]:
                    wanted = " or ".join(map(str, TEXTS[loss]))
                    there = sum(text is not None for text in group)
                    raise UserError(f"{out.place(row)}: {there} text(s), task.loss={loss!r} compares {wanted}")
                if not out.fits(row, max(len(ids) for ids, _ in sequences)):
                    if out.overlong == "drop":
                        continue
                    sequences = pieces([(text or "", None) for text in group], setting.tokenizer, out.max_length)
                out.add(row, [ids for ids, _ in sequences], _label(setting, example, out.place(row)))
    return out.encoded("row", setting.tokenizer.pad_token_id, np.float32 if loss == "cosine" else np.int32)


def _label(setting: Setting, example: Any, where: str) -> float:
    if isinstance(example, Labelled):
        return class_of(example.label, setting.classes, where)
    if isinstance(example, Texts):
        return 0
    low, high = setting.f.task.bounds
    if not low <= example.score <= high:
        raise UserError(f"{where}: the score {example.score} is outside task.bounds=({low}, {high}); mend one of them")
    return (example.score - low) / (high - low)


def objective(setting: Setting) -> Objective:
    """The loss between the texts' vectors."""
    loss = loss_of(setting)
    if loss == "in_batch":
        f = setting.f
        require(
            "micro_batches", f.micro_batches, f.micro_batches == 1, "1, for in-batch negatives are of the whole batch"
        )
    return similarity(setting.model, loss)  # type: ignore[arg-type]


def score(setting: Setting, examples: list[Any], encoded: Encoded, found: Found, write: Write) -> Result:
    """Correlations of the cosine with the score, or what the loss decides between; a row has the texts, `prediction`
    and, where there is one, `reference`."""
    chosen = [examples[row] for row in encoded.rows]
    if "logits" in found:
        return score_classes(setting, chosen, np.stack(found["logits"]), encoded.labels)
    if "nearer" in found:
        nearer = np.asarray(found["nearer"], np.float64)
        rows = [{"texts": list(x.texts), "prediction": float(gap)} for x, gap in zip(chosen, nearer)]
        return Result({"accuracy": measure("accuracy", nearer > 0, np.ones(len(nearer), bool))}, rows)
    cosines = np.asarray(found["cosine"], np.float64)
    if encoded.labels.dtype == np.float32:
        rows = [
            {**texts_of(x), "prediction": float(c), "reference": x.score} for x, c in zip(chosen, cosines)
        ]  # fmt: skip
        return Result(
            errors_of(cosines, encoded.labels) | measures_of(setting, "numbers", cosines, encoded.labels), rows
        )
    vectors = np.stack(found["vectors"]).astype(np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    best = (vectors[:, 0] @ vectors[:, 1].T).argmax(1)  # among the positives of the whole split
    rows = [
        {"texts": list(x.texts), "prediction": chosen[j].texts[1], "reference": x.texts[1]}
        for x, j in zip(chosen, best)
    ]
    return Result({"accuracy": measure("accuracy", best, np.arange(len(best)))}, rows)


KIND = Kind((Labelled, Scored, Texts), head, encode, objective, score, params=params)
