"""What a kind of task is: how examples are encoded, which head the model needs, what is minimised, what is scored."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ftjax.data.encoded import Collector, Encoded
from ftjax.data.tasks.task import Task
from ftjax.errors import UserError
from ftjax.metrics import METRICS, Measure, Rows, measure
from ftjax.models.transformer import Transformer
from ftjax.objectives.base import Objective

Found = Mapping[str, list[np.ndarray]]  # name of an output -> its value for each encoded example


class Write(NamedTuple):
    """Asks the model: `write(indices of encoded examples)` is what it writes after their prompts.

    limit: how many answers are wanted; None for all.
    scored: whether they are for metrics, not samples to look at.
    """

    answers: Callable[[Sequence[int]], list[str]]
    limit: int | None
    scored: bool

    def __call__(self, examples: Sequence[int]) -> list[str]:
        return self.answers(examples)


class Setting(NamedTuple):
    """What a kind may look at.

    decoder_start: the first token of an encoder-decoder's decoder.
    demonstrations: () -> the training split's examples, to show some of them in a prompt.
    ends, forced: how the model's answers end and begin (`hub.ends`, `hub.forced`).
    """

    f: Any  # the config
    task: Task
    tokenizer: Any
    model: Transformer
    classes: tuple[str, ...]
    decoder_start: int | None
    demonstrations: Callable[[], list[Any]]
    ends: tuple[int, ...] = ()
    forced: Mapping[str, Any] = {}


class Result(NamedTuple):
    """Metrics of a split, and a row for each example that was looked at."""

    measures: dict[str, Measure]
    rows: list[dict[str, Any]]


class Kind(NamedTuple):
    """One kind of task: one file each, listed in `ftjax.kinds`.

    accepts: the types of examples that it can encode.
    head: (config, classes) -> the options of `hub.load` that give the model what it needs.
    encode: (setting, examples, collector, whether they are trained on) -> Encoded.
    objective: setting -> Objective.
    score: (setting, examples, encoded, found, write) -> Result; `examples[encoded.rows[i]]` is the i-th encoded one's.
      None where the objective's sums are all there is to say.
    params: (setting, parameters, key) -> parameters with what the kind adds to the model's own.
    cuts: whether long texts become several examples, so that none is over the length.
    packs: whether several examples may share a row.
    writes: whether generated text may be scored.
    ends: setting -> tokens that end what is written, beside eos.
    metrics: of the kind, in place of the task's; the first chooses the best checkpoint.
    models: (setting, plain parameters) -> {folder: (model, its parameters)} that an export writes; "" is the model's.
    """

    accepts: tuple[type, ...]
    head: Callable[[Any, tuple[str, ...]], dict[str, Any]]
    encode: Callable[[Setting, list[Any], Collector, bool], Encoded]
    objective: Callable[[Setting], Objective]
    score: Callable[[Setting, list[Any], Encoded, Found, Write], Result] | None = None
    params: Callable[[Setting, Any, jax.Array], Any] = lambda setting, params, key: params
    cuts: bool = False
    packs: bool = False
    writes: bool = False
    ends: Callable[[Setting], tuple[int, ...]] = lambda setting: ()
    metrics: tuple[str, ...] = ()
    models: Callable[[Setting, Any], dict[str, tuple[Transformer, Any]]] = lambda setting, params: {
        "": (setting.model, params)
    }


def require(field: str, value: Any, right: bool, wanted: str) -> None:
    """UserError where a field's value is not right."""
    if not right:
        raise UserError(f"{field}={value!r}: give {wanted}")


def label_smoothing(f: Any) -> float:
    """`loss.label_smoothing`, checked."""
    value = f.loss.label_smoothing
    require("loss.label_smoothing", value, 0 <= value < 1, "0 up to below 1")
    return value


def measures_of(setting: Setting, takes: str, predictions: Rows, references: Rows) -> dict[str, Measure]:
    """The task's metrics of that sort (`Metric.takes`), by name."""
    names = [name for name in setting.task.metrics if METRICS[name].takes == takes]
    return {name: measure(name, predictions, references) for name in names}


def with_rows(measures: dict[str, Measure], rows: list[dict[str, Any]]) -> dict[str, Measure]:
    """The measures; each row gets its own value of those that have one."""
    for name, found in measures.items():
        for row, value in zip(rows, found.rows or ()):
            row[name] = value
    return measures
