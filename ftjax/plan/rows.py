"""A batch's arrays without data: a made-up example as long as the config allows, encoded and laid out as a run does."""

from typing import Any

import jax

from ftjax.data.around import insert
from ftjax.data.encoded import Collector, Encoded
from ftjax.data.loader import Loader
from ftjax.data.tasks.task import Choices, Cloze, Labelled, Question, Scored, Tagged, Text, Texts
from ftjax.errors import UserError
from ftjax.kinds import Setting, require
from ftjax.kinds.gap import tokens_of
from ftjax.objectives.similarity import TEXTS
from ftjax.train.build import Parts
from ftjax.train.fields import Fields

SHOWN = 8  # examples beyond `task.shots` that may be shown


def full_rows(f: Fields, parts: Parts) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch of `batch_size` examples that are `task.max_length` long, every token of a completion
    labelled. A packed row has as many as it holds whole.

    Raises:
      UserError: what the kind of task finds wrong with the config, no room for an example, or packed rows shorter than
        `task.max_length`.
    """
    kind, length = parts.kind, f.task.max_length
    word = _word(parts.tokenizer)
    shown = [
        _example(f, parts, word, n, label)
        for n in range(1, f.task.shots + SHOWN)
        for label in range(max(len(parts.setting.classes), 2))
    ]
    setting = parts.setting._replace(demonstrations=lambda: shown)
    if parts.task.chunked or kind.cuts:
        texts = [_example(f, parts, word, 3 * length, 0)] * 2
        encoded = kind.encode(setting, texts, Collector(length, "error"), True)
    else:
        encoded = _longest(f, parts, setting, word)
    if parts.around:
        encoded = insert(encoded, parts.around, parts.task.chunked)
    layout = f.data.layout
    if layout == "auto":
        layout = "packed" if kind.packs else "buckets"
    longest = length + (parts.around.size if parts.around else 0)
    packed = f.data.row_length if layout == "packed" else 0
    shared = f.data.shared_prompts if layout == "packed" else 1
    require("data.shared_prompts", shared, shared == 1, "1: a plan is of rows that share no prompt")
    require("data.row_length", packed, packed == 0 or packed >= longest, f"0, or {longest} (an example) or more")
    loader = Loader(
        encoded, layout, 1, shuffle=False, prefetch=0, max_length=longest,
        pad_side=f.data.pad_side, row_length=packed,
    )  # fmt: skip
    planned = max(loader.plan(0), key=lambda batch: batch.length)
    rows = -(-f.batch_size // max(packed // longest, 1))
    arrays = loader.assemble(planned)
    return {name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for name, x in arrays.items()}


def _longest(f: Fields, parts: Parts, setting: Setting, word: str) -> Encoded:
    """The example with the most words that is not over the length, by bisection."""

    def encode(words: int) -> Encoded | None:
        out = Collector(f.task.max_length, "drop")
        try:
            return parts.kind.encode(setting, [_example(f, parts, word, words, 0)], out, True)
        except UserError:
            if out.dropped:
                return None
            raise

    low, high = 0, f.task.max_length + 1
    found = None
    while high - low > 1:
        middle = (low + high) // 2
        encoded = encode(middle)
        low, high = (middle, high) if encoded else (low, middle)
        found = encoded or found
    if found is None:
        raise UserError(f"task.max_length={f.task.max_length}: no room for an example of this task; raise it")
    return found


def _example(f: Fields, parts: Parts, word: str, words: int, label: int) -> Any:
    """An example of the first type that the kind takes and the task has."""
    text = " ".join([word] * words)
    pair = text if "text_pair" in f.task.columns else None
    numbers = tuple(f.task.bounds) if "bounds" in f.task else (0.0, 1.0)
    accepts = parts.kind.accepts
    if Texts in accepts:
        of_texts = not (parts.setting.classes or "regression" in parts.task.objectives)
        accepts = (Texts,) if of_texts else accepts
    if Labelled in accepts and Scored in accepts and not parts.setting.classes:
        accepts = (Scored,)
    made = {
        Text: lambda: Text(text if parts.model.cfg.encoder else "", text),
        Labelled: lambda: Labelled(text, label % max(len(parts.setting.classes), 1), pair),
        Scored: lambda: Scored(text, numbers[label % 2], pair),
        Tagged: lambda: Tagged((word,) * words, (parts.setting.classes[0],) * words),
        Question: lambda: Question("0", word, text, ((word, 0),)),
        Choices: lambda: Choices(text, (f" {word}", f" {word}"), 0),
        Texts: lambda: Texts((text,) * (TEXTS["triplet"] if f.task.loss == "triplet" else TEXTS["in_batch"])[0]),
        Cloze: lambda: Cloze(f"{text} {{mask}}", word),
    }
    return made[next(one for one in accepts if one in made)]()


def _word(tokenizer: Any) -> str:
    """A word of one token, alone and after a space.

    Raises:
      UserError: a tokenizer without any.
    """
    for i in range(len(tokenizer)):
        word = tokenizer.decode([i]).strip()
        if word.isascii() and word.isalpha() and all(map(_single, tokens_of([word], " ", tokenizer))):
            return word
    raise UserError("the tokenizer has no word of letters that is one token")


def _single(ids: list[int]) -> bool:
    return len(ids) == 1
