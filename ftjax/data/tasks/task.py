"""What a task is, and the kinds of examples that rows become."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from ftjax.data.bad import BadRows
from ftjax.data.sources import Row
from ftjax.errors import UserError

Split = Literal["train", "validation", "test"]


class Text(NamedTuple):
    """For a language model: the loss is on `completion` only. An encoder-decoder reads the one and writes the other."""

    prompt: str
    completion: str
    part: str = ""  # what its metrics are said of too: of a mixture, the data set that it is from


class Marked(NamedTuple):
    """For a language model: the loss is on the characters of the spans `learned`, (start, end) each."""

    text: str
    learned: tuple[tuple[int, int], ...]


class Labelled(NamedTuple):
    """A text or a pair of texts with a class, its index or name."""

    text: str
    label: int | str
    text_pair: str | None = None


def class_of(label: int | str, classes: Sequence[str], where: str, numbers: bool = True) -> int:
    """The index of a class, given by name, or by it: written out only where no class's name is a number.

    Args:
        numbers: whether an index that is written out is taken at all.
    Raises:
        UserError: the label is neither.
    """
    numbers = numbers and not any(name.isdecimal() for name in classes)
    index = label if isinstance(label, int) else -1
    if isinstance(label, str):
        label = label.strip()
        if label in classes:
            return classes.index(label)
        if numbers and label.isascii() and label.isdecimal():
            index = int(label)
    if not 0 <= index < len(classes):
        known = ", ".join(f"{index} {name}" if numbers else name for index, name in enumerate(classes))
        raise UserError(f"{where}: label '{label}' is none of the classes ({known}); mend it or the column")
    return index


class Scored(NamedTuple):
    """A text or a pair of texts with a number."""

    text: str
    score: float
    text_pair: str | None = None


class Tagged(NamedTuple):
    """Words with a tag each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


class Question(NamedTuple):
    """Extractive question answering: `answers` are (text, first character in the context); none where there is none."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]


class Choices(NamedTuple):
    """Multiple choice: the likeliest of `options` after `prompt`; `label` is the right one's index."""

    prompt: str
    options: tuple[str, ...]
    label: int


class Texts(NamedTuple):
    """Two or three texts whose vectors are compared: a pair that belongs together, or anchor, positive, negative."""

    texts: tuple[str, ...]


class Chat(NamedTuple):
    """A conversation, (role, content) each: system, user or assistant. The tokenizer's template makes it text.

    `learned`: the numbers of the messages that it flags to be learned, from 0; None where it flags none.
    """

    messages: tuple[tuple[str, str], ...]
    learned: tuple[int, ...] | None = None


class Cloze(NamedTuple):
    """`text` has one slot `{mask}`, whose word is `answer`."""

    text: str
    answer: str


Example = Text | Marked | Labelled | Scored | Tagged | Question | Choices | Texts | Chat | Cloze


class Task(NamedTuple):
    """One task; `cfg` is the attribute-style `task` section of a config."""

    objectives: tuple[str, ...]  # names of `ftjax.kinds` that it can be trained or evaluated by, its own first
    columns: dict[str, str]  # role -> default column, 'a|b' where files differ; cfg.columns.<role> overrides
    load: Callable[[Any, Split, BadRows], list[Row]]  # rows role -> value
    example: Callable[[dict[str, Any], str], Example]  # (row, the tokenizer's eos string)
    metrics: tuple[str, ...]  # the first chooses the best checkpoint
    classes: Callable[[Any], tuple[str, ...]] = lambda cfg: ()  # of labels or tags
    chunked: bool = False  # examples are whole documents, to be cut into rows
    languages: Callable[[Any], tuple[str, str]] | None = None  # those of prompts and of completions, such as en and de
