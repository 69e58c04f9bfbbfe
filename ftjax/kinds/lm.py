"""Language modelling by decoders and encoder-decoders: prompt and completion, conversations, marked text, documents."""

from typing import Any

import numpy as np

from ftjax.data.chat import Format, asked_and_answered, chat_format, encode_chats
from ftjax.data.encode import encode_lm, encode_seq2seq, encode_text_chunks
from ftjax.data.encoded import IGNORED, Collector, Encoded
from ftjax.data.tasks.task import Chat, Marked, Question, Text
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
from ftjax.kinds.shots import answer_in, as_text, in_context
from ftjax.metrics import Measure, measure
from ftjax.objectives.base import Objective
from ftjax.objectives.lm import causal_lm


def head(f: Any, classes: tuple[str, ...]) -> dict[str, Any]:
    """The language model's own."""
    return dict(head="lm")


def encode(setting: Setting, examples: list[Any], out: Collector, training: bool) -> Encoded:
    """As `encode_texts`, questions as prompts and answers, `task.shots` solved examples before each prompt."""
    return encode_texts(setting, in_context(setting, examples), out, training)


def encode_texts(setting: Setting, examples: list[Any], out: Collector, training: bool) -> Encoded:
    """Next-token labels; of an encoder-decoder the prompt is the encoder's.

    A conversation is one example where it is trained on; else each of its turns that counts is one, with its past.
    """
    if setting.model.cfg.encoder is not None:
        if setting.task.chunked or any(isinstance(example, Marked | Chat) for example in examples):
            raise UserError(
                f"task.name={setting.f.task.name}: its texts have no source and target for an encoder-decoder; take a"
                " decoder, or objective=spans for raw text"
            )
        if getattr(setting.tokenizer, "tgt_lang", "") is None:  # transformers would take English for both
            raise UserError(
                f"{setting.f.model.path}: its tokenizer marks languages and is told none; set src_lang and tgt_lang in"
                " its tokenizer_config.json, such as en_XX and de_DE"
            )
        if setting.decoder_start is None:
            raise UserError(f"{setting.f.model.path}: its config.json has no decoder_start_token_id; add it")
        return encode_seq2seq(examples, setting.tokenizer, setting.decoder_start, out)
    if setting.task.chunked:
        return encode_text_chunks(examples, setting.tokenizer, out)
    if any(isinstance(example, Chat) for example in examples):
        return encode_chats(examples, _format(setting), out, whole=training)
    return encode_lm(examples, setting.tokenizer, out)


def _format(setting: Setting) -> Format:
    task = setting.f.task
    return chat_format(setting.tokenizer, task.chat_template, task.system, task.learn)


def ends(setting: Setting) -> tuple[int, ...]:
    """The token that ends a turn of a conversation."""
    stops = "chat_template" in setting.f.task
    return (setting.tokenizer.convert_tokens_to_ids(_format(setting).stop()),) if stops else ()


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


def score(setting: Setting, examples: list[Any], encoded: Encoded, found: Found, write: Write) -> Result:
    """Perplexity, bits per byte, and metrics of written answers: to prompts, or to what leads to a last turn.

    Examples with one prompt are one question with several references. A row has `prompt`, `prediction`, `references`
    and the metrics that it has by itself; of a mixture `part`, and the measures have the loss and the task's metrics of
    each part too, as `sst2/loss`.
    """
    nll, hits = (np.asarray([values.sum() for values in found[name]]) for name in ("nll", "correct"))
    tokens = np.asarray([len(values) for values in found["nll"]])
    texts, text_of = np.unique(encoded.rows, return_inverse=True)  # of which some are cut into chunks
    if encoded.truncated:  # what was cut off is not in the loss
        kept = [[token for token in encoded[i].labels if token != IGNORED] for i in range(len(encoded))]
        parts = [len(text.encode()) for text in setting.tokenizer.batch_decode(kept, skip_special_tokens=True)]
        bytes_of = np.bincount(text_of, parts)
    else:
        bytes_of = np.asarray([len(learned(examples, encoded, row, setting.tokenizer).encode()) for row in texts])
    measures = {
        "loss": measure("loss", nll, tokens),
        "perplexity": measure("perplexity", nll, tokens),
        "token_accuracy": measure("token_accuracy", hits, tokens),
        "bits_per_byte": measure("bits_per_byte", np.bincount(text_of, nll), bytes_of),
    }
    measures |= _by_part(setting, measures, [examples[row] for row in encoded.rows])
    if setting.task.chunked or any(isinstance(example, Marked) for example in examples):
        return Result(measures, [])
    asked = list(questions(examples, encoded, setting.tokenizer).items())[: write.limit]
    answers = write([index for _, (index, _) in asked]) if asked else []
    rows: list[dict[str, Any]] = [
        {
            "prompt": prompt,
            "prediction": answer_in(setting, answer, examples[encoded.rows[index]]),
            "references": references,
            **_part(examples[encoded.rows[index]]),
        }
        for (prompt, (index, references)), answer in zip(asked, answers)
    ]
    if rows and write.scored:
        predictions, references = [row["prediction"] for row in rows], [row["references"] for row in rows]
        written = with_rows(measures_of(setting, "texts", predictions, references), rows)
        measures |= written | _by_part(setting, written, [examples[encoded.rows[i]] for _, (i, _) in asked])
    return Result(measures, rows)


def _part(example: Any) -> dict[str, str]:
    return {"part": example.part} if isinstance(example, Text) and example.part else {}


def _by_part(setting: Setting, measures: dict[str, Measure], examples: list[Any]) -> dict[str, Measure]:
    """The measures of the rows of each of several parts."""
    part_of = np.asarray([_part(example).get("part", "") for example in examples])
    parts, names = np.unique(part_of).tolist(), ("loss", *setting.task.metrics)
    return {
        f"{part}/{name}": found._replace(statistics=found.statistics[part_of == part])
        for part in (parts if len(parts) > 1 else [])
        for name, found in measures.items()
        if name in names and len(found.statistics) == len(part_of)  # METEOR's is one of all
    }


def questions(examples: list[Any], encoded: Encoded, tokenizer: Any) -> dict[str, tuple[int, list[str]]]:
    """{prompt: (the encoded example that asks it, its references)}; of a conversation, what leads to its last turn."""
    found: dict[str, tuple[int, list[str]]] = {}
    for i, row in enumerate(encoded.rows):
        example = examples[row]
        if isinstance(example, Question):
            prompt, given = as_text(example, "").prompt, [text for text, _ in example.answers]
        elif isinstance(example, Text):
            prompt, given = example.prompt, [example.completion.removesuffix(tokenizer.eos_token or "")]
        elif i + 1 < len(encoded) and encoded.rows[i + 1] == row:
            continue
        else:
            prompt, answer = asked_and_answered(encoded, i, tokenizer)
            given = [answer]
        references = found.setdefault(prompt, (i, []))[1]
        references += dict.fromkeys(x for one in given if (x := one.strip()) not in references)
    return found


def learned(examples: list[Any], encoded: Encoded, row: int, tokenizer: Any) -> str:
    """The characters that an example teaches, end tokens apart."""
    example = as_text(examples[row], "")
    if isinstance(example, Text):
        return example.completion.removesuffix(tokenizer.eos_token or "")
    if isinstance(example, Marked):
        return "".join(example.text[start:end] for start, end in example.learned)
    turns = np.flatnonzero(encoded.rows == row)
    return "".join(asked_and_answered(encoded, int(i), tokenizer)[1] for i in turns)


KIND = Kind((Text, Marked, Question, Chat), head, encode, objective, score, packs=True, writes=True, ends=ends)
