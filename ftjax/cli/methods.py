"""ftjax methods [--model=NAME]: the fine-tuning methods, and what each trains of a model with its default fields.

Of the model config.json alone is read.
"""

from typing import Any

from absl import flags

from ftjax.cli.flags import run_config
from ftjax.errors import UserError


def define(values: flags.FlagValues, argv: list[str]) -> None:
    """The command's flags."""
    flags.DEFINE_string("config", "configs/default.py", "where the methods' fields are", flag_values=values)
    flags.DEFINE_string("model", "nano-gpt", "a shipped model, a hub id or a directory", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Prints a table."""
    import jax

    from ftjax import hub, tree
    from ftjax.methods import METHODS, Context, trainable_leaves
    from ftjax.models.transformer import sites

    get: Any = lambda name: values[name].value  # noqa: E731
    get_config = run_config(get("config"))
    fields = lambda name: get_config(f"method={name}").method  # noqa: E731
    models = []

    def load() -> Any:
        model, params = hub.load(get("model"))
        models.append(model)
        return params

    with hub.without_weights():
        params = jax.eval_shape(load)
    [model] = models
    total, context = tree.count(params), Context(model.cfg, params, sites(model))
    rows = [("method", "paper", "trains", "share", "merges", "step 0")]
    for name, method in METHODS.items():
        try:
            train, merges = trainable_leaves(method, fields(name), context)
        except UserError as error:
            rows.append((name, method.paper, "-", "-", "-", str(error)))
            continue
        count = tree.count(train)
        facts = (f"{count:,}", f"{100 * count / total:.3g}%", "yes" if merges else "no", method.at_start)
        rows.append((name, method.paper, *facts))
    print(f"{get('model')}: {total:,} parameters; without the head that a task may add\n")
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip())
