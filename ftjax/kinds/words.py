"""Classes and numbers by the word in a gap: prompt-based fine-tuning (LM-BFF, Gao, Fisch & Chen 2021)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ftjax.data.encode import pieces, score_of
from ftjax.data.encoded import Collector, Encoded
from ftjax.data.tasks.task import Labelled, Scored, class_of
from ftjax.data.templates import Template, fill, template_of
from ftjax.errors import UserError
from ftjax.kinds import regression
from ftjax.kinds.base import Found, Kind, Result, Setting, Write, label_smoothing, require
from ftjax.kinds.classification import score_classes
from ftjax.kinds.demonstrations import draws, end_of, pool
from ftjax.kinds.gap import Filled, at_gap, check_ends, head, is_masked, raised, shorter, tokens_of, up_to_gap
from ftjax.kinds.shots import shots
from ftjax.objectives.base import Objective
from ftjax.objectives.words import between_words, label_words, value_between

ENDS = ("low", "high")  # of a number
BATCH = 1000  # examples per call of the tokenizer
NO_DRAW = np.zeros((1, 0), np.int64)
Ids = list[int]


def names_of(setting: Setting) -> tuple[str, ...]:
    """The classes, of numbers their low and high end."""
    return setting.classes or ENDS


def words_of(setting: Setting) -> tuple[Template, list[Ids]]:
    """The template, and the tokens of each class's word.

    Raises:
      UserError: a word that the tokenizer does not know, two of the same tokens, or, for a causal model, a word of
        several or a template that goes on after the gap.
    """
    names, masked = names_of(setting), is_masked(setting)
    template = template_of(setting.f.task, names)
    instead = ", or take objective=choice" if "choice" in setting.task.objectives else ""
    if not masked:
        check_ends(template.text, "task.template", instead)
    words = [template.words[name] for name in names]
    tokens = tokens_of(words, at_gap(template.text).lead, setting.tokenizer)
    first: dict[tuple[int, ...], str] = {}
    for word, ids in zip(words, tokens):
        where = f"task.label_words: '{word}'"
        if not ids:
            raise UserError(f"{where} is unknown to the tokenizer of {setting.f.model.path}; choose another word")
        if first.setdefault(tuple(ids), word) != word:
            raise UserError(f"{where} has the tokens of '{first[tuple(ids)]}'; choose another word")
        if len(ids) > 1 and not masked:
            raise UserError(f"{where} is {len(ids)} tokens, and a causal model gives one; choose another word{instead}")
    return template, tokens


def encode(setting: Setting, examples: list[Any], out: Collector, training: bool) -> Encoded:
    """The filled template with a mask in its gap, or, for a causal model, up to the gap; one label an example.

    `answer` is not 0 at the mask. Where words have several tokens, an example is a group of sequences, one a class,
    with as many masks as its word has tokens, and `answer` is 1 + the token there.

    With `task.demonstrations=1` (masked models) each text is followed by a solved example of each class, as sentences
    of their own, all of token type 0. The paper draws them anew whenever an example is trained on; here an example is
    encoded with `task.train_draws` draws, and an epoch goes over all of them. Evaluation averages over
    `task.test_draws`. With `task.shots` (causal models) solved examples stand before the text, the same for all.

    'truncate' and 'truncate_left' cut the texts and not the template; each sentence, where there are demonstrations, to
    an equal share of max_length.

    Raises:
      UserError: what `words_of` says, demonstrations that the model or the split has not, a label outside the classes,
        too long.
    """
    require("task.demonstrations", setting.f.task.demonstrations, setting.f.task.demonstrations in (0, 1), "0 or 1")
    if is_masked(setting):
        _encode_masked(setting, examples, out, training)
    else:
        _encode_causal(setting, examples, out)
    return out.encoded("row", setting.tokenizer.pad_token_id, np.int32 if setting.classes else np.float32)


def _encode_masked(setting: Setting, examples: list[Any], out: Collector, training: bool) -> None:
    if setting.f.task.shots:
        raise UserError(f"task.shots={setting.f.task.shots}: a masked model takes task.demonstrations in its place")
    (template, words), names, tokenizer = words_of(setting), names_of(setting), setting.tokenizer
    mask, most = tokenizer.mask_token_id, max(map(len, words))
    marks = [[1]] if most == 1 else [[token + 1 for token in ids] for ids in words]
    gaps = [tokenizer.mask_token * len(mark) for mark in marks]
    widest = tokenizer.mask_token * most

    def ids_of(filled: Sequence[Filled]) -> list[Ids]:
        texts = [fill(template.text, one.word, one.text, one.text_pair) for one in filled]
        return [ids for ids, _ in pieces([(text, None) for text in texts], tokenizer)]

    def cut(filled: Filled, most: int) -> Filled | None:
        return shorter(filled, most, lambda one: len(ids_of([one])[0]), tokenizer, out.left)

    share, shown, drawn = out.max_length, [], iter([NO_DRAW] * len(examples))
    if setting.f.task.demonstrations:
        share //= 1 + len(names)
        there = pool(setting)
        solved = [Filled(x.text, x.text_pair, template.words[names[_side(setting, x)]]) for x in there.examples]
        shown = [ids[1:] for ids in ids_of(solved)]  # without [CLS]
        if out.cuts:
            for i, ids in enumerate(shown):
                if len(ids) > share:
                    short = cut(solved[i], share)
                    if short is None:
                        raise UserError(f"task.max_length={out.max_length}: no room for demonstrations; raise it")
                    shown[i] = ids_of([short])[0][1:]
        drawn = draws(setting, there, names, examples, training)

    for start in range(0, len(examples), BATCH):
        chunk = examples[start : start + BATCH]
        queries = ids_of([Filled(x.text, x.text_pair, gap) for x in chunk for gap in gaps])
        for number, (example, draw) in enumerate(zip(chunk, drawn)):
            row, asked = start + number, queries[number * len(gaps) :][: len(gaps)]
            with out.bad:
                label = _label(setting, example, out.place(row))
                if any(ids.count(mask) != len(mark) for ids, mark in zip(asked, marks)):
                    raise UserError(f"{out.place(row)}: the text holds {tokenizer.mask_token}; leave it out")
                if max(map(len, asked)) > share and out.cuts:
                    short = cut(Filled(example.text, example.text_pair, widest), share)
                    if short is None:
                        out.dropped += 1
                        continue
                    asked = ids_of([short._replace(word=gap) for gap in gaps])
                    out.truncated += 1
                more = [[token for i in one for token in shown[i]] for one in draw]
                if not out.fits(row, max(map(len, asked)) + max(map(len, more))):
                    continue
                at = [np.flatnonzero(np.asarray(ids) == mask) for ids in asked]
                for tokens in more:
                    answer = [np.zeros(len(ids) + len(tokens), np.int32) for ids in asked]
                    for one, places, mark in zip(answer, at, marks):
                        one[places] = mark
                    out.add(row, [ids + tokens for ids in asked], label, answer=answer)


def _encode_causal(setting: Setting, examples: list[Any], out: Collector) -> None:
    if setting.f.task.demonstrations:
        raise UserError("task.demonstrations=1: a causal model takes task.shots in its place")
    template, names, tokenizer = words_of(setting)[0], names_of(setting), setting.tokenizer
    gap = at_gap(template.text)
    any_word = gap.lead + template.words[names[0]]

    def solved(example: Any) -> str:
        return fill(template.text, template.words[names[_side(setting, example)]], example.text, example.text_pair)

    before: Callable[[Any], str] = shots(setting, solved)

    def prompt_of(row: int, one: Filled) -> str:
        return before(examples[row]) + fill(gap.before, "", one.text, one.text_pair)

    def ids_of(row: int, one: Filled) -> Ids:
        """Tokens up to the gap."""
        return raised(up_to_gap([prompt_of(row, one)], any_word, tokenizer, [out.place(row)])[0])

    for start in range(0, len(examples), BATCH):
        filled, prompts = {}, {}
        for row, example in enumerate(examples[start : start + BATCH], start):
            with out.bad:
                filled[row] = Filled(example.text, example.text_pair, "")
                prompts[row] = prompt_of(row, filled[row])
        found = up_to_gap([*prompts.values()], any_word, tokenizer, [out.place(row) for row in prompts])
        for row, tokens in zip(prompts, found, strict=True):
            with out.bad:
                ids, label = raised(tokens), _label(setting, examples[row], out.place(row))
                if len(ids) > out.max_length and out.cuts:
                    size = lambda one, row=row: len(ids_of(row, one))  # noqa: E731
                    short = shorter(filled[row], out.max_length, size, tokenizer, out.left)
                    if short is None:
                        out.dropped += 1
                        continue
                    ids = ids_of(row, short)
                    out.truncated += 1
                if out.fits(row, len(ids)):
                    out.add(row, [ids], label)


def _label(setting: Setting, example: Any, where: str) -> float:
    if isinstance(example, Labelled):
        return class_of(example.label, setting.classes, where)
    return score_of(example.score, setting.f.task.bounds, where)


def _side(setting: Setting, example: Any) -> int:
    """The index of the word that is right, or nearer."""
    if isinstance(example, Scored):
        return end_of(example.score, setting.f.task.bounds)
    return class_of(example.label, setting.classes, "a training example")


def objective(setting: Setting) -> Objective:
    """Cross-entropy over the words, or of numbers their interpolation."""
    words = words_of(setting)[1]
    if setting.classes:
        return label_words(setting.model, words=words, label_smoothing=label_smoothing(setting.f))
    return between_words(setting.model, words=words, bounds=tuple(setting.f.task.bounds))


def score(setting: Setting, examples: list[Any], encoded: Encoded, found: Found, write: Write) -> Result:
    """As `classification`, or `regression`, of the mean of an example's logits over its draws."""
    rows, first, of_row = np.unique(encoded.rows, return_index=True, return_inverse=True)
    logits = np.zeros((len(rows), len(names_of(setting))))
    np.add.at(logits, of_row, np.stack(found["logits"]))
    logits /= np.bincount(of_row)[:, None]
    chosen, labels = [examples[row] for row in rows], encoded.labels[first]
    if setting.classes:
        return score_classes(setting, chosen, logits, labels)
    values = value_between(logits, tuple(setting.f.task.bounds))
    whole = replace(encoded, rows=np.arange(len(rows)), labels=labels)
    return regression.score(setting, chosen, whole, {"value": list(values)}, write)


KIND = Kind((Labelled, Scored), head, encode, objective, score)
