"""What hiding words needs to know of a tokenizer."""

from typing import Any

import numpy as np
from tokenizers.models import WordPiece

from ftjax import methods
from ftjax.errors import UserError
from ftjax.kinds.base import Setting, require

SPACES = ("Ġ", "▁")  # a piece that begins a word has one: of byte-level BPE, of sentencepiece


def masks(setting: Setting) -> dict[str, Any]:
    """The arguments that masking objectives share: mask_id, special_ids, rate, continues, chunk.

    Raises:
      UserError: a tokenizer without a mask token, or, for whole words, without a mark of where a word begins.
    """
    f, tokenizer = setting.f, setting.tokenizer
    if tokenizer.mask_token_id is None:
        raise UserError(f"{f.model.path}: its tokenizer has no mask token; take a masked model's, or objective=lm")
    require("loss.chunk", f.loss.chunk, f.loss.chunk >= 1, "1 or more")
    require("task.mask_rate", f.task.mask_rate, 0 < f.task.mask_rate < 1, "a share between 0 and 1")
    words = continues(tokenizer, setting.model.cfg.vocab_size) if f.task.whole_words else None
    return dict(
        mask_id=tokenizer.mask_token_id, special_ids=tuple(tokenizer.all_special_ids), rate=f.task.mask_rate,
        continues=words, chunk=f.loss.chunk,
    )  # fmt: skip


def continues(tokenizer: Any, vocab_size: int) -> np.ndarray:
    """bool `[V]`: the pieces that go on with a word. Of WordPiece those with its prefix ('##'); else those without the
    mark of a space, punctuation that clings to a word among them.

    Raises:
      UserError: no piece has such a mark.
    """
    vocab = tokenizer.get_vocab()
    model = tokenizer.backend_tokenizer.model
    if isinstance(model, WordPiece):
        inside = {i for piece, i in vocab.items() if piece.startswith(model.continuing_subword_prefix)}
    else:
        mark = next((m for m in SPACES if any(p.startswith(m) and p != m for p in vocab)), None)
        if mark is None:
            raise UserError("task.whole_words: no piece of the tokenizer marks where a word begins; set it to False")
        inside = {i for piece, i in vocab.items() if not piece.startswith(mark)} - set(tokenizer.all_special_ids)
    table = np.zeros(vocab_size, bool)
    table[sorted(inside)] = True
    return table


def without_soft_tokens(setting: Setting, why: str) -> None:
    """UserError where the method puts virtual tokens into the text."""
    f = setting.f
    if methods.get(f.method.name).template(f.method, setting.model.cfg) is not None:
        raise UserError(f"method.name={f.method.name!r} puts tokens of its own into the text: {why}; take another")
