"""The right one of several continuations of a prompt, by the likelihood that a language model gives each."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ftjax.data.encode import bos_of
from ftjax.data.encoded import IGNORED, Collector, Encoded
from ftjax.data.tasks.task import Choices, Labelled, Text, class_of
from ftjax.data.templates import fill, template_of
from ftjax.errors import UserError
from ftjax.kinds import lm
from ftjax.kinds.base import Found, Kind, Result, Setting, Write, measures_of, require
from ftjax.kinds.classification import texts_of
from ftjax.kinds.gap import MASK, at_gap
from ftjax.kinds.shots import shots
from ftjax.metrics import measure

NOTHING = "the tokenizer has neither bos nor eos to predict an option's start"
NORMALISE = ("tokens", "characters", "none")


class Asked(NamedTuple):
    """A prompt, its options, and the right one's index."""

    prompt: str
    options: tuple[str, ...]
    label: int


def asked(setting: Setting, example: Choices | Labelled, where: str) -> Asked:
    """Of a class: the template up to its gap, and each class's word with what follows the gap.

    Raises:
      UserError: no template, or a label outside the classes.
    """
    if isinstance(example, Choices):
        return Asked(*example)
    template = template_of(setting.f.task, setting.classes)
    gap = at_gap(template.text)
    if not gap.before.strip():
        gap = gap._replace(lead="")
    prompt, after = (fill(part, "", example.text, example.text_pair) for part in (gap.before, gap.after))
    options = tuple(gap.lead + template.words[name] + after for name in setting.classes)
    return Asked(prompt, options, class_of(example.label, setting.classes, where))


def encode(setting: Setting, examples: list[Any], out: Collector, training: bool) -> Encoded:
    """To train, the prompt and its right option; otherwise the prompt with each of its options, one after another, as
    encoded examples that share a row. Labels are an option's tokens. `task.shots` solved examples stand before; where
    there is no prompt at all, bos does, else eos.

    An example of which an option is too long is left out whole, 'truncate' or 'drop'; 'truncate_left' takes as many
    tokens from the start of its prompt for all of its options, bos apart (an encoder-decoder's is left out).

    Raises:
      UserError: too long, a label outside the classes, a prompt without text where there is neither bos nor eos.
    """
    task = setting.f.task
    require("task.normalise", task.normalise, task.normalise in NORMALISE, ", ".join(NORMALISE))
    before = shots(setting, lambda one: _solved(asked(setting, one, "a training example")))
    opening, texts, rows = _opening(setting, examples), [], []
    for row, example in enumerate(examples):
        with out.bad:
            prompt, options, label = asked(setting, example, out.place(row))
            prompt = before(example) + prompt
            if not prompt.strip():
                if opening is None:
                    raise UserError(f"{out.place(row)}: no prompt, and {NOTHING}; give it text")
                prompt = opening
            for option in (options[label],) if training else options:
                texts.append(Text(prompt, option))
                rows.append(row)
    inner = Collector(2**31, where=[out.place(row) for row in rows], bad=out.bad)
    flat = lm.encode_texts(setting, texts, inner, training)
    return _whole(
        flat,
        np.asarray(rows)[flat.rows],
        np.bincount(rows, minlength=len(examples)),
        out,
        setting.tokenizer.bos_token_id,
    )


def _opening(setting: Setting, examples: list[Any]) -> str | None:
    """What stands in for a prompt that is not there, '' where the tokenizer itself puts something first; None where
    there is nothing.

    Raises:
      UserError: there is nothing, and no prompt by the template.
    """
    tokenizer = setting.tokenizer
    own = tokenizer("")["input_ids"] if setting.model.cfg.encoder is not None else bos_of(tokenizer)
    opening = "" if own else tokenizer.bos_token or tokenizer.eos_token
    if opening is None and not setting.f.task.shots and any(isinstance(example, Labelled) for example in examples):
        text = template_of(setting.f.task, setting.classes).text
        if not at_gap(text).before.strip():
            raise UserError(f"task.template={text!r}: no text before {MASK}, and {NOTHING}; put some there")
    return opening


def _solved(one: Asked) -> str:
    return one.prompt + one.options[one.label]


def _whole(flat: Encoded, rows: np.ndarray, wanted: np.ndarray, out: Collector, bos: int | None) -> Encoded:
    """The encoded options `flat`, of `rows`, of examples of which all that are `wanted` are there and short enough."""
    sizes = flat.lengths if flat.source is None else np.maximum(flat.lengths, flat.source.lengths)
    kept = []
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    for mine in np.split(np.arange(len(rows)), starts[1:]):
        row = int(rows[mine[0]])
        if len(mine) < wanted[row]:  # one of them is bad
            continue
        options, over = [flat[i] for i in mine.tolist()], 0
        if not out.fits(row, int(sizes[mine].max())):
            if not out.cuts:
                continue
            over = int(sizes[mine].max()) - out.max_length
        first = int(options[0].tokens[0] == bos)
        asked_in = min(int(np.argmax(option.labels != IGNORED)) for option in options)
        if over and (not out.left or flat.source is not None or first + over >= asked_in):
            out.nothing_left()
            continue
        kept += mine.tolist()
        for tokens, labels in options:
            out.add(
                row, [np.delete(tokens, np.s_[first : first + over])], np.delete(labels, np.s_[first : first + over])
            )
    encoded = out.encoded("next", flat.pad_id)
    if flat.source is None:
        return encoded
    sources = [flat.source[i].tokens for i in kept]
    offsets = np.cumsum([0, *map(len, sources)], dtype=np.int64)
    rows_of = np.arange(len(kept), dtype=np.int32)
    return replace(encoded, source=replace(flat.source, tokens=np.concatenate(sources), offsets=offsets, rows=rows_of))


def score(setting: Setting, examples: list[Any], encoded: Encoded, found: Found, write: Write) -> Result:
    """Accuracy and what else the task counts of the likeliest options; `loss` is of the right options' tokens.

    An option's score is its log-likelihood over its number of tokens, or of characters without the space before them,
    or over nothing, as `task.normalise` says. A row has the prompt and options or the texts, `scores`, `prediction`,
    `reference`, `correct`.
    """
    by = setting.f.task.normalise
    starts = np.flatnonzero(np.diff(encoded.rows, prepend=-1))
    rows: list[dict[str, Any]] = []
    chosen, labels, nll, tokens = [], [], [], []
    for start, row in zip(starts, encoded.rows[starts]):
        example = examples[row]
        prompt, options, label = asked(setting, example, f"row {row}")
        sums = np.asarray([found["nll"][start + i].sum() for i in range(len(options))], np.float64)
        sizes = np.asarray([len(found["nll"][start + i]) for i in range(len(options))])
        over = {"tokens": sizes, "characters": [max(len(o.strip()), 1) for o in options], "none": 1}[by]
        scores = -sums / over
        best = int(scores.argmax())
        names = [o.strip() for o in options] if isinstance(example, Choices) else setting.classes
        shown = {"prompt": prompt, "options": names} if isinstance(example, Choices) else texts_of(example)
        rows.append({
            **shown, "scores": scores.tolist(), "prediction": names[best], "reference": names[label],
            "correct": float(best == label),
        })  # fmt: skip
        for values, value in ((chosen, best), (labels, label), (nll, sums[label]), (tokens, sizes[label])):
            values.append(value)
    predictions, right = np.asarray(chosen), np.asarray(labels)
    measures = {"loss": measure("loss", nll, tokens), "accuracy": measure("accuracy", predictions, right)}
    return Result(measures | measures_of(setting, "classes", predictions, right), rows)


KIND = Kind((Choices, Labelled), lm.head, encode, lm.objective, score, packs=True)
