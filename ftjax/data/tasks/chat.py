"""Conversations: rows with `messages` of role and content, or ShareGPT's `conversations` of from and value.

A message of the assistant's may have a flag `learn` or `train`: where a row has some, those that are true are learned.
"""

from functools import partial
from typing import Any

from ftjax.data.tasks.table import Source, as_text, load_table
from ftjax.data.tasks.task import Chat, Task

COLUMNS = {"messages": "messages|conversations"}
ROLES = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
}  # fmt: skip


def messages(value: Any) -> list[tuple[str, str, bool | None]]:
    """(role, content, flag) each.

    Raises:
        ValueError: no list of messages, an unknown role, an empty message, none of the assistant's, or a flag that is
            neither true nor false, or true of another's.
    """
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError("it must be a list of objects with role and content, or from and value")
    found = []
    for number, one in enumerate(value, 1):
        role, content = one.get("role", one.get("from")), one.get("content", one.get("value"))
        if not isinstance(role, str) or role not in ROLES:
            raise ValueError(f"message {number} is of '{role}', none of {', '.join(ROLES)}")
        if not isinstance(content, str) or not content.strip():
            raise ValueError(f"message {number} has no text")
        flag = one.get("learn", one.get("train"))
        if flag not in (None, True, False) or (flag and ROLES[role] != "assistant"):
            raise ValueError(f"message {number} has the flag {flag!r}: true and false are for what the assistant says")
        found.append((ROLES[role], as_text(content), flag))
    if not any(role == "assistant" for role, _, _ in found):
        raise ValueError("no message is the assistant's, so there is nothing to learn")
    return found


def example(row: dict[str, Any], eos: str) -> Chat:
    """The messages; what ends them is the template's."""
    flags = [flag for *_, flag in row["messages"]]
    learned = None if set(flags) <= {None} else tuple(i for i, flag in enumerate(flags) if flag)
    return Chat(tuple((role, content) for role, content, _ in row["messages"]), learned)


SOURCE = Source(COLUMNS, lambda row: None, formats=(".jsonl", ".json"), take={"messages": messages})
TASK = Task(("lm",), COLUMNS, partial(load_table, source=SOURCE), example, ("perplexity",))
