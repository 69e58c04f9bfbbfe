"""What a model family is to us: its config options and its weight names, both read in either direction."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ftjax.errors import UserError
from ftjax.nn.config import DROPOUTS, Config

log = logging.getLogger(__name__)
REQUIRED = object()
LAST_TOKEN = {"pooling": "last", "classifier_bias": False}  # how a causal model of transformers classifies
RUNTIME = ("dtype", "attention", "max_segments", "scan_unroll", "remat", "num_classes", "init_std")
CLASSIFYING = ("pooling", "pooler", "pooler_activation", "pooler_dropout", "classifier_bias", "classifier_dropout")
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}


class Weight(NamedTuple):
    """Where a parameter of ours lives in a checkpoint; `{i}` in the name is the layer."""

    name: str
    transpose: bool = False  # torch's Linear holds [out, in]
    part: int = 0  # which of the `parts` equal pieces of our last axis (GPT-2's fused c_attn)
    parts: int = 1
    lead: bool = False  # has a leading axis of 1 there
    first: int = 0  # the first layer that has it; ours before are not used


class Head(NamedTuple):
    """What a model of the family has above its body."""

    architectures: tuple[str, ...]  # that have it; the first is the one written
    weights: Mapping[str, Weight] = {}  # our path -> where, with full names
    fields: Mapping[str, Any] = {}  # Config fields that never differ under this head


class Family(NamedTuple):
    """One model family of Hugging Face."""

    model_type: str
    prefix: str  # of the body's names, absent in files of the bare model
    heads: Mapping[str, Head]  # Config.head -> head
    options: Mapping[str, tuple[str, Any]]  # Config field -> (config.json key, default or REQUIRED)
    unsupported: Mapping[str, Any]  # config.json key -> the only value that we support, also the default
    fixed: Mapping[str, Any]  # Config fields that never differ in this family
    weights: Mapping[str, Weight]  # of the body: our path -> where, without the prefix
    to_config: Callable[[Mapping[str, Any]], dict[str, Any]]  # config.json -> Config fields that are no plain option
    to_hf: Callable[[Config], dict[str, Any]]  # inverts `to_config`; raises UserError where config.json cannot say it
    gated: Mapping[str, Weight] = {}  # of the body, what lies elsewhere where the FFN is gated
    encoder: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None  # what the encoder has otherwise
    ignored: str = ""  # regular expression of buffers and tables that nothing reads
    others: str = ""  # of weights of heads that no model of ours has
    copies: Mapping[str, str] = {}  # names that may repeat another tensor; those of the head, where it is tied
    renamed: Mapping[str, str] = {}  # endings of old files -> today's
    decoding: Mapping[str, Any] = {}  # what holds in decoding where no file says otherwise

    def places(self, cfg: Config, bare: bool = False) -> dict[str, Weight]:
        """Where each parameter of a model lives; `bare`, in a file of the body alone."""
        prefix, body = "" if bare else self.prefix, {**self.weights, **(self.gated if cfg.gated else {})}
        named = {path: weight._replace(name=prefix + weight.name) for path, weight in body.items()}
        return named | dict(self.heads[cfg.head].weights)

    def head_of(self, architectures: Any) -> str | None:
        """The head that config.json's `architectures` name."""
        return next((h for a in architectures or () for h, head in self.heads.items() if a in head.architectures), None)


def linear(path: str, name: str, bias: bool = True) -> dict[str, Weight]:
    """A Linear of ours under `path`, of torch under `name`."""
    kernel = {f"{path}/kernel": Weight(f"{name}.weight", transpose=True)}
    return kernel | ({f"{path}/bias": Weight(f"{name}.bias")} if bias else {})


def norm(path: str, name: str, bias: bool = True) -> dict[str, Weight]:
    """A norm of ours under `path`, of torch under `name`; an RMSNorm has no bias."""
    scale = {f"{path}/scale": Weight(f"{name}.weight")}
    return scale | ({f"{path}/bias": Weight(f"{name}.bias")} if bias else {})


def activation(hf: Mapping[str, Any], key: str, default: str) -> str:
    """Our name of the activation in `hf[key]`; UserError where we have none."""
    name = hf.get(key, default)
    if name not in ACTIVATIONS:
        raise UserError(f"config.json: {key}={name!r} is not supported; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def hf_activation(name: str) -> str:
    """Hugging Face's name of our activation."""
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == name)


def head_dim(hidden: int, heads: int) -> int:
    """hidden / heads; UserError where it leaves a remainder."""
    if hidden % heads:
        raise UserError(f"config.json: {heads} attention heads do not divide the hidden size {hidden}")
    return hidden // heads


def plain_heads(cfg: Config, model_type: str) -> None:
    """UserError unless every head has its own keys and values and the heads fill the hidden size."""
    if cfg.num_kv_heads != cfg.num_heads or cfg.head_dim * cfg.num_heads != cfg.hidden_size:
        raise UserError(
            f"a {model_type} checkpoint needs num_kv_heads = num_heads and head_dim = hidden_size / num_heads, got "
            f"{cfg.num_kv_heads} of {cfg.num_heads} heads, each {cfg.head_dim} wide of {cfg.hidden_size}"
        )


def config_of(family: Family, hf: Mapping[str, Any], head: str, **fields: Any) -> Config:
    """The Config of a config.json under a head; `fields` replace those of the decoder and of its encoder.

    Raises:
      UserError: every option that is missing, or one that is not supported.
    """
    missing = [key for key, default in family.options.values() if default is REQUIRED and hf.get(key) is None]
    if missing:
        raise UserError(f"config.json: {family.model_type} needs {', '.join(missing)}")
    for key, value in {**family.unsupported, "quantization_config": None}.items():
        if hf.get(key, value) != value:
            raise UserError(f"config.json: {key}={hf[key]!r} is not supported, only {value!r}")
    plain = {field: hf.get(key, default) for field, (key, default) in family.options.items()}
    found: dict[str, Any] = {**family.fixed, **plain, **family.to_config(hf), "family": family.model_type}
    own: dict[str, Any] = {**found, "head": head, **family.heads[head].fields, **fields}
    cfg = Config(**own)
    if family.encoder is None:
        return cfg
    beside: dict[str, Any] = {**found, "head": "none", **family.encoder(hf), **fields}
    return dataclasses.replace(cfg, encoder=Config(**beside))


def hf_config(family: Family, cfg: Config) -> dict[str, Any]:
    """The config.json of `cfg`, but for the dtype; UserError names what this family cannot say."""
    if cfg.head not in family.heads or (cfg.encoder is None) != (family.encoder is None):
        stacks = "one stack of layers" if family.encoder is None else "an encoder and a decoder"
        raise UserError(f"a {family.model_type} checkpoint has {stacks} and the heads {', '.join(family.heads)}")
    hf: dict[str, Any] = {}
    for field, (key, _) in family.options.items():
        if hf.setdefault(key, getattr(cfg, field)) != getattr(cfg, field):
            log.warning("config.json has one %s; %s=%s is not written", key, field, getattr(cfg, field))
    lost = [field for field in DROPOUTS if field not in family.options and getattr(cfg, field)]
    if lost:
        log.warning("a %s config.json has no %s: not written", family.model_type, ", ".join(lost))
    architecture = family.heads[cfg.head].architectures[0]
    hf |= {"model_type": family.model_type, "architectures": [architecture], **family.unsupported, **family.to_hf(cfg)}
    if cfg.head in ("classification", "tagging"):
        names = [f"LABEL_{i}" for i in range(cfg.num_classes)]
        hf |= {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}
    read = config_of(family, hf, cfg.head)
    wrong = _differing(cfg, read)
    if cfg.encoder is not None and read.encoder is not None:
        wrong += [f"encoder.{each}" for each in _differing(cfg.encoder, read.encoder)]
    if wrong:
        raise UserError(f"a {family.model_type} checkpoint cannot say {', '.join(wrong)}")
    return hf


def _differing(cfg: Config, read: Config) -> list[str]:
    """What a checkpoint's config.json makes of a Config otherwise, but for what it need not say."""
    silent = {*DROPOUTS, *RUNTIME, *(() if cfg.head == "classification" else CLASSIFYING)}
    silent |= {"tied_head", "head_scale"} if cfg.head == "none" else set()
    names = [field.name for field in dataclasses.fields(Config) if field.name not in silent | {"encoder"}]
    return [
        f"{name}={getattr(cfg, name)!r} (only {getattr(read, name)!r})"
        for name in names
        if getattr(cfg, name) != getattr(read, name)
    ]
