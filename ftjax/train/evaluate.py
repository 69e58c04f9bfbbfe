"""Evaluation of a split: what the model gives for each example, scored by the task's kind."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ftjax import tree
from ftjax.data.encoded import IGNORED, Encoded
from ftjax.decode.batches import generate_batches
from ftjax.decode.generate import most_new_tokens
from ftjax.errors import UserError
from ftjax.kinds.base import Found, Result, Write, require
from ftjax.metrics import WRITTEN, Measure, measure
from ftjax.parallel.mesh import make_mesh, place, place_batch
from ftjax.train.build import Data, Parts, load_data

Tree = Any
Rows = list[dict[str, Any]]


def device_batches(batches: Iterable[dict], mesh: Mesh) -> Iterator[tuple[dict, dict]]:
    """(host batch, device batch)."""
    for batch in batches:
        yield batch, place_batch(batch, mesh)


def gather(found: list[tuple[np.ndarray, dict[str, np.ndarray]]], n: int) -> Found:
    """Outputs by encoded example, of `n`, from (whose they are, outputs) of batches.

    Whose is `[B]`, one output a row, or `[B, M]`, of labelled slots: an example's are together, in order.
    """
    order = np.concatenate([whose.ravel() for whose, _ in found])
    real = np.flatnonzero(order >= 0)
    real = real[np.argsort(order[real], kind="stable")]
    ends = np.cumsum(np.bincount(order[real], minlength=n))[:-1]
    by_slot = found[0][0].ndim == 2
    result = {}
    for name in found[0][1]:
        if by_slot:
            flat = np.concatenate([outputs[name].reshape(-1, *outputs[name].shape[2:]) for _, outputs in found])
            result[name] = np.split(flat[real], ends)
        else:  # batches may differ in their shape
            rows = [x for _, outputs in found for x in outputs[name]]
            result[name] = [rows[i] for i in real]
    return result


class Evaluator:
    """Evaluates a split with one compiled function a batch shape."""

    def __init__(self, parts: Parts, data: Data, mesh: Mesh, f: Any, *, last: bool = False):
        """Between training steps (not `last`) text is written for metrics, by beams and drawn too, only where the main
        one needs it, or where `generate.examples` says for how many."""
        self._parts, self._data, self._mesh = parts, data, mesh
        self._writes, self._scores_text = parts.kind.writes and not parts.task.chunked, False
        if self._writes:
            of_text = [name in WRITTEN for name in parts.metrics]
            self._scores_text = any(of_text if last or f.generate.examples is not None else of_text[:1])
            self._limit = f.generate.examples if self._scores_text else 0
            if self._scores_text and self._limit is not None and self._limit < 1:
                raise UserError(f"generate.examples={self._limit}: the metrics of text need at least one")
            self._max_new = new_tokens(parts, data.encoded, f.generate.max_new_tokens)
            self._batch_size = f.eval_batch_size
            beams = f.generate.num_beams if any(of_text) else 1  # read here for an evaluation of the run later, too
            require("generate.num_beams", beams, beams >= 1, "1 or more")
            samples = f.generate.samples if any(of_text) else 0
            require("generate.samples", samples, samples >= 0, "0 or more")
            self._beams, self._samples = (beams, samples) if self._scores_text else (1, 0)
            self._seed = f.seed
        objective, whole = parts.objective, NamedSharding(mesh, PartitionSpec())
        if objective.outputs is not None:
            outputs = objective.outputs
            self._run = jax.jit(
                lambda train, frozen, batch: (batch["example"], outputs(tree.join(train, frozen), batch)),
                out_shardings=whole,
            )
        else:
            self._run = jax.jit(
                lambda train, frozen, batch: objective.loss(tree.join(train, frozen), batch, None), out_shardings=whole
            )

    def compiled_with(self, other: "Evaluator") -> None:
        """Takes the compiled function of the evaluator of another run of the same model, kind and method."""
        self._run = other._run

    def __call__(self, train: Tree, frozen: Tree, shown: int = 0) -> tuple[dict[str, Measure], Rows]:
        """(metrics, rows): all the answers that a metric needs, else `shown` of them.

        With `generate.num_beams` the metrics of text are also by beam search, `bleu_beam5` beside the greedy `bleu`;
        with `generate.samples` also over so many answers drawn at temperature 1, by (seed, draw, example), together,
        `bleu_sampled8`: at that temperature, what a policy gradient raises.
        """
        given = [
            jax.tree.map(np.asarray, self._run(train, frozen, batch))
            for _, batch in device_batches(self._data.batches, self._mesh)
        ]
        if not given:
            raise UserError("the evaluation split is empty")
        kind, encoded = self._parts.kind, self._data.encoded
        if kind.score is None:
            totals = {"loss": [(sums.loss, sums.weight) for sums in given]}
            for name in given[0].metrics:
                shares = [sums.metrics[name] for sums in given]
                totals[name] = shares if any(count for _, count in shares) else [(0.0, 1.0)]  # of nothing
            sums = {name: measure("loss", *zip(*values)) for name, values in totals.items()}
            return {name: found._replace(resamples=False) for name, found in sums.items()}, []  # batches are no rows
        limit = 0
        if self._writes:
            limit = self._limit if self._scores_text else shown
        variables, score, outputs = tree.join(train, frozen), kind.score, gather(given, len(encoded))

        def scored(**decoding: Any) -> Result:
            write = Write(lambda examples: self._answers(variables, examples, decoding), limit, self._scores_text)
            return score(self._parts.setting, self._data.examples, encoded, outputs, write)

        measures, rows = scored()
        if self._writes and self._beams > 1:
            beside(f"_beam{self._beams}", measures, rows, [scored(num_beams=self._beams)])
        if self._writes and self._samples:
            first = self._seed * self._samples
            drawn = [scored(do_sample=True, seed=(first + i) % 2**31) for i in range(self._samples)]
            beside(f"_sampled{self._samples}", measures, rows, drawn)
        return measures, rows

    def _answers(self, variables: Tree, examples: Sequence[int], decoding: dict[str, Any]) -> list[str]:
        """Answers, greedy where `decoding` says nothing else, to what training saw before the first labelled token."""
        parts, encoded = self._parts, self._data.encoded
        prompts = {i: prompt_of(encoded, i) for i in examples}
        adapters = parts.method.expand(variables["adapters"], variables["params"])
        by_room: dict[int, list[int]] = {}  # near the model's last position there is less, in steps of 8: few compile
        for i, prompt in prompts.items():
            left = most_new_tokens(parts.model, adapters, len(prompt))
            by_room.setdefault(self._max_new if left >= self._max_new else left - left % 8 or left, []).append(i)
        answers = dict.fromkeys(prompts, "")
        for most, chosen in by_room.items():
            new = generate_batches(
                parts.model, variables["params"], {i: prompts[i] for i in chosen}, adapters=adapters,
                batch_size=min(self._batch_size, len(chosen)), max_new_tokens=most, **decoding,
                **edges(parts), **parts.setting.forced,
            ) if most > 0 else {}  # fmt: skip
            for i, tokens in new.items():
                answers[i] = parts.tokenizer.decode(tokens, skip_special_tokens=True)
        return [answers[i] for i in examples]


def beside(mark: str, measures: dict[str, Measure], rows: Rows, found: Sequence[Result]) -> None:
    """Adds the metrics of text of other answers to the same prompts, under names with a mark: those of a corpus from
    the counts of all, those of rows in the mean. A row has the `prediction`, or a list of several."""
    for name, one in found[0].measures.items():
        if name.rpartition("/")[2] in WRITTEN:  # of a mixture's part, too
            statistics = np.mean([result.measures[name].statistics for result in found], 0)
            measures[f"{name}{mark}"] = one._replace(statistics=statistics, rows=None)  # which the rows below have
    for row, *theirs in zip(rows, *(result.rows for result in found), strict=True):
        for name in (name for name in WRITTEN if name in theirs[0]):
            row[f"{name}{mark}"] = float(np.mean([other[name] for other in theirs]))
        if texts := [other["prediction"] for other in theirs if "prediction" in other]:
            row[f"prediction{mark}"] = texts if len(texts) > 1 else texts[0]


def prompt_of(encoded: Encoded, index: int) -> list[int]:
    """What an example asks: its tokens up to the first label, or what the encoder reads."""
    if encoded.source is not None:
        return encoded.source[index].tokens.tolist()
    example = encoded[index]
    return example.tokens[: int(np.argmax(example.labels != IGNORED))].tolist()


def edges(parts: Parts) -> dict[str, Any]:
    """The tokens at which an answer starts (an encoder-decoder's) and ends, as `ftjax.decode` takes them."""
    found: dict[str, Any] = {"eos_token_id": [*parts.setting.ends, *parts.kind.ends(parts.setting)]}
    return found if parts.model.cfg.encoder is None else found | {"decoder_start_token_id": parts.setting.decoder_start}


def new_tokens(parts: Parts, encoded: Encoded, wanted: int | None) -> int:
    """How many tokens to generate: as asked, or as the longest reference has.

    Raises:
      UserError: more are asked for than the longest prompt leaves room for.
    """
    if wanted is None:
        return int(encoded.label_counts.max())
    adapters = parts.method.expand(parts.variables["adapters"], parts.variables["params"])
    longest = max(len(prompt_of(encoded, i)) for i in range(len(encoded)))
    left = most_new_tokens(parts.model, adapters, longest)
    if not 1 <= wanted <= left:
        raise UserError(f"generate.max_new_tokens={wanted}: the longest prompt leaves room for {left}")
    return wanted


def evaluate_split(
    f: Any, parts: Parts, split: str, check: Callable[[], None] = lambda: None
) -> tuple[dict[str, Any], Rows]:
    """({metric: value, and `<metric>_interval`: [low, high] by bootstrap}, per-example rows) of one split.

    `check` is called once everything of `f` is read, before the model runs.
    """
    mesh = make_mesh(f.mesh)
    with jax.set_mesh(mesh):
        data = load_data(f, parts, split, training=False)
        train, frozen = (place(part, mesh) for part in tree.split(parts.variables, parts.labels))
        evaluator = Evaluator(parts, data, mesh, f, last=True)
        check()
        measures, rows = evaluator(train, frozen)
    counts = {"split": split, "examples": len(np.unique(data.encoded.rows)), "dropped": data.encoded.dropped}
    counts |= {"truncated": data.encoded.truncated, "bad_rows": len(data.bad.messages)}
    values = {name: found.value for name, found in measures.items()}
    intervals = {f"{name}_interval": x for name, found in measures.items() if (x := found.interval())}
    return counts | values | intervals, rows
