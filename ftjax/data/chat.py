"""Conversations as text, by the tokenizer's chat template or another, and what of the text is learned."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jinja2 import TemplateError

from ftjax.data.encode import encode_lm
from ftjax.data.encoded import IGNORED, Collector, Encoded
from ftjax.data.sources import read_text
from ftjax.data.tasks.task import Chat, Marked
from ftjax.errors import UserError

# In place of a tokenizer's own. `plain` needs no tokens but eos, which ends what the assistant says; the other's
# two must be in the vocabulary.
TEMPLATES = {
    "plain": (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] | trim }}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
}
LEARN = ("all", "last")


class Format(NamedTuple):
    """How conversations are written.

    Attributes:
        name: of the template, for messages.
        template: Jinja text; None for the tokenizer's own.
        system: what the system says first where a conversation has no such message; '' for nothing.
        learn: the assistant's turns that are learned: all (of a conversation that flags some, those), or the last.
    """

    tokenizer: Any
    name: str
    template: str | None
    system: str
    learn: str

    def whole(self, chat: Chat, where: str) -> Marked:
        """A conversation with every turn that it teaches: what the assistant says and the token that ends it.

        Raises:
            UserError: nothing to learn; a template that refuses the messages, ends a turn by no token of the
                tokenizer's own, or writes a turn otherwise when more follows.
        """
        text, spans = self._write(self._messages(chat), where), []
        for number in self.learned(chat, where):
            turn = self._turn(chat, number, where)
            if not text.startswith(turn.text):
                raise UserError(
                    f"{where}: {self.name} writes what leads to message {number + 1} otherwise when more follows, so"
                    " that one text cannot teach all turns; set task.learn=last, or another task.chat_template"
                )
            spans += turn.learned
        return Marked(text, tuple(spans))

    def turns(self, chat: Chat, where: str) -> list[Marked]:
        """The conversation up to each turn that it teaches, that turn marked. Errors as `whole`."""
        return [self._turn(chat, number, where) for number in self.learned(chat, where)]

    def learned(self, chat: Chat, where: str) -> list[int]:
        """The numbers of the messages that are learned; UserError where there is none."""
        turns = [i for i, (role, _) in enumerate(chat.messages) if role == "assistant"]
        if chat.learned is not None and self.learn == "all":
            turns = list(chat.learned)
        if not turns:
            raise UserError(
                f"{where}: no message is to be learned; flag one of the assistant's, or leave the flags out"
            )
        return turns if self.learn == "all" else turns[-1:]

    def question(self, chat: Chat, where: str = "the prompt") -> str:
        """What the assistant is to go on from after all of the messages."""
        return self._write(self._messages(chat), where, add_generation_prompt=True)

    def stop(self, where: str = "the chat template") -> str:
        """The token that ends what the assistant says. UserError where it is none of the tokenizer's own."""
        turn = self._turn(Chat((("user", "a"), ("assistant", "b"))), 1, where)
        return self._closing(turn.text, where)

    def _messages(self, chat: Chat, number: int | None = None) -> list[dict[str, str]]:
        """The first so many messages, behind the system's."""
        messages = [{"role": role, "content": content} for role, content in chat.messages[:number]]
        first = self.system and chat.messages[0][0] != "system"
        return [{"role": "system", "content": self.system}, *messages] if first else messages

    def _turn(self, chat: Chat, number: int, where: str) -> Marked:
        asked = self._messages(chat, number)
        if not asked:
            raise UserError(f"{where}: the first message is the assistant's, and answers nothing; remove it")
        before = self._write(asked, where, add_generation_prompt=True)
        text = self._write(self._messages(chat, number + 1), where).rstrip()
        if not text.startswith(before):
            raise UserError(
                f"{where}: {self.name} writes the prompt of message {number + 1} otherwise than the conversation with"
                f" it: ...{before[-20:]!r} is not how it begins; give another task.chat_template"
            )
        opened = text[len(before) :].lstrip().startswith(chat.messages[number][1].strip())
        if not opened and before == self._write(asked, where):
            raise UserError(
                f"{where}: {self.name} does nothing for add_generation_prompt, so that the header of message"
                f" {number + 1}, {text[len(before) :][:20]!r}..., would be learned; give another task.chat_template"
            )
        self._closing(text, where)
        return Marked(text, ((len(before), len(text)),))

    def _closing(self, text: str, where: str) -> str:
        own = {*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab()}
        found = [token for token in own if text.endswith(token)]
        if not found:
            raise UserError(
                f"{where}: {self.name} ends what the assistant says by ...{text[-20:]!r}, which is no token of the"
                " tokenizer's own, so nothing would say where to stop; set task.chat_template=plain or a file"
            )
        return max(found, key=len)

    def _write(self, messages: Sequence[dict[str, str]], where: str, **how: Any) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, chat_template=self.template, **how
            )
        except TemplateError as error:
            raise UserError(f"{where}: {self.name} refuses the messages ({' '.join(str(error).split())})") from None


def chat_format(tokenizer: Any, template: str = "", system: str = "", learn: str = "all") -> Format:
    """The format of a config's fields.

    Args:
        template: 'plain', 'chatml', a file with a Jinja template, or '' for the tokenizer's own.

    Raises:
        UserError: no such template, or the tokenizer has none; a `learn` that is neither all nor last.
    """
    if learn not in LEARN:
        raise UserError(f"task.learn={learn!r}: give {' or '.join(LEARN)}")
    if not template and not tokenizer.chat_template:
        raise UserError(
            "the tokenizer has no chat template; set task.chat_template=plain, chatml or a Jinja file (ftjax generate"
            " --chat: --chat_template)"
        )
    text = TEMPLATES.get(template) or (read_text(template) if template else None)
    name = f"task.chat_template={template}" if template else "the tokenizer's chat template"
    return Format(tokenizer, name, text, system, learn)


def encode_chats(chats: Sequence[Chat], form: Format, out: Collector, whole: bool) -> Encoded:
    """Conversations as next-token labels: one example each, or, not `whole`, one for each turn that is learned.

    Raises:
        UserError: as `Format.whole` or `Format.turns`, and `encode_lm`.
    """
    texts: list[Marked] = []
    rows: list[int] = []
    for row, chat in enumerate(chats):
        with out.bad:
            where = out.place(row)
            made = [form.whole(chat, where)] if whole else form.turns(chat, where)
            texts += made
            rows += [row] * len(made)
    out.where = [out.place(row) for row in rows]
    encoded = encode_lm(texts, form.tokenizer, out)
    return replace(encoded, rows=np.asarray(rows, np.int32)[encoded.rows])


def asked_and_answered(encoded: Encoded, index: int, tokenizer: Any) -> tuple[str, str]:
    """What one turn goes on from, as the model reads it, and what it says."""
    tokens, labels = encoded[index]
    first = int(np.argmax(labels != IGNORED))
    return tokenizer.decode(tokens[:first]), tokenizer.decode(labels[labels != IGNORED], skip_special_tokens=True)
