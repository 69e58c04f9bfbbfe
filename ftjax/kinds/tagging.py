"""A tag for each word: names, parts of speech. The first piece of a word carries its tag."""

from itertools import accumulate
from typing import Any

import numpy as np

from ftjax.data.align import first_pieces, words_of
from ftjax.data.encoded import IGNORED, Collector, Encoded
from ftjax.data.tasks.task import Tagged
from ftjax.errors import UserError
from ftjax.kinds.base import Found, Kind, Result, Setting, Write, label_smoothing, measures_of, require
from ftjax.metrics import METRICS, measure
from ftjax.objectives.base import Objective
from ftjax.objectives.tagging import tagging

BATCH = 1000  # sentences per call of the tokenizer


def head(f: Any, classes: tuple[str, ...]) -> dict[str, Any]:
    """A classifier of every token."""
    return dict(head="tagging", num_classes=len(classes))


def encode(setting: Setting, examples: list[Tagged], out: Collector, training: bool) -> Encoded:
    """Words joined by spaces, with the tokenizer's special tokens; the first piece of each word has its tag's index.

    Raises:
      UserError: too long, a tag outside the classes, or a word that the tokenizer makes nothing of.
    """
    tokenizer, index = setting.tokenizer, {name: i for i, name in enumerate(setting.classes)}
    for start in range(0, len(examples), BATCH):
        chunk = examples[start : start + BATCH]
        encoding = tokenizer(
            [" ".join(example.words) for example in chunk], return_offsets_mapping=True,
            return_special_tokens_mask=True, verbose=False,
        )  # fmt: skip
        for row, example in enumerate(chunk, start):
            with out.bad:
                at = row - start
                tokens, fixed = encoding["input_ids"][at], encoding["special_tokens_mask"][at]
                ends = [end - 1 for end in accumulate(len(word) + 1 for word in example.words)]
                word_of = words_of(ends, encoding["offset_mapping"][at], fixed)
                first = first_pieces(example.words, word_of, out.place(row))
                labels = np.full(len(tokens), IGNORED, np.int32)
                for piece, tag in zip(first, example.tags, strict=True):
                    if tag not in index:
                        raise UserError(
                            f"{out.place(row)}: tag '{tag}' is none of {', '.join(setting.classes)}; mend it"
                        )
                    labels[piece] = index[tag]
                if not out.fits(row, len(tokens)):
                    if not out.cuts:
                        continue
                    kept = out.kept(len(tokens), fixed[0], fixed[-1])
                    tokens, labels = np.asarray(tokens)[kept], labels[kept]
                    if (labels == IGNORED).all():
                        out.nothing_left()
                        continue
                out.add(row, [tokens], labels)
    return out.encoded("token", tokenizer.pad_token_id)


def objective(setting: Setting) -> Objective:
    """Cross-entropy of the labelled tokens.

    Raises:
      UserError: tags without a scheme, where the task's main metric is of entities.
    """
    scheme, main = setting.f.task.scheme, setting.task.metrics[0]
    scored = scheme != "none" or METRICS[main].takes != "tags"
    require("task.scheme", scheme, scored, f"bio or iob1, for {main} chooses the best checkpoint")
    return tagging(setting.model, label_smoothing=label_smoothing(setting.f))


def score(setting: Setting, examples: list[Tagged], encoded: Encoded, found: Found, write: Write) -> Result:
    """Accuracy over words, F1 over entities. A row has `words`, `prediction`, `reference`; words that were cut off are
    tagged as outside ('O', or as the first class where there is none)."""
    outside = "O" if "O" in setting.classes else setting.classes[0]
    rows, nll, right = [], [], []
    for row, tags, costs in zip(encoded.rows, found["tag"], found["nll"]):
        example = examples[row]
        guesses = [setting.classes[tag] for tag in tags]
        missing = [outside] * (len(example.words) - len(guesses))
        guesses = missing + guesses if setting.f.data.overlong == "truncate_left" else guesses + missing
        rows.append({"words": list(example.words), "prediction": guesses, "reference": list(example.tags)})
        nll.append((costs.sum(), len(costs)))
        right.append((sum(map(str.__eq__, guesses, example.tags)), len(guesses)))
    guesses, references = [row["prediction"] for row in rows], [row["reference"] for row in rows]
    measures = {"loss": measure("loss", *zip(*nll)), "accuracy": measure("token_accuracy", *zip(*right))}
    if setting.f.task.scheme != "none":
        measures |= measures_of(setting, "tags", guesses, references)
    return Result(measures, rows)


KIND = Kind((Tagged,), head, encode, objective, score, packs=True)
