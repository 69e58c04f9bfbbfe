"""A text with a gap for one word: what a masked model fills, and what a causal one continues with."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ftjax import hub
from ftjax.data.encode import encode_lm, is_encoder
from ftjax.data.encoded import IGNORED, Collector
from ftjax.data.tasks.task import Text
from ftjax.errors import UserError
from ftjax.hub import files
from ftjax.kinds.base import Setting

MASK = "{mask}"
CONTEXT = "("  # what words are tokenised after: a mark that no tokenizer joins to a word


class Gap(NamedTuple):
    """A template at its gap: `before` without the one space that goes to the word as `lead`, and `after`."""

    before: str
    lead: str
    after: str


def head(f: Any, classes: tuple[str, ...]) -> dict[str, Any]:
    """Masked words where the model's family has them, next words otherwise."""
    kind = files.read_json(files.resolve(f.model.path, weights=False) / "config.json").get("model_type", "")
    return dict(head="mlm" if kind in hub.FAMILIES and "mlm" in hub.FAMILIES[kind].heads else "lm")


def is_masked(setting: Setting) -> bool:
    """Whether the model fills masks; it continues text otherwise.

    Raises:
      UserError: an encoder-decoder, or a masked model whose tokenizer has no mask.
    """
    path = setting.f.model.path
    if setting.model.cfg.encoder is not None:
        raise UserError(f"model.path={path}: an encoder-decoder has no gap to fill; take objective=choice or lm")
    if setting.model.cfg.causal:
        return False
    if setting.tokenizer.mask_token_id is None or not is_encoder(setting.tokenizer):
        raise UserError(f"{path}: the tokenizer needs a mask token, [CLS] and [SEP]; take a masked LM's")
    return True


def at_gap(template: str) -> Gap:
    """The parts of a template with one `{mask}`. Words inside a sentence take a space, and so do ones that begin it."""
    before, after = template.split(MASK)
    spaced = before.endswith(" ")
    return Gap(before[:-1] if spaced else before, " " if spaced or not before else "", after)


def check_ends(template: str, field: str, instead: str = "") -> None:
    """UserError where words follow the gap, which a causal model cannot see."""
    before, after = template.split(MASK)
    if re.search(r"\w", after) or not before.strip():
        raise UserError(
            f"{field}={template!r}: a causal model reads what is before {MASK} only; end with {MASK}, after some text"
            f"{instead}"
        )


def tokens_of(words: Sequence[str], lead: str, tokenizer: Any) -> list[list[int]]:
    """The tokens of each word after a text and `lead`, [] where one of them is the unknown token."""
    encoding = tokenizer(
        [CONTEXT + lead + word for word in words], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    out = []
    for ids, spans in zip(encoding["input_ids"], encoding["offset_mapping"]):
        own = [i for i, (first, last) in zip(ids, spans) if first >= len(CONTEXT) and last > first]
        out.append([] if tokenizer.unk_token_id in own else own)
    return out


def up_to_gap(prompts: Sequence[str], word: str, tokenizer: Any, where: Sequence[str]) -> list[list[int]]:
    """The tokens of prompts that `word` would continue, bos first where the tokenizer adds it.

    Raises:
      UserError: a prompt without a token, or one whose last token reaches into the word.
    """
    texts = [Text(prompt, word) for prompt in prompts]
    found = encode_lm(texts, tokenizer, Collector(2**31, where=where))
    return [found[i].tokens[: int(np.argmax(found[i].labels != IGNORED))].tolist() for i in range(len(found))]


class Filled(NamedTuple):
    """What goes into a template."""

    text: str
    text_pair: str | None
    word: str


def shorter(filled: Filled, most: int, size: Callable[[Filled], int], tokenizer: Any) -> Filled | None:
    """With the longer of its texts cut at its end until `size` is at most `most`; None where nothing of it would be
    left."""
    while (over := size(filled) - most) > 0:
        texts = {"text": filled.text, "text_pair": filled.text_pair or ""}
        spans = {name: _spans(text, tokenizer) for name, text in texts.items()}
        less, more = sorted(spans, key=lambda name: len(spans[name]))
        cut = min(over, max(len(spans[more]) - len(spans[less]), 1))
        if cut >= len(spans[more]):
            return None
        filled = filled._replace(**{more: texts[more][: spans[more][-cut][0]].rstrip()})
    return filled


def _spans(text: str, tokenizer: Any) -> list[tuple[int, int]]:
    return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
