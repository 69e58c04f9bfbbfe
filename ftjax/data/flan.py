"""Tasks as instructions: several wordings of each, some of them turned around (after FLAN, Wei et al. 2022).

Of FLAN is the form: a cluster for each data set, the block of options, wordings that ask for what is otherwise given.
The sentences are our own. A wording is a text of `{slots}`, and what follows it.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ftjax.data.tasks.task import Choices, Labelled

Row = Mapping[str, Any]


class Wording(NamedTuple):
    """A text to go on from, and how: `{answer}`, or, turned around, something else."""

    text: str
    answer: str = "{answer}"


class Wordings(NamedTuple):
    """The wordings of a data set.

    Attributes:
        cluster: the sort of task; a whole cluster is held out.
        asked: texts that are followed by `{answer}`.
        turned: turned around; for training only.
        slots: (config, row, its example, names of classes) -> values of the slots, and under `options`, where there are
            any, a list.
    """

    cluster: str
    asked: tuple[str, ...]
    turned: tuple[Wording, ...]
    slots: Callable[[Any, Row, Any, Sequence[str]], dict[str, Any]]

    def text(self, number: int, slots: Mapping[str, Any]) -> tuple[str, str]:
        """(text, answer) of a wording; the turned ones are numbered last. The answer begins a line of its own."""
        wording = [*map(Wording, self.asked), *self.turned][number]
        options = "OPTIONS:" + "".join(f"\n- {option}" for option in slots.get("options", ()))
        text, answer = (part.format_map({**slots, "options": options}) for part in wording)
        return f"{text}\n", answer.strip()


def drawn(name: str, index: int, times: int, seed: int, turned: bool) -> int:
    """Which wording a row has: by its number in the data set, and how often it has been there before."""
    sort = INSTRUCTIONS[name]
    count = len(sort.asked) + (len(sort.turned) if turned else 0)
    return random.Random(f"{seed} {name} {index} {times}").randrange(count)


def _strings(row: Row) -> dict[str, str]:
    return {role: value.strip() for role, value in row.items() if isinstance(value, str)}


def _classes(words: Mapping[str, Mapping[str, str]]) -> Callable[[Any, Row, Labelled, Sequence[str]], dict[str, Any]]:
    """Slots of a classified text or pair; `words`: class -> {slot: what stands for the class}, `answer` among them."""
    options = list(dict.fromkeys(slots["answer"] for slots in words.values()))

    def slots(cfg: Any, row: Row, example: Labelled, classes: Sequence[str]) -> dict[str, Any]:
        name = classes[example.label] if isinstance(example.label, int) else example.label
        return {**_strings(row), **words[name], "options": options}

    return slots


def _written(role: str) -> Callable[[Any, Row, Any, Sequence[str]], dict[str, Any]]:
    """The role that is to be written is the answer."""
    return lambda cfg, row, example, classes: {**_strings(row), "answer": row[role]}


def _translated(cfg: Any, row: Row, example: Any, classes: Sequence[str]) -> dict[str, Any]:
    names = {"en": "English", "de": "German", "fr": "French", "cs": "Czech"}
    tongues = {end: names.get(code, code) for end, code in (("from", cfg.source), ("to", cfg.target))}
    return {**_strings(row), **tongues, "answer": row["target"]}


def _alike(cfg: Any, row: Row, example: Any, classes: Sequence[str]) -> dict[str, Any]:
    """STS-B's scores as whole numbers."""
    return {**_strings(row), "answer": str(int(example.score + 0.5)), "options": [str(i) for i in range(6)]}


def _followed(cfg: Any, row: Row, example: Choices, classes: Sequence[str]) -> dict[str, Any]:
    options = [row["first"].strip(), row["second"].strip()]
    return {**_strings(row), "answer": options[example.label], "options": options}


def _found(cfg: Any, row: Row, example: Any, classes: Sequence[str]) -> dict[str, Any]:
    return {**_strings(row), "answer": row["answers"][0][0] if row["answers"] else "the text does not say"}


_NLI_ASKED = (
    "{text}\n\nCan we conclude from this that the following holds?\n{text_pair}\n\n{options}",
    "Facts: {text}\nClaim: {text_pair}\nDo the facts make the claim true?\n{options}",
    'Suppose that this is so: "{text}" Must it then be so that "{text_pair}"?\n{options}',
    "Read the first sentence, and say whether the second follows from it.\n1. {text}\n2. {text_pair}\n{options}",
    "{text}\nGiven this alone, is the next sentence right?\n{text_pair}\n{options}",
)
_NLI_TURNED = (
    Wording("{text}\n\nWrite a sentence that {relation} this.", "{text_pair}"),
    Wording("Give a text of which one can say that the sentence below {relation} it.\n{text_pair}", "{text}"),
)
_ENTAILED = {"answer": "yes", "relation": "follows from"}
_THREE = {
    "entailment": _ENTAILED,
    "neutral": {"answer": "maybe", "relation": "may or may not be true given"},
    "contradiction": {"answer": "no", "relation": "cannot be true given"},
}
_TWO = {
    "entailment": _ENTAILED,
    "not_entailment": {"answer": "no", "relation": "does not follow from"},
}


INSTRUCTIONS: dict[str, Wordings] = {
    "sst2": Wordings(
        "sentiment",
        (
            "A critic wrote: {text}\nDid the critic like the film?\n{options}",
            "What feeling does this line of a film review express?\n{text}\n{options}",
            "{text}\n\nWhich way do these words on a film lean?\n{options}",
            'Sort the remark "{text}" by its tone.\n{options}',
            "Here is a part of a review.\n{text}\nIs its judgement good or bad?\n{options}",
        ),
        (
            Wording("Write a line of a {answer} film review.", "{text}"),
            Wording("You have just seen a film. Say something {answer} about it.", "{text}"),
        ),
        _classes({"negative": {"answer": "negative"}, "positive": {"answer": "positive"}}),
    ),
    "mrpc": Wordings(
        "paraphrase",
        (
            "Do these two sentences tell the same news?\n{text}\n{text_pair}\n{options}",
            "First: {text}\nSecond: {text_pair}\nIs the second the first in other words?\n{options}",
            "{text}\n\nWould one learn the same from the sentence below?\n{text_pair}\n{options}",
            'Compare "{text}" with "{text_pair}". Do they mean one thing?\n{options}',
            "Two papers reported as follows.\n- {text}\n- {text_pair}\nAre the reports equal in meaning?\n{options}",
        ),
        (
            Wording("{text}\n\nWrite a sentence of a similar look that {relation}.", "{text_pair}"),
            Wording("Change the words of this sentence so that the new one {relation}: {text_pair}", "{text}"),
        ),
        _classes(
            {
                "different": {"answer": "no", "relation": "does not mean the same"},
                "equivalent": {"answer": "yes", "relation": "means the same"},
            }
        ),
    ),
    "qqp": Wordings(
        "paraphrase",
        (
            "{text}\n{text_pair}\n\nWould one answer serve both questions?\n{options}",
            "Question A: {text}\nQuestion B: {text_pair}\nIs B the same question as A?\n{options}",
            "Somebody asks: {text}\nHas it been asked before, as: {text_pair}\n{options}",
            'Do "{text}" and "{text_pair}" want to know the same?\n{options}',
            "Should a forum merge these questions?\n1. {text}\n2. {text_pair}\n{options}",
        ),
        (
            Wording("{text}\n\nWrite a question like this one that {relation}.", "{text_pair}"),
            Wording("Here is a question: {text_pair}\nGive another that {relation}.", "{text}"),
        ),
        _classes(
            {
                "different": {"answer": "no", "relation": "asks something else"},
                "duplicate": {"answer": "yes", "relation": "asks the same"},
            }
        ),
    ),
    "stsb": Wordings(
        "paraphrase",
        (
            "How close in meaning are these, from 0 (not at all) to 5 (the same)?\n{text}\n{text_pair}\n{options}",
            "{text}\n{text_pair}\n\nGive the pair a mark for likeness between 0 and 5.\n{options}",
            'On a scale up to 5, how much alike are "{text}" and "{text_pair}"?\n{options}',
            "Sentence 1: {text}\nSentence 2: {text_pair}\nLikeness of what they say, as a number to 5:\n{options}",
        ),
        (
            Wording(
                "{text}\n\nWrite a sentence whose likeness to this one is {answer} on a scale to 5.", "{text_pair}"
            ),
            Wording("Likeness wanted: {answer} of 5. Sentence: {text_pair}\nGive a partner for it.", "{text}"),
        ),
        _alike,
    ),
    "rte": Wordings("nli", _NLI_ASKED, _NLI_TURNED, _classes(_TWO)),
    "sick": Wordings("nli", _NLI_ASKED, _NLI_TURNED, _classes(_THREE)),
    "mnli": Wordings("nli", _NLI_ASKED, _NLI_TURNED, _classes(_THREE)),
    "cola": Wordings(
        "acceptability",
        (
            "{text}\n\nWould a native speaker say it so?\n{options}",
            "Is the grammar of this sentence right?\n{text}\n{options}",
            'A learner of English writes: "{text}" Is it good English?\n{options}',
            "Sentence: {text}\nIs it well formed?\n{options}",
            "Look for mistakes in the following. Is it free of them?\n{text}\n{options}",
        ),
        (
            Wording("Write a sentence whose grammar is {state}.", "{text}"),
            Wording("A book of grammar needs an example that is {state}. Give one.", "{text}"),
        ),
        _classes(
            {
                "unacceptable": {"answer": "no", "state": "wrong"},
                "acceptable": {"answer": "yes", "state": "right"},
            }
        ),
    ),
    "agnews": Wordings(
        "topic",
        (
            "{text}\n\nIn which part of a newspaper does this stand?\n{options}",
            "What is this news about?\n{text}\n{options}",
            "Put the item into a section.\nItem: {text}\n{options}",
            "{text}\nWho would read this first: the reader of which pages?\n{options}",
            "An agency sends the following. Choose its subject.\n{text}\n{options}",
        ),
        (
            Wording("Write a short news item for the section {answer}.", "{text}"),
            Wording("Make up a headline and a first sentence on this subject: {answer}", "{text}"),
        ),
        _classes(
            {
                "World": {"answer": "world"},
                "Sports": {"answer": "sports"},
                "Business": {"answer": "business"},
                "Sci/Tech": {"answer": "science and technology"},
            }
        ),
    ),
    "copa": Wordings(
        "commonsense",
        (
            "{premise}\n\nWhat is the likelier {question}?\n{options}",
            "Something happens: {premise}\nChoose its {question}.\n{options}",
            'Which of these is a {question} of "{premise}"?\n{options}',
            "Think about it: {premise} Which sentence tells the {question}?\n{options}",
            "Event: {premise}\nName the {question} that makes sense.\n{options}",
        ),
        (
            Wording("The {question} of something is this: {answer}\nWhat is it that happens?", "{premise}"),
            Wording('Write a sentence that has "{answer}" for its {question}.', "{premise}"),
        ),
        _followed,
    ),
    "e2e": Wordings(
        "data_to_text",
        (
            "Describe the place with these attributes in a sentence or two.\n{context}",
            "{context}\n\nPut all of this into words.",
            "Write for a guide of restaurants. What is known: {context}",
            "Attributes: {context}\nText:",
            "Tell a visitor what this record says: {context}",
        ),
        (
            Wording("{answer}\n\nList the attributes that this text gives.", "{context}"),
            Wording("Which record was this written from?\n{answer}", "{context}"),
        ),
        _written("completion"),
    ),
    "multi30k": Wordings(
        "translation",
        (
            "Translate from {from} into {to}.\n{source}",
            "{source}\n\nHow does one say this in {to}?",
            'What is "{source}" in {to}?',
            "{from}: {source}\n{to}:",
            "A caption reads: {source}\nWrite it for readers of {to}.",
        ),
        (
            Wording("Translate from {to} into {from}.\n{answer}", "{source}"),
            Wording("{answer}\n\nHow does one say this in {from}?", "{source}"),
        ),
        _translated,
    ),
    "squad": Wordings(
        "reading",
        (
            "{context}\n\n{question}",
            "Answer by words of the text.\nText: {context}\nQuestion: {question}",
            "Question: {question}\nLook it up here: {context}",
            "Read this and reply to what comes after it.\n{context}\n\n{question}",
            "{question}\nThe answer is somewhere in the following.\n{context}",
        ),
        (
            Wording('{context}\n\nAsk something to which the reply is "{answer}".', "{question}"),
            Wording("Text: {context}\nReply: {answer}\nWhat was the question?", "{question}"),
        ),
        _found,
    ),
}
