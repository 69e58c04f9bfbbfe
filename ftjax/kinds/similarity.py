"""Vectors of texts that are near where the texts are alike (Sentence-BERT, Reimers & Gurevych 2019)."""

from typing import Any

import jax
import numpy as np

from ftjax.data.encode import pieces, score_of
from ftjax.data.encoded import Collector, Encoded
from ftjax.data.tasks.task import Labelled, Scored, Texts, class_of
from ftjax.errors import UserError
from ftjax.kinds.base import Found, Kind, Result, Setting, Write, measures_of, require
from ftjax.kinds.classification import score_classes, texts_of
from ftjax.kinds.regression import errors_of
from ftjax.metrics import measure
from ftjax.objectives.base import Objective
from ftjax.objectives.similarity import TEXTS, Loss, similarity, with_pair_classifier

CHUNK = 1000  # anchors that are compared with all positives at a time
NUMBERS = {"triplet": ("margin",), "in_batch": ("scale",)}  # fields of the task that a loss reads


def head(f: Any, classes: tuple[str, ...]) -> dict[str, Any]:
    """The body alone; mean pooling where `model.pooling` does not say otherwise."""
    pooling = f.model.pooling or "mean"
    require("model.pooling", pooling, pooling in ("first", "last", "mean", "max"), "first, last, mean or max")
    return dict(head="none", pooling=pooling)


def loss_of(setting: Setting) -> Loss:
    """`task.loss`, or the first that suits the task's examples.

    Raises:
      UserError: one that does not.
    """
    numbers = "regression" in setting.task.objectives
    suiting: tuple[Loss, ...] = ("softmax",) if setting.classes else ("cosine",) if numbers else ("in_batch", "triplet")
    loss: Loss = setting.f.task.loss or suiting[0]
    require("task.loss", loss, loss in suiting, f"{' or '.join(suiting)} with task={setting.f.task.name}")
    return loss


def params(setting: Setting, values: Any, key: jax.Array) -> Any:
    """The softmax loss has a classifier of its own."""
    if loss_of(setting) != "softmax":
        return values
    return with_pair_classifier(values, setting.model.cfg.hidden_size, len(setting.classes), key)


def encode(setting: Setting, examples: list[Any], out: Collector, training: bool) -> Encoded:
    """The texts of an example apart, as sequences of a group. 'truncate' cuts each.

    Raises:
      UserError: too long, a text without a partner, a score outside `task.bounds`, or an encoder-decoder.
    """
    loss, batch = loss_of(setting), 1000
    if setting.model.cfg.encoder is not None:
        raise UserError(f"model.path={setting.f.model.path}: similarity takes an encoder or a decoder, not both")
    if loss == "cosine":
        low, high = setting.f.task.bounds
        require("task.bounds", (low, high), low < high, "the lowest and the highest score, as 0.0,5.0")
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
                if None in group or len(group) not in TEXTS[loss]:
                    wanted = " or ".join(map(str, TEXTS[loss]))
                    there = sum(text is not None for text in group)
                    raise UserError(f"{out.place(row)}: {there} text(s), task.loss={loss!r} compares {wanted}")
                if not out.fits(row, max(len(ids) for ids, _ in sequences)):
                    if not out.cuts:
                        continue
                    flat_group = [(text or "", None) for text in group]
                    sequences = pieces(flat_group, setting.tokenizer, out.max_length, out.left)
                out.add(row, [ids for ids, _ in sequences], _label(setting, example, out.place(row)))
    return out.encoded("row", setting.tokenizer.pad_token_id, np.float32 if loss == "cosine" else np.int32)


def _label(setting: Setting, example: Any, where: str) -> float:
    if isinstance(example, Labelled):
        return class_of(example.label, setting.classes, where)
    if isinstance(example, Texts):
        return 0
    low, high = setting.f.task.bounds
    return (score_of(example.score, (low, high), where) - low) / (high - low)


def objective(setting: Setting) -> Objective:
    """The loss between the texts' vectors."""
    loss = loss_of(setting)
    if loss == "in_batch":
        f = setting.f
        require(
            "micro_batches", f.micro_batches, f.micro_batches == 1, "1, for in-batch negatives are of the whole batch"
        )
    numbers = {name: getattr(setting.f.task, name) for name in NUMBERS.get(loss, ())}
    for name, value in numbers.items():
        require(f"task.{name}", value, value > 0, "more than 0")
    return similarity(setting.model, loss, **numbers)


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
        rows = [{**texts_of(x), "prediction": float(c), "reference": x.score} for x, c in zip(chosen, cosines)]
        errors = errors_of(cosines, encoded.labels)
        return Result(errors | measures_of(setting, "numbers", cosines, encoded.labels), rows)
    nearest = [chosen[j].texts[1] for j in nearest_positives(np.stack(found["vectors"]))]
    rows = [{"texts": list(x.texts), "prediction": text, "reference": x.texts[1]} for x, text in zip(chosen, nearest)]
    right = np.array([x.texts[1] == text for x, text in zip(chosen, nearest)])  # a text may be several rows' positive
    return Result({"accuracy": measure("accuracy", right, np.ones(len(right), bool))}, rows)


def nearest_positives(vectors: np.ndarray) -> np.ndarray:
    """The row of the positive that is nearest by cosine to each anchor, of all rows': `[n, G, D]` -> `[n]`."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    units = vectors / np.maximum(norms, np.finfo(vectors.dtype).tiny)
    return np.concatenate(
        [(units[start : start + CHUNK, 0] @ units[:, 1].T).argmax(1) for start in range(0, len(units), CHUNK)]
    )


def models(setting: Setting, values: Any) -> dict[str, Any]:
    """The model without the classifier of pairs, which no format has a place for."""
    return {"": (setting.model, {name: x for name, x in values.items() if name != "pair_classifier"})}


KIND = Kind((Labelled, Scored, Texts), head, encode, objective, score, params=params, models=models)
