"""The word in a gap: facts that a model knows (LAMA, Petroni et al. 2019), and P-tuning's task (Liu et al. 2021)."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ftjax.data.encode import pieces
from ftjax.data.encoded import Collector, Encoded
from ftjax.data.tasks.task import Cloze
from ftjax.errors import UserError
from ftjax.kinds.base import Found, Kind, Result, Setting, Write
from ftjax.kinds.gap import MASK, check_ends, head, is_masked, raised, tokens_of, up_to_gap
from ftjax.metrics import measure
from ftjax.objectives.base import Objective
from ftjax.objectives.words import cloze

BATCH = 1000  # examples per call of the tokenizer
SPACE = " "  # before a word


def candidates(setting: Setting) -> dict[int, str] | None:
    """token -> word, of those words of `task.vocab_file` that are one token (of words that share it, the first); None
    where there is no such file.

    Raises:
      UserError: none of them is.
    """
    if not setting.classes:
        return None
    found = _single(setting.classes, setting.tokenizer)
    if not found:
        raise UserError(f"task.vocab_file: none of its words is one token of {setting.f.model.path}; take another")
    return found


@lru_cache(maxsize=1)  # encoding, the objective and each evaluation ask for it
def _single(words: tuple[str, ...], tokenizer: Any) -> dict[int, str]:
    found: dict[int, str] = {}
    for word, ids in zip(words, tokens_of(words, SPACE, tokenizer)):
        if len(ids) == 1:
            found.setdefault(ids[0], word)
    return found


def encode(setting: Setting, examples: list[Cloze], out: Collector, training: bool) -> Encoded:
    """The text with a mask in its gap, which `answer` marks, or, for a causal model, up to the gap; the label is the
    answer's token. A text that is too long is left out, cut or dropped.

    Raises:
      UserError: too long, an answer that is not one known token, or words after the gap of a causal model.
    """
    tokenizer, masked = setting.tokenizer, is_masked(setting)
    known = candidates(setting)
    for start in range(0, len(examples), BATCH):
        chunk = examples[start : start + BATCH]
        where = [out.place(row) for row in range(start, start + len(chunk))]
        answers = tokens_of([example.answer for example in chunk], SPACE, tokenizer)
        asked = _asked(setting, chunk, masked, where)
        for row, (example, found, answer) in enumerate(zip(chunk, asked, answers), start):
            with out.bad:
                if not masked:
                    check_ends(example.text, f"{out.place(row)}: text")
                ids = raised(found)
                _check(setting, example, answer, known, out.place(row))
                gap = np.asarray(ids) == tokenizer.mask_token_id
                if masked and gap.sum() != 1:
                    raise UserError(f"{out.place(row)}: the text holds {tokenizer.mask_token}; leave it out")
                if out.fits(row, len(ids)):
                    out.add(row, [ids], answer[0], **({"answer": [gap]} if masked else {}))
                elif out.cuts:
                    out.nothing_left()
    return out.encoded("row", tokenizer.pad_token_id)


def _asked(setting: Setting, examples: list[Cloze], masked: bool, where: list[str]) -> Sequence[list[int] | UserError]:
    if masked:
        texts = [(example.text.replace(MASK, setting.tokenizer.mask_token), None) for example in examples]
        return [ids for ids, _ in pieces(texts, setting.tokenizer)]
    prompts = [example.text.split(MASK)[0].removesuffix(SPACE) for example in examples]
    return up_to_gap(prompts, SPACE + examples[0].answer, setting.tokenizer, where)


def _check(setting: Setting, example: Cloze, answer: list[int], known: dict[int, str] | None, where: str) -> None:
    mend = "leave it out (data.on_bad_row=skip does)"
    if len(answer) != 1:
        there = f"is {len(answer)} tokens, not one" if answer else "is unknown to the tokenizer"
        raise UserError(f"{where}: the answer '{example.answer}' {there}; {mend}")
    if known is not None and answer[0] not in known:
        raise UserError(f"{where}: the answer '{example.answer}' is not in task.vocab_file; {mend}")


def objective(setting: Setting) -> Objective:
    """Cross-entropy over the whole vocabulary; the answer is sought among the candidates."""
    known = candidates(setting)
    return cloze(setting.model, candidates=None if known is None else tuple(known))


def score(setting: Setting, examples: list[Cloze], encoded: Encoded, found: Found, write: Write) -> Result:
    """Precision at 1 among the candidates, `hit@1`. A row has `text`, `prediction`, `reference`, `correct`."""
    best, known = np.asarray(found["best"]), candidates(setting)
    nll = np.asarray(found["nll"], np.float64)
    rows: list[dict[str, Any]] = [
        {
            "text": examples[row].text,
            "prediction": known[token] if known else setting.tokenizer.decode([token]).strip(),
            "reference": examples[row].answer,
            "correct": float(token == label),
        }
        for row, token, label in zip(encoded.rows, best.tolist(), encoded.labels.tolist())
    ]
    measures = {"loss": measure("loss", nll, np.ones(len(nll))), "hit@1": measure("hit@1", best, encoded.labels)}
    return Result(measures, rows)


KIND = Kind((Cloze,), head, encode, objective, score, metrics=("hit@1",))
