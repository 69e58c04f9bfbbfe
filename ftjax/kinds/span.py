"""Extractive question answering: the answer is a span of the context (Devlin et al. 2018, sections 4.2 and 4.3)."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ftjax.data.encode import is_encoder
from ftjax.data.encoded import Collector, Encoded
from ftjax.data.tasks.task import Question
from ftjax.errors import UserError
from ftjax.kinds.base import Found, Kind, Result, Setting, Write, measures_of, require, with_rows
from ftjax.objectives.base import Objective
from ftjax.objectives.span import FIRST, LAST, span

BATCH = 100  # questions per call of the tokenizer


def head(f: Any, classes: tuple[str, ...]) -> dict[str, Any]:
    """Scores of start and end for every token."""
    return dict(head="span")


def encode(setting: Setting, examples: list[Question], out: Collector, training: bool) -> Encoded:
    """Windows of question and context, `task.doc_stride` tokens of the context shared by neighbours, as many encoded
    examples. `answer` marks the first and the last token of the (first) answer, or, where a window does not hold the
    whole of it, [CLS].

    Raises:
      UserError: a tokenizer without [CLS] and [SEP], no room for a context, or an answer that is not in its context.
    """
    tokenizer, task, max_length = setting.tokenizer, setting.f.task, out.max_length
    stride, longest, threshold = task.doc_stride, task.max_answer, task.null_threshold
    if not is_encoder(tokenizer):
        raise UserError(f"model.path={setting.f.model.path}: span answers need an encoder; take objective=lm")
    require("task.doc_stride", stride, 0 <= stride < max_length, f"0 or more, below task.max_length={max_length}")
    require("task.max_answer", longest, longest >= 1, "1 or more")
    require("task.null_threshold", threshold, math.isfinite(threshold), "a finite number")
    special = tokenizer.num_special_tokens_to_add(pair=True)
    for start in range(0, len(examples), BATCH):
        chunk = list(enumerate(examples[start : start + BATCH], start))
        lengths = tokenizer([x.question for _, x in chunk], add_special_tokens=False, verbose=False)["input_ids"]
        asked = []
        for (row, example), ids in zip(chunk, lengths):
            with out.bad:
                if len(ids) + special + stride >= max_length:
                    raise UserError(
                        f"{out.place(row)}: a question of {len(ids)} tokens leaves no room for the context in"
                        f" task.max_length={max_length} with task.doc_stride={stride}; raise the one or lower the other"
                    )
                _check(example, out.place(row))
                asked.append((row, example))
        if not asked:
            continue
        encoding = tokenizer(
            [x.question for _, x in asked], [x.context for _, x in asked], truncation="only_second", stride=stride,
            max_length=max_length, return_overflowing_tokens=True, return_offsets_mapping=True,
            return_token_type_ids=True, verbose=False,
        )  # fmt: skip
        for window, at in enumerate(encoding["overflow_to_sample_mapping"]):
            row, example = asked[at]
            context = np.asarray([part == 1 for part in encoding.sequence_ids(window)])
            spans = np.where(context[:, None], np.asarray(encoding["offset_mapping"][window]), 0)
            ids = encoding["input_ids"][window]
            first, last = place(example, spans, ids.index(tokenizer.cls_token_id))
            answer = np.zeros(len(ids), np.int32)
            answer[first] += FIRST
            answer[last] += LAST
            out.add(
                row, [ids], token_type_ids=[encoding["token_type_ids"][window]], answer=[answer],
                first_character=[spans[:, 0]], last_character=[spans[:, 1]],
            )  # fmt: skip
    encoded = out.encoded("none", tokenizer.pad_token_id)
    asides = {name: encoded.extras.pop(name) for name in ("first_character", "last_character")}
    return replace(encoded, asides=asides)


def _check(example: Question, where: str) -> None:
    for text, first in example.answers:
        if example.context[first : first + len(text)] != text:
            raise UserError(f"{where}: the answer {text[:40]!r} is not at character {first} of the context; mend it")


def place(example: Question, spans: np.ndarray, none: int) -> tuple[int, int]:
    """The first and last token of the first answer in a window, both `none` where the window has not the whole of it.

    spans: `[T, 2]`, the characters of each token of the context; 0, 0 for other tokens.
    """
    if not example.answers:
        return none, none
    text, first = example.answers[0]
    last = first + len(text.rstrip())
    first += len(text) - len(text.lstrip())  # no token begins with a space, or one does with that before it
    context = np.flatnonzero(spans[:, 1] > spans[:, 0])
    inside = context[(spans[context, 1] > first) & (spans[context, 0] < last)]
    if not len(inside) or spans[context, 0].min() > first or spans[context, 1].max() < last:
        return none, none
    return int(inside[0]), int(inside[-1])


def objective(setting: Setting) -> Objective:
    """Cross-entropy of start and end."""
    return span(setting.model)


def score(setting: Setting, examples: list[Question], encoded: Encoded, found: Found, write: Write) -> Result:
    """Exact match and F1 as SQuAD's script has them. A row has `id`, `question`, `prediction`, `references`.

    The best span of at most `task.max_answer` tokens over all windows; where questions of the split have no answer,
    none if the lowest score of "no answer" over the windows is higher by `task.null_threshold`.
    """
    task = setting.f.task
    some_have_none = any(not examples[row].answers for row in encoded.rows)
    best: dict[int, tuple[float, str]] = {}
    none: dict[int, float] = {}
    cls = setting.tokenizer.cls_token_id
    for window, row in enumerate(encoded.rows.tolist()):
        part = slice(encoded.offsets[window], encoded.offsets[window + 1])
        starts, ends = (encoded.asides[name][part] for name in ("first_character", "last_character"))
        at = int(np.flatnonzero(encoded.tokens[part] == cls)[0])
        real = len(starts)
        begin, end = (_real(found[name][window], real, setting) for name in ("start", "end"))
        value, first, last = best_span(begin, end, ends > starts, task.max_answer)
        none[row] = min(none.get(row, np.inf), float(begin[at] + end[at]))
        if row not in best or value > best[row][0]:
            best[row] = value, examples[row].context[starts[first] : ends[last]]
    rows = []
    for row, (value, text) in best.items():
        example = examples[row]
        answer = "" if some_have_none and none[row] - value > task.null_threshold else text
        references = list(dict.fromkeys(text for text, _ in example.answers))
        rows.append({"id": example.id, "question": example.question, "prediction": answer, "references": references})
    predictions, references = [row["prediction"] for row in rows], [row["references"] for row in rows]
    return Result(with_rows(measures_of(setting, "texts", predictions, references), rows), rows)


def _real(logits: np.ndarray, real: int, setting: Setting) -> np.ndarray:
    """A row's scores without its padding."""
    return logits[len(logits) - real :] if setting.f.data.pad_side == "left" else logits[:real]


def best_span(begin: np.ndarray, end: np.ndarray, context: np.ndarray, longest: int) -> tuple[float, int, int]:
    """(score, first, last) of the span of at most `longest` tokens inside the context whose two scores `[T]` have the
    highest sum; -inf where there is no context."""
    begin, end = (np.where(context, x, -np.inf) for x in (begin, end))
    ahead = np.lib.stride_tricks.sliding_window_view(np.pad(end, (0, longest - 1), constant_values=-np.inf), longest)
    sums = begin + ahead.max(1)
    first = int(sums.argmax())
    return float(sums[first]), first, first + int(ahead[first].argmax())


KIND = Kind((Question,), head, encode, objective, score, cuts=True)
