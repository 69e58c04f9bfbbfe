"""Optimizers. `adamw` with weight_decay 0 is Adam; `bias_correction` off is BERT's Adam."""

from ml_collections import ConfigDict

COMMON = dict(
    learning_rate=1e-3,
    schedule="linear",  # constant, cosine, slanted_triangular
    schedule_by="step",  # or epoch
    warmup=0.06,  # below 1 a share of the run, else steps
    weight_decay=0.0,
    no_decay=r"(bias\w*|scale)$",  # paths that weight decay leaves alone
    clip=1.0,  # global norm of the trainable gradient; 0: none
    group_rates="",  # factors on the rate by label: head:10
    layer_decay=1.0,  # factor on the rate a layer further below the head, the embeddings below all
    unfreeze_every=0.0,  # epochs until the next layer starts to move (method=gradual)
)
OPTIMIZERS = {
    "adamw": dict(b1=0.9, b2=0.999, eps=1e-8, bias_correction=True, moment_dtype="float32"),
    "adafactor": dict(
        decay_rate=0.8, scale_parameter=True, clipping_threshold=1.0, momentum=0.0, factored=True,
        min_dim_size_to_factor=128,
    ),
    "sgd": dict(momentum=0.9, nesterov=False),
}  # fmt: skip
OPTIMIZERS["adam"] = OPTIMIZERS["adamw"]


def get(name: str) -> ConfigDict:
    """Fields of the optimizer axis; ValueError lists what exists."""
    if name not in OPTIMIZERS:
        raise ValueError(f"config axis optimizer={name!r} is unknown; there are {', '.join(OPTIMIZERS)}")
    return ConfigDict(dict(name=name, **COMMON, **OPTIMIZERS[name]))
