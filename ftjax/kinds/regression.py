"""A number for a text or a pair of texts, by one output on the pooled hidden states."""

from typing import Any

import numpy as np

from ftjax.data.encode import encode_regression
from ftjax.data.encoded import Collector, Encoded
from ftjax.data.tasks.task import Scored
from ftjax.kinds import classification
from ftjax.kinds.base import Found, Kind, Result, Setting, Write, measures_of
from ftjax.kinds.classification import texts_of
from ftjax.metrics import Measure, measure
from ftjax.objectives.base import Objective
from ftjax.objectives.regression import regression


def head(f: Any, classes: tuple[str, ...]) -> dict[str, Any]:
    """A classifier of one output."""
    return classification.head(f, ("value",))


def encode(setting: Setting, examples: list[Scored], out: Collector, training: bool) -> Encoded:
    """Texts and their numbers."""
    return encode_regression(examples, setting.tokenizer, out)


def objective(setting: Setting) -> Objective:
    """Squared error."""
    return regression(setting.model)


def score(setting: Setting, examples: list[Scored], encoded: Encoded, found: Found, write: Write) -> Result:
    """Correlations; a row has the texts, `prediction` and `reference`."""
    values = np.asarray(found["value"], np.float64)
    rows = [
        {**texts_of(examples[row]), "prediction": float(value), "reference": float(right)}
        for row, value, right in zip(encoded.rows, values, encoded.labels)
    ]
    return Result(errors_of(values, encoded.labels) | measures_of(setting, "numbers", values, encoded.labels), rows)


def errors_of(values: np.ndarray, right: np.ndarray) -> dict[str, Measure]:
    """The mean squared error, as `loss`."""
    return {"loss": measure("loss", np.square(values - right), np.ones(len(right)))}


KIND = Kind((Scored,), head, encode, objective, score)
