"""ftjax fill --model=nano-bert --text="The [MASK] sat." [--text="..."]: words for masked places, by a masked LM.

ftjax fill --workdir=RUN --text="..." uses a run's best checkpoint. A mask is written [MASK], or as the tokenizer has
it. Of each mask in turn it prints the likeliest words, `probability  word`, and then the text with the first of each;
with --json, one object a text: `text`, `filled`, and under `masks` a list of `probability`, `word`, `id` for each.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from ftjax.data.around import Around
from ftjax.errors import UserError
from ftjax.files import as_path

MASK = "[MASK]"


class Filler(NamedTuple):
    """What fills masks."""

    model: Any
    variables: Any
    tokenizer: Any
    around: Around | None  # a method's tokens around a text's
    room: int  # tokens that a text may have


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The command's flags."""
    flags.DEFINE_string("workdir", None, "a run's folder", flag_values=values)
    flags.DEFINE_string("model", None, "a model, in place of a run", flag_values=values)
    flags.DEFINE_multi_string("text", [], "text with a mask or several; repeat for more", flag_values=values)
    flags.DEFINE_integer("top", 5, "words for each mask", lower_bound=1, flag_values=values)
    flags.DEFINE_bool("json", False, "print JSON, an object a text", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Prints the words."""
    get: Any = lambda name: values[name].value  # noqa: E731
    if bool(get("workdir")) == bool(get("model")):
        raise UserError("give either --workdir=RUN or --model=NAME")
    if not get("text"):
        raise UserError(f'give --text="... {MASK} ..."')
    filler = _of_run(as_path(get("workdir"))) if get("workdir") else _of_model(get("model"))
    for row in fill(filler, get("text"), get("top")):
        if get("json"):
            print(json.dumps(row))
            continue
        for words in row["masks"]:
            print("\n".join(f"{each['probability']:.4f}  {each['word']}" for each in words), end="\n\n")
        print(row["filled"])


def _of_model(name: str) -> Filler:
    from ftjax import hub
    from ftjax.decode.generate import room
    from ftjax.hub import files, names

    folder = files.resolve(name)
    kind = files.read_json(folder / "config.json").get("model_type", "")
    family = hub.FAMILIES.get(kind)
    if family and "mlm" not in family.heads:
        raise UserError(f"{name}: {kind} continues text and has no masked words; see ftjax generate")
    if family:
        there, head = names.normalise(family, files.read_weights(folder)), family.heads["mlm"].weights.values()
        if lost := [weight.name for weight in head if weight.name not in there]:
            raise UserError(f"{name}: no head for masked words, for {', '.join(lost)} is missing; take a masked LM")
    model, params = hub.load(name, head="mlm")
    tokenizer = hub.tokenizer(name, model.cfg.vocab_size)
    return Filler(model, {"params": params}, tokenizer, None, room(model, None, 0))


def _of_run(workdir: Path) -> Filler:
    from ftjax.decode.generate import room
    from ftjax.models.transformer import MASKED
    from ftjax.train.restore import load_run

    f, parts = load_run(workdir)
    if parts.model.cfg.head not in MASKED:
        other = "ftjax generate" if parts.model.cfg.head == "lm" else "ftjax eval"
        raise UserError(f"{workdir}: task={f.task.name} trains no head for masked words; see {other}")
    params, around = parts.variables["params"], parts.around
    adapters = parts.method.expand(parts.variables["adapters"], params)
    most = room(parts.model, adapters, 0) - (around.size if around else 0)
    return Filler(parts.model, {"params": params, "adapters": adapters}, parts.tokenizer, around, most)


def fill(filler: Filler, texts: list[str], top: int) -> list[dict[str, Any]]:
    """The likeliest words for the masks of each text, all in one batch.

    Raises:
      UserError: a text without a mask or over the model's positions, a tokenizer without a mask token, or more words
        asked for than there are.
    """
    import jax

    tokenizer, mask = filler.tokenizer, filler.tokenizer.mask_token_id
    if mask is None:
        raise UserError("the tokenizer has no mask token; take a masked LM's")
    if top > filler.model.cfg.vocab_size:
        raise UserError(f"--top={top}: the model has {filler.model.cfg.vocab_size} words")
    tokens = [_tokens(filler, text) for text in texts]
    rows = [filler.around.closed(ids) if filler.around else ids for ids in tokens]
    ids = np.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id or 0, np.int32)
    real = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], real[i, : len(row)] = row, 1
    at = np.nonzero((ids == mask) & (real != 0))

    def words(variables: Any) -> Any:
        hidden = filler.model.apply(variables, ids, attention_mask=real, method="hidden").last_hidden[at]
        return jax.lax.top_k(jax.nn.softmax(filler.model.apply(variables, hidden, method="logits")), top)

    found = list(zip(*map(np.asarray, jax.jit(words)(filler.variables))))
    out = []
    for i, (text, own) in enumerate(zip(texts, tokens)):
        mine = [found[n] for n in np.flatnonzero(at[0] == i)]
        best = iter([int(best[0]) for _, best in mine])
        out.append({
            "text": text,
            "filled": tokenizer.decode([next(best) if t == mask else t for t in own], skip_special_tokens=True),
            "masks": [
                [{"probability": float(p), "word": tokenizer.decode([w]).strip(), "id": int(w)} for p, w in zip(*one)]
                for one in mine
            ],
        })  # fmt: skip
    return out


def _tokens(filler: Filler, text: str) -> list[int]:
    tokenizer, where = filler.tokenizer, f"--text={text if len(text) < 60 else text[:57] + '...'!r}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: character {error.start + 1} of the text is half a surrogate pair") from None
    tokens = tokenizer(text.replace(MASK, tokenizer.mask_token), verbose=False)["input_ids"]
    if tokenizer.mask_token_id not in tokens:
        raise UserError(f"{where}: no {MASK}; write it where a word is wanted")
    if filler.around and not filler.around.fits(np.asarray(tokens)):
        raise UserError(f"{where}: the run's method puts tokens next to one gap; write {MASK} once, or side by side")
    if len(tokens) > filler.room:
        raise UserError(f"{where}: {len(tokens)} tokens; the model has room for {filler.room}")
    return tokens
