"""Evaluation of a split: sums over batches, and generated text where the task asks for it."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.sharding import Mesh

from ftjax import metrics, tree
from ftjax.data.encoded import IGNORED
from ftjax.decode.batches import generate_batches
from ftjax.decode.generate import room
from ftjax.errors import UserError
from ftjax.objectives.base import Sums
from ftjax.parallel.mesh import make_mesh, pad_rows, place, place_batch, rows_multiple
from ftjax.train.build import Data, Parts, load_data

Tree = Any


class Sample(NamedTuple):
    """One generated answer beside its reference."""

    prompt: str
    prediction: str
    reference: str


def device_batches(batches: Iterable[dict], mesh: Mesh, micro_batches: int = 1) -> Iterator[tuple[dict, dict]]:
    """(host batch, device batch), rows padded to what the mesh and the micro-batches divide."""
    for batch in batches:
        yield batch, place_batch(pad_rows(batch, rows_multiple(mesh) * micro_batches), mesh)


def sum_batches(loss: Callable[..., Sums], train: Tree, frozen: Tree, batches: Iterable[dict]) -> dict[str, float]:
    """Mean loss, and each metric's mean, over all device batches."""
    total: Sums | None = None
    for batch in batches:
        sums = loss(train, frozen, batch)
        total = sums if total is None else jax.tree.map(lambda a, b: a + b, total, sums)
    if total is None:
        raise UserError("the evaluation split is empty")
    result = {"loss": float(total.loss / total.weight)}
    return result | {name: float(value / weight) for name, (value, weight) in total.metrics.items()}


def answers(
    parts: Parts, data: Data, variables: Tree, *, max_new_tokens: int, examples: int | None, batch_size: int
) -> list[Sample]:
    """Greedy answers to the first `examples` prompts (None: all), by the cached loop.

    The prompt is the encoded example up to its first labelled token: what training saw.
    """
    encoded = data.encoded
    count = len(encoded) if examples is None else min(len(encoded), examples)
    prompts, texts = [], []
    for i in range(count):
        example = encoded[i]
        prompts.append(example.tokens[: int(np.argmax(example.labels != IGNORED))].tolist())
        texts.append(data.texts[encoded.rows[i]])
    tokenizer = parts.tokenizer
    eos = tokenizer.eos_token_id
    adapters = parts.method.expand(variables["adapters"], variables["params"])
    new = generate_batches(
        parts.model, variables["params"], prompts, adapters=adapters, batch_size=min(batch_size, count),
        max_new_tokens=max_new_tokens, eos_token_id=eos,
    )  # fmt: skip
    ended = tokenizer.eos_token or ""
    return [
        Sample(text.prompt, tokenizer.decode(tokens, skip_special_tokens=True), text.completion.removesuffix(ended))
        for text, tokens in zip(texts, new)
    ]


def new_tokens(data: Data, wanted: int | None, positions: int) -> int:
    """How many tokens to generate: as asked, or as the longest reference has and the model's positions leave room for.

    Raises:
      UserError: more than there is room for.
    """
    encoded = data.encoded
    longest = max(int(np.argmax(encoded[i].labels != IGNORED)) for i in range(len(encoded)))
    left = positions - longest
    if wanted is None:
        return max(min(int(encoded.label_counts.max()), left), 1)
    if not 1 <= wanted <= left:
        raise UserError(f"generate.max_new_tokens={wanted}: the longest prompt leaves {left} of {positions} positions")
    return wanted


class Evaluator:
    """Evaluates a split with one compiled function a batch shape."""

    def __init__(self, parts: Parts, data: Data, mesh: Mesh, f: Any):
        self._parts, self._data, self._mesh = parts, data, mesh
        self._generates = "exact_match" in parts.task.metrics
        self._can_sample = parts.task.objective == "lm" and not parts.task.chunked
        if self._can_sample:
            self._examples = f.generate.examples if self._generates else None
            if self._examples is not None and self._examples < 1:
                raise UserError(f"generate.examples={self._examples}: the exact match needs at least one")
            site_form = parts.method.expand(parts.variables["adapters"], parts.variables["params"])
            self._max_new = new_tokens(data, f.generate.max_new_tokens, room(parts.model, site_form, 0))
            self._batch_size = f.eval_batch_size
        self.loss = jax.jit(lambda train, frozen, batch: parts.objective.loss(tree.join(train, frozen), batch, None))

    def __call__(self, train: Tree, frozen: Tree, samples: int = 0) -> tuple[dict[str, float], list[Sample]]:
        """(metrics, generated samples): all the samples that a generated metric needs, else `samples` of them."""
        batches = (batch for _, batch in device_batches(self._data.batches, self._mesh))
        result = sum_batches(self.loss, train, frozen, batches)
        if "perplexity" in self._parts.task.metrics:
            result["perplexity"] = math.exp(min(result["nll"], 700.0))
        wanted = self._examples if self._can_sample and self._generates else samples
        if not self._can_sample or wanted == 0:
            return result, []
        texts = answers(
            self._parts, self._data, tree.join(train, frozen), max_new_tokens=self._max_new,
            examples=wanted, batch_size=self._batch_size,
        )  # fmt: skip
        if self._generates:
            hits = metrics.exact_match([s.prediction for s in texts], [s.reference for s in texts])
            result["exact_match"] = float(np.mean(hits))
        return result, texts


def evaluate_split(f: Any, parts: Parts, split: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """({metric: value, and `<metric>_interval`: [low, high] by bootstrap}, per-example rows) of one split.

    A row has `text` or `prompt`, `prediction`, `reference`, and `correct`.
    """
    mesh = make_mesh(f.mesh)
    with jax.set_mesh(mesh):
        return _evaluate_split(f, parts, split, mesh)


def _evaluate_split(f: Any, parts: Parts, split: str, mesh: Mesh) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    data = load_data(f, parts, split, training=False)
    train, frozen = (place(part, mesh) for part in tree.split(parts.variables, parts.labels))
    found, samples = Evaluator(parts, data, mesh, f)(train, frozen)
    result: dict[str, Any] = {"split": split, "examples": len(data.encoded), "dropped": data.encoded.dropped, **found}
    if parts.objective.predict is None:
        rows: list[dict[str, Any]] = [
            {**s._asdict(), "correct": hit}
            for s, hit in zip(
                samples, metrics.exact_match([s.prediction for s in samples], [s.reference for s in samples])
            )
        ]
        name = "exact_match"
    else:
        rows, name = (
            _classified(parts, data, mesh, tree.join(train, frozen), parts.task.classes(f.task) or ()),
            "accuracy",
        )
    if rows:
        result[f"{name}_interval"] = list(metrics.bootstrap([row["correct"] for row in rows]))
    return result, rows


def _classified(parts: Parts, data: Data, mesh: Mesh, variables: Tree, classes: Sequence[str]) -> list[dict[str, Any]]:
    predict, found = jax.jit(cast(Any, parts.objective.predict)), {}
    for host, batch in device_batches(data.loader, mesh):
        for i, guess, label in zip(host["example"], np.asarray(predict(variables, batch)), host["labels"]):
            if i >= 0:
                text: Any = data.texts[i]
                found[int(i)] = {"text": text.text, "prediction": classes[guess], "reference": classes[label],
                                 "correct": float(guess == label)}  # fmt: skip
    return [found[i] for i in sorted(found)]
