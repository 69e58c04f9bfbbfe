"""T5's span corruption of raw text: the encoder reads it without some spans, the decoder writes them.

Spans are drawn from the step's key, as masks are (see `ftjax.kinds.mlm`). `task.max_length` counts the tokens of a row
of text; the encoder reads about that less `task.mask_rate` of it.
"""

import re
from typing import Any

from ftjax.data.documents import encode_stream
from ftjax.data.encoded import Collector, Encoded
from ftjax.data.tasks.task import Text
from ftjax.errors import UserError
from ftjax.kinds.base import Kind, Setting, require
from ftjax.kinds.masks import without_soft_tokens
from ftjax.objectives.base import Objective
from ftjax.objectives.spans import span_corruption, span_counts


def head(f: Any, classes: tuple[str, ...]) -> dict[str, Any]:
    """The language model's own."""
    return dict(head="lm")


def encode(setting: Setting, examples: list[Text], out: Collector, training: bool) -> Encoded:
    """All documents as one stream, in full rows."""
    return encode_stream(examples, setting.tokenizer, out)


def sentinels_of(tokenizer: Any) -> tuple[int, ...]:
    """The ids of <extra_id_0>, <extra_id_1>, ... (T5's: from the last id down)."""
    matches = {re.fullmatch(r"<extra_id_(\d+)>", token): i for token, i in tokenizer.get_vocab().items()}
    return tuple(i for _, i in sorted((int(match[1]), i) for match, i in matches.items() if match))


def objective(setting: Setting) -> Objective:
    """The decoder's cross-entropy.

    Raises:
      UserError: a decoder alone, a method with soft tokens, rows too short or with more spans than there are sentinels,
        no end or start token.
    """
    f, tokenizer, task = setting.f, setting.tokenizer, setting.f.task
    without_soft_tokens(setting, "spans are drawn of whole rows")
    require("loss.z_loss", f.loss.z_loss, f.loss.z_loss >= 0, "0 or more")
    require("loss.chunk", f.loss.chunk, f.loss.chunk >= 1, "1 or more")
    require("task.mask_rate", task.mask_rate, 0 < task.mask_rate < 1, "a share between 0 and 1")
    require("task.mean_span", task.mean_span, task.mean_span >= 1, "a mean length of 1 or more")
    require("task.max_length", task.max_length, task.max_length >= 2, "2 or more")
    sentinels, spans = sentinels_of(tokenizer), span_counts(task.max_length, task.mask_rate, task.mean_span)[1]
    if len(sentinels) < spans:
        raise UserError(
            f"{f.model.path}: rows of task.max_length={task.max_length} have {spans} spans, and the tokenizer has"
            f" {len(sentinels)} tokens <extra_id_0>, ...; give shorter rows or a tokenizer with more"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"{f.model.path}: its tokenizer has no eos token to end a text with; add one")
    if setting.model.cfg.encoder is None:
        raise UserError(f"{f.model.path}: span corruption needs an encoder-decoder; this model has no encoder")
    if setting.decoder_start is None:
        raise UserError(f"{f.model.path}: its config.json has no decoder_start_token_id; add it")
    return span_corruption(
        setting.model, sentinels=sentinels, eos_id=tokenizer.eos_token_id, start_id=setting.decoder_start,
        rate=task.mask_rate, mean_span=task.mean_span, z_loss=f.loss.z_loss, chunk=f.loss.chunk,
    )  # fmt: skip


KIND = Kind((Text,), head, encode, objective, metrics=("loss",))
