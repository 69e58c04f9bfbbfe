"""A text with a gap for one word: what a masked model fills, and what a causal one continues with."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ftjax import hub
from ftjax.data.encode import bos_of, is_encoder, level
from ftjax.errors import UserError
from ftjax.hub import files
from ftjax.kinds.base import Setting

MASK = "{mask}"
CONTEXTS = ("(", "\n", "")  # what a word is tokenised after: the first that the tokenizer does not join to it


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
    found: dict[str, list[int]] = {}
    for context in CONTEXTS:
        left = [word for word in dict.fromkeys(words) if word not in found]
        texts, edge = [context + lead + word for word in left], len(context)
        for word, (ids, spans) in zip(left, _encoded(texts, tokenizer)):
            if not any(first < edge < last for first, last in spans):
                own = [i for i, (first, last) in zip(ids, spans) if first >= edge and last > first]
                found[word] = [] if tokenizer.unk_token_id in own else own
    return [found[word] for word in words]


def up_to_gap(prompts: Sequence[str], word: str, tokenizer: Any, where: Sequence[str]) -> list[list[int] | UserError]:
    """The tokens of prompts that `word` would continue, bos first where the tokenizer adds it; an error for a prompt
    without a token, or of which one reaches into the word."""
    bos, out = bos_of(tokenizer), []
    for prompt, place, (ids, spans) in zip(
        prompts, where, _encoded([prompt + word for prompt in prompts], tokenizer), strict=True
    ):
        edge = len(prompt)
        joined = [i for i, (first, last) in zip(ids, spans) if first < edge < last]
        own = [i for i, (first, _) in zip(ids, spans) if first < edge]
        own = own if own[:1] == bos else bos + own
        if joined:
            token = tokenizer.convert_ids_to_tokens(joined[0])
            out.append(UserError(f"{place}: token '{token}' reaches into the word in the gap; put a space before it"))
        else:
            out.append(own or UserError(f"{place}: no text before the gap; give it some"))
    return out


def raised(found: list[int] | UserError) -> list[int]:
    """The tokens; the error is raised."""
    if isinstance(found, UserError):
        raise found
    return found


class Filled(NamedTuple):
    """What goes into a template."""

    text: str
    text_pair: str | None
    word: str


def shorter(
    filled: Filled, most: int, size: Callable[[Filled], int], tokenizer: Any, left: bool = False
) -> Filled | None:
    """With its texts cut at their ends (`left`: their starts), the longer first, until `size` is at most `most`; None
    where nothing of one would be left."""
    while (over := size(filled) - most) > 0:
        texts = [filled.text, filled.text_pair or ""]
        (_, first), (_, second) = _encoded(texts, tokenizer)
        if over >= len(first) + len(second):
            return None
        kept = level(len(first), len(second), len(first) + len(second) - over)
        cut = [_cut(text, spans, n, left) for text, spans, n in zip(texts, (first, second), kept)]
        if any(text and not rest for text, rest in zip(texts, cut)):
            return None
        filled = filled._replace(text=cut[0], text_pair=filled.text_pair and cut[1])
    return filled


def _cut(text: str, spans: list[tuple[int, int]], tokens: int, left: bool) -> str:
    """The characters of the first tokens of a text, or of its last."""
    if tokens >= len(spans):
        return text
    return text[spans[len(spans) - tokens - 1][1] :].lstrip() if left else text[: spans[tokens][0]].rstrip()


def _encoded(texts: list[str], tokenizer: Any) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
    """The ids of each text and where they are from."""
    if not texts:
        return iter(())
    encoding = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return zip(encoding["input_ids"], encoding["offset_mapping"])
