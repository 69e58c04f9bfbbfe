"""Models: the two shipped ones by name, anything else a local Hugging Face directory or a hub id."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get(name: str) -> ConfigDict:
    """Fields of the model axis."""
    return ConfigDict(
        dict(
            path=name,
            init="checkpoint",  # random: from `seed`; only config.json and the tokenizer are read
            layers=(),  # of the checkpoint, numbers from 0 (an encoder-decoder's: of the decoder); all where empty
            param_dtype="float32",  # of what is frozen; what trains is fp32
            dtype="float32",  # compute; norms, softmax and losses are fp32 in any case
            dropout=placeholder(float),  # all of the model's dropouts; its own where not given
            pooling=placeholder(str),  # first, last, mean, max; by the model's kind where not given
            scan_unroll=placeholder(int),  # layers per scan iteration, -1: no scan; by backend where not given
            remat=False,
            attention="auto",  # xla, cudnn, splash; auto: the fastest that can do it where it runs
        )
    )
