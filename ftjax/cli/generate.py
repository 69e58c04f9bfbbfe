"""ftjax generate --workdir=RUN --prompt="..." [--prompt="..."]: continues prompts with a run's best checkpoint.

ftjax generate --model=nano-gpt --prompt="..." uses a model as it is: a shipped one, a hub id or a local directory.
"""

from pathlib import Path
from typing import Any

from absl import flags

from ftjax.errors import UserError


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The command's flags."""
    flags.DEFINE_string("workdir", None, "a run's folder", flag_values=values)
    flags.DEFINE_string("model", None, "a model, in place of a run", flag_values=values)
    flags.DEFINE_multi_string("prompt", [], "text to continue; repeat for more", flag_values=values)
    flags.DEFINE_integer("max_new_tokens", 64, "tokens to generate at most", lower_bound=1, flag_values=values)
    flags.DEFINE_bool("do_sample", False, "sample rather than take the likeliest token", flag_values=values)
    flags.DEFINE_float("temperature", 1.0, "of sampling", flag_values=values)
    flags.DEFINE_integer("top_k", 0, "sample from the k likeliest; 0: from all", flag_values=values)
    flags.DEFINE_float("top_p", 1.0, "sample from the likeliest that hold this share", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of sampling", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Prints each prompt with its continuation."""
    from ftjax import hub
    from ftjax.decode.batches import generate_batches
    from ftjax.train.restore import load_run

    get: Any = lambda name: values[name].value  # noqa: E731
    if bool(get("workdir")) == bool(get("model")):
        raise UserError("give either --workdir=RUN or --model=NAME")
    if not get("prompt"):
        raise UserError("give --prompt=TEXT")
    if get("workdir"):
        _, parts = load_run(Path(get("workdir")))
        model, params, tokenizer = parts.model, parts.variables["params"], parts.tokenizer
        adapters, around = parts.method.expand(parts.variables["adapters"], params), parts.around
    else:
        tokenizer = hub.tokenizer(get("model"))
        (model, params), adapters, around = hub.load(get("model"), head="lm"), None, None
    prompts = [tokenizer(text)["input_ids"] or [tokenizer.bos_token_id] for text in get("prompt")]
    if around:
        prompts = [around.prompt(tokens) for tokens in prompts]
    answers = generate_batches(
        model, params, prompts, adapters=adapters, batch_size=len(prompts), max_new_tokens=get("max_new_tokens"),
        eos_token_id=tokenizer.eos_token_id, do_sample=get("do_sample"), temperature=get("temperature"),
        top_k=get("top_k"), top_p=get("top_p"), seed=get("seed"),
    )  # fmt: skip
    for text, tokens in zip(get("prompt"), answers):
        print(text + tokenizer.decode(tokens, skip_special_tokens=True))
