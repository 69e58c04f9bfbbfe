"""Language modelling by decoders and encoder-decoders: a prompt and its completion, marked text, or whole documents."""

from typing import Any

import numpy as np

from ftjax.data.encode import encode_lm, encode_seq2seq, encode_text_chunks
from ftjax.data.encoded import Collector, Encoded
from ftjax.data.tasks.task import Marked, Text
from ftjax.errors import UserError
from ftjax.kinds.base import (
    Found,
    Kind,
    Result,
    Setting,
    Write,
    label_smoothing,
    measures_of,
    require,
    with_rows,
)  # fmt: skip
from ftjax.metrics import measure
from ftjax.objectives.base import Objective
from ftjax.objectives.lm import causal_lm


def head(f: Any, classes: tuple[str, ...]) -> dict[str, Any]:
    """The language model's own."""
    return dict(head="lm")


def encode(setting: Setting, examples: list[Text | Marked], out: Collector, training: bool) -> Encoded:
    """Next-token labels; of an encoder-decoder the prompt is the encoder's."""
    if setting.model.cfg.encoder is not None:
        if setting.task.chunked or any(isinstance(example, Marked) for example in examples):
            raise UserError(
                f"task.name={setting.f.task.name}: its texts have no source and target for an encoder-decoder; take a"
                " decoder, or objective=spans for raw text"
            )
        if setting.decoder_start is None:
            raise UserError(f"{setting.f.model.path}: its config.json has no decoder_start_token_id; add it")
        return encode_seq2seq(examples, setting.tokenizer, setting.decoder_start, out)  # type: ignore[arg-type]
    if setting.task.chunked:
        return encode_text_chunks(examples, setting.tokenizer, out)  # type: ignore[arg-type]
    return encode_lm(examples, setting.tokenizer, out)


def objective(setting: Setting) -> Objective:
    """Next-token cross-entropy, as `loss.*` says."""
    loss = setting.f.loss
    require("loss.z_loss", loss.z_loss, loss.z_loss >= 0, "0 or more")
    require("loss.chunk", loss.chunk, loss.chunk >= 1, "1 or more")
    require("loss.reduction", loss.reduction, loss.reduction in ("token", "sentence"), "token or sentence")
    return causal_lm(
        setting.model, label_smoothing=label_smoothing(setting.f), z_loss=loss.z_loss, reduction=loss.reduction,
        chunk=loss.chunk,
    )  # fmt: skip


def score(setting: Setting, examples: list[Text | Marked], encoded: Encoded, found: Found, write: Write) -> Result:
    """Perplexity, bits per byte, and metrics of written answers.

    Examples with one prompt are one question with several references. A row has `prompt`, `prediction`, `references`
    and the metrics that it has by itself.
    """
    nll, hits = (np.asarray([values.sum() for values in found[name]]) for name in ("nll", "correct"))
    tokens = np.asarray([len(values) for values in found["nll"]])
    texts, text_of = np.unique(encoded.rows, return_inverse=True)  # of which some are cut into chunks
    bytes_of = np.asarray([len(learned(examples[row], setting.tokenizer.eos_token).encode()) for row in texts])
    measures = {
        "loss": measure("loss", nll, tokens),
        "perplexity": measure("perplexity", nll, tokens),
        "token_accuracy": measure("token_accuracy", hits, tokens),
        "bits_per_byte": measure("bits_per_byte", np.bincount(text_of, nll), bytes_of),
    }
    if setting.task.chunked or any(isinstance(example, Marked) for example in examples):
        return Result(measures, [])
    questions: dict[str, list[int]] = {}
    for i, row in enumerate(encoded.rows):
        questions.setdefault(examples[row].prompt, []).append(i)
    asked = list(questions.items())[: write.limit]
    answers = write([same[0] for _, same in asked]) if asked else []
    eos = setting.tokenizer.eos_token or ""
    rows: list[dict[str, Any]] = []
    for (prompt, same), answer in zip(asked, answers):
        references = list(dict.fromkeys(examples[encoded.rows[i]].completion.removesuffix(eos).strip() for i in same))
        rows.append({"prompt": prompt, "prediction": answer.strip(), "references": references})
    if rows:
        predictions, references = [row["prediction"] for row in rows], [row["references"] for row in rows]
        measures |= with_rows(measures_of(setting, "texts", predictions, references), rows)
    return Result(measures, rows)


def learned(example: Text | Marked, eos: str | None) -> str:
    """The characters that an example teaches, an end token apart."""
    if isinstance(example, Text):
        return example.completion.removesuffix(eos or "")
    return "".join(example.text[start:end] for start, end in example.learned)


KIND = Kind((Text, Marked), head, encode, objective, score, packs=True, writes=True)
