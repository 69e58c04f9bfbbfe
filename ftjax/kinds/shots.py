"""In-context examples: solved ones of the training split before the text to solve (Brown et al. 2020, section 2)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ftjax.data.tasks.task import Question, Text
from ftjax.errors import UserError
from ftjax.kinds.base import Setting, require
from ftjax.kinds.demonstrations import asks, pool

NO_ANSWER = "unanswerable"


def shots(setting: Setting, show: Callable[[Any], str]) -> Callable[[Any], str]:
    """example -> what stands before its prompt: `task.shots` training examples as `show` writes them with their right
    answers, `task.separator` after each; '' where there are none.

    They are drawn by `seed` once for all, equally many of each class where there are classes (what does not divide, of
    classes drawn). Where an example would see itself, it sees the next of its class in the order drawn.

    Raises:
      UserError: fewer training examples.
    """
    k = setting.f.task.shots
    require("task.shots", k, k >= 0, "0 or more")
    if not k:
        return lambda example: ""
    separator = setting.f.task.separator
    require("task.separator", separator, bool(separator), "what stands between examples")
    there, rng = pool(setting), np.random.default_rng(setting.f.seed)
    orders = [rng.permutation(group).tolist() for group in there.groups]
    turns = np.concatenate([rng.permutation(len(orders)) for _ in range(-(-k // len(orders)))])[:k].tolist()

    def before(example: Any) -> str:
        own = asks(example)
        left = [(x for i in order if asks(x := there.examples[i]) != own) for order in orders]
        shown = [next(left[group], None) for group in turns]
        if None in shown:
            sizes = ", ".join(str(len(order)) for order in orders)
            same = sum(asks(one) == own for one in there.examples)
            less = f", {same} of which ask what is to be solved" if same else ""
            raise UserError(f"task.shots={k}: too many for a training split of {sizes} examples (by class){less}")
        return "".join(show(one) + separator for one in shown)

    return before


def as_text(example: Any, eos: str) -> Any:
    """A question about a context as a prompt and its first answer; other examples as they are."""
    if not isinstance(example, Question):
        return example
    answer = example.answers[0][0] if example.answers else NO_ANSWER
    return Text(f"{example.context}\nQuestion: {example.question}\nAnswer:", f" {answer}{eos}")


def in_context(setting: Setting, examples: Sequence[Any]) -> list[Any]:
    """The examples for a language model, `task.shots` solved ones before each prompt.

    Raises:
      UserError: shots of what has no prompt, or more than there are.
    """
    eos = setting.tokenizer.eos_token or ""
    texts = [as_text(example, eos) for example in examples]
    if not setting.f.task.shots:
        return texts
    if setting.task.chunked or not all(isinstance(text, Text) for text in texts):
        raise UserError(
            f"task.shots={setting.f.task.shots}: examples of {setting.f.task.name} have no prompt; set it to 0"
        )

    def solved(example: Any) -> str:
        text = as_text(example, eos)
        return text.prompt + (text.completion.removesuffix(eos) if eos else text.completion)

    before = shots(setting, solved)
    return [text._replace(prompt=before(example) + text.prompt) for text, example in zip(texts, examples)]


def answer_in(setting: Setting, written: str, example: Any) -> str:
    """What a model answered: up to `task.separator` where it was shown examples, and to a question the first line,
    nothing where that says that there is none."""
    answer = written.strip()
    if setting.f.task.shots:
        answer = answer.split(setting.f.task.separator)[0].strip()
    if not isinstance(example, Question):
        return answer
    first = answer.split("\n")[0].strip()
    return "" if first.lower().rstrip(".") == NO_ANSWER else first
