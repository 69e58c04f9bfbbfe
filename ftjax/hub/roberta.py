"""RoBERTa (Liu et al. 2019) and XLM-R (Conneau et al. 2020): BERT's body with other heads, its positions counted from
the row after the padding token's."""

from collections.abc import Mapping
from typing import Any

from ftjax.errors import UserError
from ftjax.hub import bert
from ftjax.hub.family import Family, Head, Weight, linear, norm
from ftjax.nn.config import Config

DROPOUTS = dict.fromkeys(("classifier_dropout", "pooler_dropout"), ("classifier_dropout", None))


def to_config(hf: Mapping[str, Any]) -> dict[str, Any]:
    fields, pad = bert.to_config(hf), hf.get("pad_token_id", 1)
    if not isinstance(pad, int):
        raise UserError(f"config.json: pad_token_id={pad!r}; positions begin after it, so it must be a number")
    return {
        **fields,
        "pooler_dropout": fields["classifier_dropout"],
        "position_offset": pad + 1,
        "max_positions": hf["max_position_embeddings"] - pad - 1,
    }


def to_hf(cfg: Config) -> dict[str, Any]:
    return {
        **bert.to_hf(cfg),
        "pad_token_id": cfg.position_offset - 1,
        "max_position_embeddings": cfg.max_positions + cfg.position_offset,
    }


def heads(name: str) -> dict[str, Head]:
    """The heads of an encoder whose classes begin with `name` that all of BERT's kind have."""
    return {
        "tagging": Head((f"{name}ForTokenClassification",), linear("classifier", "classifier")),
        "span": Head(
            (f"{name}ForQuestionAnswering",), linear("classifier", "qa_outputs"), dict.fromkeys(DROPOUTS, 0.0)
        ),
        "none": Head((f"{name}Model",)),
    }


def pooled(name: str, act: str) -> dict[str, Head]:
    """RoBERTa's classifier, which ELECTRA shares: dropout, dense, act, dropout, out_proj, of the first token."""
    weights = {**linear("pooler", "classifier.dense"), **linear("classifier", "classifier.out_proj")}
    fields = {"pooler": "dense", "pooling": "first", "pooler_activation": act}
    return {"classification": Head((f"{name}ForSequenceClassification",), weights, fields)}


def _family(model_type: str, name: str) -> Family:
    masked = {**linear("transform/dense", "lm_head.dense"), **norm("transform/norm", "lm_head.layer_norm")}
    return bert.FAMILY._replace(
        model_type=model_type,
        prefix="roberta.",
        heads={
            "mlm": Head(
                (f"{name}ForMaskedLM",),
                masked | {"head/bias": Weight("lm_head.bias")},
                {"head_bias": True, "tied_head": True},
            ),
            **pooled(name, "tanh"),
            **heads(name),
        },
        options={**bert.FAMILY.options, **DROPOUTS},
        unsupported={**bert.FAMILY.unsupported, "hidden_act": "gelu"},  # what the masked head has in any case
        fixed={**bert.FAMILY.fixed, "activation": "gelu"},
        others=r"pooler\.dense\.(weight|bias)",
        copies={
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        to_config=to_config,
        to_hf=to_hf,
    )


FAMILY, XLM = _family("roberta", "Roberta"), _family("xlm-roberta", "XLMRoberta")
