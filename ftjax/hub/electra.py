"""ELECTRA (Clark et al. 2020): BERT's body on projected embeddings; a discriminator's and a generator's heads."""

from collections.abc import Mapping
from typing import Any

from ftjax.errors import UserError
from ftjax.hub import bert
from ftjax.hub.family import Head, Weight, linear, norm
from ftjax.hub.roberta import DROPOUTS, heads, pooled
from ftjax.nn.config import Config


def to_config(hf: Mapping[str, Any]) -> dict[str, Any]:
    fields, size = bert.to_config(hf), hf.get("embedding_size", 128)
    projected = size != hf["hidden_size"]
    return {**fields, "pooler_dropout": fields["classifier_dropout"], "embed_size": size if projected else 0}


def to_hf(cfg: Config) -> dict[str, Any]:
    if cfg.embed_size == cfg.hidden_size:
        raise UserError(f"an electra checkpoint projects no embeddings of hidden_size ({cfg.hidden_size}); use 0")
    return {**bert.to_hf(cfg), "embedding_size": cfg.embed_width}


FAMILY = bert.FAMILY._replace(
    model_type="electra",
    prefix="electra.",
    heads={
        "rtd": Head(
            ("ElectraForPreTraining",),
            {
                **linear("pooler", "discriminator_predictions.dense"),
                **linear("classifier", "discriminator_predictions.dense_prediction"),
            },
            {"pooler": "dense", "pooler_activation": "gelu", "pooler_dropout": 0.0, "classifier_dropout": 0.0},
        ),
        "mlm": Head(
            ("ElectraForMaskedLM",),
            {
                **linear("transform/dense", "generator_predictions.dense"),
                **norm("transform/norm", "generator_predictions.LayerNorm"),
                "head/bias": Weight("generator_lm_head.bias"),
            },
            {"head_bias": True, "tied_head": True},
        ),
        **pooled("Electra", "gelu"),
        **heads("Electra"),
    },
    options={**bert.FAMILY.options, **DROPOUTS},
    unsupported={**bert.FAMILY.unsupported, "hidden_act": "gelu"},  # what all heads but rtd have in any case
    fixed={**bert.FAMILY.fixed, "activation": "gelu"},
    weights={**bert.FAMILY.weights, **linear("embed/project", "embeddings_project")},
    ignored=r"embeddings\.position_ids",
    copies={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    to_config=to_config,
    to_hf=to_hf,
)
