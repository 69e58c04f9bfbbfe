"""Hugging Face checkpoints in and out: `load`, `save`, `tokenizer`."""

import contextlib
import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from ftjax import tree
from ftjax.errors import UserError
from ftjax.files import local
from ftjax.hub import (
    albert,
    bart,
    bert,
    deberta,
    electra,
    files,
    gemma,
    gpt,
    gpt2,
    llama,
    mistral,
    modernbert,
    names,
    olmo,
    qwen,
    roberta,
    t5,
)
from ftjax.hub.family import Family, config_of, hf_config
from ftjax.models.transformer import Transformer, abstract
from ftjax.models.transformer import init as new_params
from ftjax.nn.config import Config
from ftjax.nn.layers import uncut

FAMILIES = {
    family.model_type: family
    for family in (
        bert.FAMILY, roberta.FAMILY, roberta.XLM, electra.FAMILY, albert.FAMILY, deberta.FAMILY, modernbert.FAMILY,
        gpt.FAMILY, gpt2.FAMILY, llama.FAMILY, mistral.FAMILY, qwen.QWEN2, qwen.QWEN3, gemma.GEMMA2, gemma.GEMMA3,
        olmo.FAMILY, t5.FAMILY, bart.BART, bart.MBART,
    )
}  # fmt: skip
CHOSEN_BY_LOAD = ("head", "num_classes", "dtype", "family", "encoder")
CLASSIFIERS = ("classification", "tagging")
_READS = ContextVar("reads", default=True)


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Within it `load` makes parameters as with init=random, for `jax.eval_shape`, which computes none of them. It
    downloads no weights; what of a head is new then goes by those that are here, else by config.json's head."""
    token = _READS.set(False)
    try:
        yield
    finally:
        _READS.reset(token)


def load(
    path_or_id: str | os.PathLike,
    *,
    dtype: Any = None,
    compute_dtype: Any = jnp.float32,
    head: str | None = None,
    num_classes: int = 0,
    seed: int = 0,
    sharding: Callable[[str, tuple[int, ...]], Sharding] | None = None,
    init: Literal["checkpoint", "random"] = "checkpoint",
    fresh: list[str] | None = None,
    **overrides: Any,
) -> tuple[Transformer, Any]:
    """The model and the parameters of a checkpoint: a directory, a hub id, or a model shipped with ftjax.

    Args:
      dtype: in which the parameters are stored; None for the file's own (fp16 becomes fp32).
      compute_dtype: of the forward pass (`Config.dtype`).
      head: one of `Config.head` that the family has; None for what config.json's `architectures` says. The parts of
        another head than that, where the file lacks them, are newly initialised from `seed`.
      num_classes: of a classifier; 0 for the file's own. Another number than the file's gives a new classifier.
      sharding: (path, shape) -> where a parameter lives; each device is given its own part as it is read from the file.
        None for wherever jax puts arrays.
      init: random needs no weights: kernels and tables are normal(initializer_range), 0.02 where the family has none
        (T5 too, whose own start goes by fan-in), norms scale by 1, biases are 0. From `seed`; fp32 if `dtype` is None.
      fresh: takes the paths of such new parts, of which a warning is logged otherwise.
      overrides: other fields of `Config` to replace: dropouts, scan_unroll, remat, ...
    Returns:
      (model, params): nested dicts of jax arrays, layers stacked `[L, ...]`.
    Raises:
      UserError: the path, an option that we do not support, or all tensors that do not fit, in one line.
    """
    if init not in ("checkpoint", "random"):
        raise UserError(f"init={init!r}: give checkpoint or random")
    folder = files.resolve(path_or_id, weights=init == "checkpoint" and _READS.get())
    hf = files.read_json(folder / "config.json")
    try:
        return _load(folder, hf, dtype, compute_dtype, head, num_classes, seed, sharding, init, fresh, overrides)
    except UserError as error:
        where = str(folder)
        raise error if where in str(error) else UserError(f"{where}: {error}") from None


def _load(
    folder: Path,
    hf: dict,
    dtype: Any,
    compute_dtype: Any,
    head: str | None,
    classes: int,
    seed: int,
    sharding: Any,
    init: str,
    fresh: list[str] | None,
    overrides: dict,
) -> tuple[Transformer, Any]:
    family = FAMILIES.get(hf.get("model_type", ""))
    if family is None:
        images = " (with images)" if "vision_config" in hf else ""
        raise UserError(f"config.json: model_type={hf.get('model_type')!r}{images} is not one of {', '.join(FAMILIES)}")
    own, known = family.head_of(hf.get("architectures")), sorted(family.heads)
    head = head or own
    if head is None:
        raise UserError(f"config.json: no known head in architectures={hf.get('architectures')}; give head= {known}")
    if head not in known:
        raise UserError(f"head={head!r} is none of a {family.model_type} model: {', '.join(known)}")
    fields = {field.name for field in dataclasses.fields(Config)} - set(CHOSEN_BY_LOAD)
    unknown = sorted(set(overrides) - fields)
    if unknown:
        raise UserError(f"no such override: {', '.join(unknown)}; the fields are {', '.join(sorted(fields))}")
    if classes and head not in CLASSIFIERS:
        raise UserError(f"num_classes={classes} needs head {' or '.join(CLASSIFIERS)}, this is head={head!r}")

    tensors: dict[str, files.Stored] = {}
    if init == "checkpoint":
        with contextlib.nullcontext() if _READS.get() else contextlib.suppress(UserError):
            tensors = names.normalise(family, files.read_weights(folder))
    if head in CLASSIFIERS:
        stored = family.heads[head].weights["classifier/kernel"].name
        theirs = 0
        if own == head and not tensors:
            theirs = len(hf.get("id2label", "01"))  # transformers does not write the names of two
        elif own == head and stored in tensors:
            theirs = tensors[stored].shape[0]
        if theirs != (classes or theirs) or own != head:  # another classifier than the file's
            own = None
            tensors = {name: x for name, x in tensors.items() if name.rpartition(".")[0] != stored.rpartition(".")[0]}
        if not (classes or theirs):
            raise UserError(f"head={head!r} of a checkpoint without such a head needs num_classes")
        overrides = {"num_classes": classes or theirs, **overrides}
    if overrides.get("pooling") in ("mean", "max") and family.heads[head].fields.get("pooler") == "dense":
        overrides = {"pooler": "none", "pooler_dropout": 0.0, **overrides}  # a pooler reads the first token
    model = Transformer(config_of(family, hf, head, dtype=compute_dtype, **overrides))
    if init == "checkpoint" and not _READS.get() and fresh is not None:
        held = tensors or ({weight.name for weight in family.heads[own].weights.values()} if own else ())
        fresh += sorted(names.lacking(family, model, held, head != own))
    if init == "random" or not _READS.get():
        return model, _random(model, dtype, seed, sharding)
    params = names.read(
        family, model, tensors, dtype=dtype, fresh_head=head != own, seed=seed, sharding=sharding, told=fresh
    )
    return model, params


def _random(model: Transformer, dtype: Any, seed: int, sharding: Any) -> Any:
    """New parameters; each device makes its own part of them."""
    make = _maker(model, dtype)
    if sharding:
        make = jax.jit(make, out_shardings=tree.map_paths(lambda path, x: sharding(path, x.shape), abstract(model)))
    return make(jax.random.key(seed))


@functools.lru_cache(maxsize=8)  # a run is built more than once: to train it, to evaluate it
def _maker(model: Transformer, dtype: Any) -> Callable[[jax.Array], Any]:
    return jax.jit(lambda key: jax.tree.map(lambda x: x.astype(dtype or x.dtype), new_params(model, key)))


def save(
    directory: str | os.PathLike,
    model: Transformer,
    params: Any,
    *,
    like: str | os.PathLike | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.json and model.safetensors, as `transformers` reads them, into `directory`.

    Args:
      params: canonical, or with a cut layer stack.
      like: a directory, a hub id or a shipped model, mostly the one that was loaded: its special ids, which our Config
        does not hold, its tokenizer and generation config are written too.
      extra: further config.json entries (pad_token_id, eos_token_id, id2label, ...), which go before those of `like`.
        A generation config gets those of how answers begin and end, which transformers reads there first.
    Raises:
      UserError: a model that no known family can hold, parameters that are not the model's, or a bucket's path.
    """
    cfg = model.cfg
    family = family_of(cfg)
    config = hf_config(family, cfg)
    tensors = names.write(family, model, {**params, "layers": uncut(params["layers"])})
    dtype = str(params["embed"]["tokens"]["embedding"].dtype)
    folder = local(os.fspath(directory), "directory")
    base = None if like is None else files.resolve(like, weights=False)
    ids = files.special_ids(base) if base else {}
    files.write(folder, {**config, "dtype": dtype, **ids, **(extra or {})}, tensors)
    if base and base.resolve() != folder.resolve():
        for file in files.beside(base):
            shutil.copyfile(file, folder / file.name)
    if (file := folder / files.GENERATION).exists():
        files.amend(file, {key: value for key, value in (extra or {}).items() if key in files.EDGES})


def family_of(cfg: Config) -> Family:
    """The family that `Config.family` names; UserError where it is none."""
    if cfg.family not in FAMILIES:
        raise UserError(f"Config.family={cfg.family!r} is no checkpoint format; known: {', '.join(FAMILIES)}")
    return FAMILIES[cfg.family]


def tokenizer(
    path_or_id: str | os.PathLike, vocab_size: int | None = None, languages: tuple[str, str] | None = None
) -> Any:
    """The checkpoint's tokenizer by `transformers` (never its remote code).

    Args:
      languages: what one that marks languages (mBART's) reads and writes, such as en and de; None leaves them as
        `src_lang` and `tgt_lang` of tokenizer_config.json say.
    Raises:
      UserError: none there, one with more ids than the model's `vocab_size`, or without one of the languages.
    """
    from transformers import AutoTokenizer

    folder = files.resolve(path_or_id, weights=False)
    found = [name for name in files.TOKENIZER if (folder / name).exists()]
    if not found:  # else an empty one would be made up
        raise UserError(f"{folder}: no tokenizer; none of {', '.join(files.TOKENIZER)}")
    if found[0] in files.SENTENCEPIECE and find_spec("sentencepiece") is None:
        raise UserError(
            f"{folder}: its tokenizer, {found[0]}, needs the package sentencepiece (pip install -e '.[sentencepiece]')"
        )
    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no tokenizer ({str(error).splitlines()[0]})") from error
    if vocab_size is not None and len(loaded) > vocab_size:
        raise UserError(f"{folder}: the tokenizer has {len(loaded)} ids, the model's vocab_size is {vocab_size}")
    if languages and hasattr(loaded, "tgt_lang"):
        codes = {code[:2]: code for code in loaded.lang_code_to_id}  # {"de": "de_DE"}
        if unknown := [language for language in languages if language not in codes]:
            raise UserError(f"{folder}: the tokenizer has no language {unknown[0]!r}, but {', '.join(sorted(codes))}")
        loaded.src_lang, loaded.tgt_lang = (codes[language] for language in languages)
    return loaded


def decoder_start(path_or_id: str | os.PathLike, tokenizer: Any) -> int | None:
    """The token that an encoder-decoder's decoder begins with: the language that its tokenizer puts behind a target
    (mBART's), or what its config.json names, if it does."""
    language = _language(tokenizer, -1)
    if language is not None:
        return language
    folder = files.resolve(path_or_id, weights=False)
    return files.read_json(folder / "config.json").get("decoder_start_token_id")


def ends(path_or_id: str | os.PathLike, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end an answer: the tokenizer's eos and, of generation_config.json (where there is none, of
    config.json), those beside it. A list without that eos is of another tokenizer."""
    eos, named = tokenizer.eos_token_id, _decoding(path_or_id).get("eos_token_id")
    if eos is None:
        return ()
    return tuple(dict.fromkeys([eos, *named])) if isinstance(named, list) and eos in named else (eos,)


def forced(path_or_id: str | os.PathLike, tokenizer: Any) -> dict[str, Any]:
    """The first and the last token that a checkpoint's answers are given, as `ftjax.decode.options` names them; from
    the files of `ends`. A first one is the language that its tokenizer puts before a target (mBART-50's), if it does:
    what is learned."""
    said = _decoding(path_or_id)
    found = {name: said.get(name) for name in ("forced_bos_token_id", "forced_eos_token_id")}
    language = _language(tokenizer, 0)
    if found["forced_bos_token_id"] is not None and language is not None:
        found["forced_bos_token_id"] = language
    return {name: tuple(ids) if isinstance(ids, list) else ids for name, ids in found.items()}


def _language(tokenizer: Any, at: int) -> int | None:
    """The id of the language that a tokenizer which is told one puts before (0) or behind (-1) a target: mBART-50's
    comes first, mBART's last."""
    if not getattr(tokenizer, "tgt_lang", None):
        return None
    token = tokenizer(text_target="")["input_ids"][at]
    return None if token == tokenizer.eos_token_id else token


def _decoding(path_or_id: str | os.PathLike) -> dict[str, Any]:
    folder = files.resolve(path_or_id, weights=False)
    if (folder / files.GENERATION).exists():
        return files.read_json(folder / files.GENERATION)
    hf = files.read_json(folder / "config.json")
    return {**FAMILIES[hf["model_type"]].decoding, **hf}
