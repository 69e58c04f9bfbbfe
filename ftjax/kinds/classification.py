"""One class for a text or a pair of texts, by a linear head on the pooled hidden states."""

from typing import Any

import numpy as np

from ftjax.data.encode import encode_classification
from ftjax.data.encoded import Collector, Encoded
from ftjax.data.tasks.task import Labelled
from ftjax.kinds.base import Found, Kind, Result, Setting, Write, label_smoothing, measures_of, require
from ftjax.metrics import measure
from ftjax.objectives.base import Objective
from ftjax.objectives.classification import classification


def head(f: Any, classes: tuple[str, ...]) -> dict[str, Any]:
    """A classifier of the task's classes, `model.pooling` where it is set."""
    pooling = f.model.pooling
    if pooling is None:
        return dict(head="classification", num_classes=len(classes))
    require("model.pooling", pooling, pooling in ("first", "last", "mean", "max"), "first, last, mean or max")
    return dict(head="classification", num_classes=len(classes), pooling=pooling)


def encode(setting: Setting, examples: list[Labelled], out: Collector, training: bool) -> Encoded:
    """Texts and the indices of their classes."""
    return encode_classification(examples, setting.tokenizer, setting.classes, out)


def objective(setting: Setting) -> Objective:
    """Cross-entropy over the classes."""
    return classification(setting.model, label_smoothing=label_smoothing(setting.f))


def score(setting: Setting, examples: list[Labelled], encoded: Encoded, found: Found, write: Write) -> Result:
    """Accuracy and what else the task counts; a row has the texts, `prediction`, `reference`, `correct`."""
    return score_classes(setting, [examples[row] for row in encoded.rows], np.stack(found["logits"]), encoded.labels)


def score_classes(setting: Setting, examples: list[Labelled], logits: np.ndarray, labels: np.ndarray) -> Result:
    """Of logits `[n, C]` and labels `[n]`, as `score`."""
    chosen, classes = logits.argmax(-1), setting.classes
    shifted = logits - logits.max(-1, keepdims=True)
    nll = np.log(np.exp(shifted).sum(-1)) - np.take_along_axis(shifted, labels[:, None], -1)[:, 0]
    rows: list[dict[str, Any]] = [
        {
            **texts_of(example),
            "prediction": classes[guess],
            "reference": classes[label],
            "correct": float(guess == label),
        }
        for example, guess, label in zip(examples, chosen, labels)
    ]
    loss = measure("loss", nll, np.ones(len(nll)))
    return Result(
        {"loss": loss, "accuracy": measure("accuracy", chosen, labels)}
        | measures_of(setting, "classes", chosen, labels),
        rows,
    )


def texts_of(example: Any) -> dict[str, str]:
    """`text` and, of a pair, `text_pair`."""
    pair = {} if example.text_pair is None else {"text_pair": example.text_pair}
    return {"text": example.text, **pair}


KIND = Kind((Labelled,), head, encode, objective, score)
