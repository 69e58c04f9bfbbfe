"""Examples of the training split: a few of each class to train on, and ones to show beside a text."""

import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import jax
import numpy as np

from ftjax import hub
from ftjax.data.encode import encode_regression
from ftjax.data.encoded import Collector
from ftjax.data.loader import Loader
from ftjax.data.tasks.task import Labelled, Scored, class_of
from ftjax.errors import UserError
from ftjax.kinds.base import Setting, require
from ftjax.objectives.body import pooled

ANSWERS = ("id", "label", "score", "completion", "answers", "answer")  # fields that say what is right
LONGEST = 128  # tokens of a text whose vector is taken
# the vectors of texts, as long as what reads a run's training split: its splits show examples of one pool
_VECTORS: WeakKeyDictionary[Any, dict[str, np.ndarray]] = WeakKeyDictionary()


def asks(example: Any) -> tuple[Any, ...]:
    """What an example shows but for its answer: two that ask the same are the same to each other."""
    return tuple(value for name, value in zip(example._fields, example) if name not in ANSWERS)


def end_of(score: float, bounds: Sequence[float]) -> int:
    """0 where a number is nearer to the low end of the bounds, 1 where it is not."""
    return int(score > sum(bounds) / 2)


def few(f: Any, examples: Sequence[Any], split: str) -> list[int]:
    """Which of the training examples make a few-shot split (Gao et al. 2021, section 3): of each class, in an order
    drawn by `seed`, the first `task.per_class` are `train`, as many after them `validation`. Numbers have two classes,
    the halves of `task.bounds`.

    Raises:
      UserError: examples without classes, or a class with fewer examples.
    """
    k, seen, chosen = f.task.per_class, Counter[Any](), []
    first = 0 if split == "train" else k
    for i in np.random.default_rng(f.seed).permutation(len(examples)).tolist():
        example = examples[i]
        if not isinstance(example, Labelled | Scored):
            raise UserError(f"task.per_class={k}: {type(example).__name__} examples have no class; leave it at 0")
        group = example.label if isinstance(example, Labelled) else end_of(example.score, f.task.bounds)
        if first <= seen[group] < first + k:
            chosen.append(i)
        seen[group] += 1
    for group, there in seen.items():
        if there < first + k:
            raise UserError(
                f"task.per_class={k}: class '{group}' has {there} training examples, the {split} split needs"
                f" {first + k}; lower it"
            )
    return sorted(chosen)


class Pool(NamedTuple):
    """The training split's examples, and the indices of each class's, ascending; of examples without classes, all."""

    examples: list[Any]
    groups: list[np.ndarray]


def pool(setting: Setting) -> Pool:
    """The examples that may be shown."""
    examples = setting.demonstrations()
    groups: dict[int, list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        group = 0
        if isinstance(example, Labelled):
            group = class_of(example.label, setting.classes, f"training example {i}")
        elif isinstance(example, Scored):
            group = end_of(example.score, setting.f.task.bounds)
        groups[group].append(i)
    return Pool(examples, [np.asarray(groups[group]) for group in sorted(groups)])


def draws(setting: Setting, there: Pool, names: Sequence[str], queries: Sequence[Any], training: bool) -> Iterator[Any]:
    """For each query `task.train_draws` or `task.test_draws` draws `[n, C]`: the index of one demonstration a class,
    never one that asks what the query asks. With `task.demonstration_encoder`, from the half of each class whose
    vectors are nearest to the query's. They depend on `seed` and on what the query asks, not on its row.

    Raises:
      UserError: a class with no other example.
    """
    f = setting.f
    field = "train_draws" if training else "test_draws"
    count = f.task.train_draws if training else f.task.test_draws
    require(f"task.{field}", count, count >= 1, "1 or more")
    if len(there.groups) < len(names):
        raise UserError(
            f"task.demonstrations=1: the training split has examples of {len(there.groups)} of the {len(names)} classes"
        )
    same: dict[Any, list[int]] = defaultdict(list)
    for i, example in enumerate(there.examples):
        same[asks(example)].append(i)
    near = _nearest(setting, there, queries) if f.task.demonstration_encoder else None
    limit = max(int(len(there.examples) // len(names) * 0.5), 1)
    for query in queries:
        own, chosen = same.get(asks(query), []), []
        rng = np.random.default_rng([f.seed, int(training), zlib.crc32(repr(asks(query)).encode())])
        cosines = near and near(query)
        for name, group in zip(names, there.groups):
            others = group[~np.isin(group, own)]
            if not len(others):
                raise UserError(f"task.demonstrations=1: class '{name}' has no other example to show; add some")
            if cosines is not None and len(others) > limit:
                others = np.sort(others[np.argpartition(-cosines[others], limit)[:limit]])
            chosen.append(rng.choice(others, count))
        yield np.stack(chosen, 1)


def _nearest(setting: Setting, there: Pool, queries: Sequence[Any]) -> Callable[[Any], np.ndarray]:
    """query -> cosines `[n]` with the examples of the pool."""
    known = _VECTORS.setdefault(setting.demonstrations, {})
    shown = [_text(example) for example in there.examples]
    new = [text for text in dict.fromkeys([*shown, *map(_text, queries)]) if text not in known]
    if new:
        known.update(zip(new, vectors(setting.f.task.demonstration_encoder, new), strict=True))
    others = np.stack([known[text] for text in shown])
    return lambda query: others @ known[_text(query)]


def _text(example: Any) -> str:
    return example.text if example.text_pair is None else f"{example.text} {example.text_pair}"


def vectors(path: str, texts: Sequence[str]) -> np.ndarray:
    """The mean of an encoder's hidden states over each text's tokens, of length 1: `[n, D]` (Reimers & Gurevych 2019).
    A text is its first 128 tokens."""
    model, params = hub.load(path, head="none", pooling="mean")
    tokenizer, most = hub.tokenizer(path, model.cfg.vocab_size), min(LONGEST, model.cfg.room)
    encoded = encode_regression([Scored(text, 0.0) for text in texts], tokenizer, Collector(most, "truncate"))
    inputs = ("input_ids", "segment_ids", "position_ids")
    run = jax.jit(lambda params, batch: pooled(model, {"params": params}, batch, None))
    found = np.zeros((len(texts), model.cfg.hidden_size), np.float32)
    for batch in Loader(encoded, "buckets", 64, shuffle=False, max_length=most, prefetch=0):
        real = batch["example"] >= 0
        found[batch["example"][real]] = np.asarray(run(params, {name: batch[name] for name in inputs}))[real]
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
