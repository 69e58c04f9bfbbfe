"""Texts as a sentence with a gap, whose word says the class (Gao, Fisch & Chen 2021, table 1; LM-BFF's repository).

A template has `{text}`, `{text_pair}` and, once, `{mask}`; `{text:cut}` is the text without its last character (a full
stop that the template's own sign replaces), `{text_pair:lower}` begins with a small letter.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ftjax.errors import UserError


class Template(NamedTuple):
    """`text` with its slots; `words`: class -> the word that stands for it."""

    text: str
    words: Mapping[str, str]


SLOT = re.compile(r"\{(text(?::cut)?|text_pair(?::lower)?|mask)\}")
_PAIR = "{text:cut}? {mask}, {text_pair:lower}"
_INFERENCE = Template(_PAIR, {"entailment": "Yes", "neutral": "Maybe", "contradiction": "No"})
_ENTAILMENT = Template(_PAIR, {"entailment": "Yes", "not_entailment": "No"})

TEMPLATES: dict[str, Template] = {
    "sst2": Template("{text} It was {mask}.", {"negative": "terrible", "positive": "great"}),
    "cola": Template("{text} This is {mask}.", {"unacceptable": "incorrect", "acceptable": "correct"}),
    "subj": Template("{text} This is {mask}.", {"subjective": "subjective", "objective": "objective"}),
    "trec": Template(
        "{mask}: {text}",
        {
            "ABBR": "Expression", "DESC": "Description", "ENTY": "Entity", "HUM": "Human", "LOC": "Location",
            "NUM": "Number",
        },
    ),
    "mrpc": Template("{text} {mask}, {text_pair:lower}", {"different": "No", "equivalent": "Yes"}),
    "qqp": Template("{text} {mask}, {text_pair:lower}", {"different": "No", "duplicate": "Yes"}),
    "stsb": Template("{text} {mask}, {text_pair:lower}", {"low": "No", "high": "Yes"}),
    "mnli": _INFERENCE,
    "sick": _INFERENCE,
    "qnli": _ENTAILMENT,
    "rte": _ENTAILMENT,
    "agnews": Template(  # Schick & Schütze 2021
        "{mask} News: {text}", {"World": "World", "Sports": "Sports", "Business": "Business", "Sci/Tech": "Tech"}
    ),
}  # fmt: skip


def template_of(cfg: Any, classes: Sequence[str]) -> Template:
    """`cfg.template` and `cfg.label_words`, in the order of the classes, before the task's own.

    Raises:
        UserError: the task has none and they are not given, or they do not fit.
    """
    own = TEMPLATES.get(cfg.name, Template("", {}))
    text = cfg.template or own.text
    words = dict(zip(classes, cfg.label_words)) if cfg.label_words else dict(own.words)
    if not text or not words:
        raise UserError(f"task.template and task.label_words: {cfg.name} has none of its own; give both")
    slots = SLOT.findall(text)
    if slots.count("mask") != 1 or not any(slot.startswith("text") for slot in slots):
        raise UserError(f"task.template={text!r}: write {{mask}} once, and {{text}}")
    if re.search(r"\{\w+[^}]*\}", SLOT.sub("", text)):
        raise UserError(
            f"task.template={text!r}: only {{text}}, {{text:cut}}, {{text_pair}}, {{text_pair:lower}}, {{mask}}"
        )
    given = len(cfg.label_words) or len(words)
    if set(words) != set(classes) or given != len(classes) or len(set(words.values())) < len(words):
        raise UserError(
            f"task.label_words={tuple(words.values())}: give each class its own word ({', '.join(classes)})"
        )
    return Template(text, words)


def fill(template: str, mask: str, text: str, text_pair: str | None = None) -> str:
    """The template with its slots filled.

    Raises:
        UserError: it wants a second text and there is none.
    """
    if text_pair is None and "{text_pair" in template:
        raise UserError(f"task.template={template!r}: has {{text_pair}}, but the task's examples are single texts")
    pair = text_pair or ""
    values = {
        "mask": mask, "text": text, "text:cut": text[:-1], "text_pair": pair,
        "text_pair:lower": pair[:1].lower() + pair[1:],
    }  # fmt: skip
    return SLOT.sub(lambda found: values[found[1]], template)
