"""Conversations: rows with `messages` of role and content, or ShareGPT's `conversations` of from and value."""

from functools import partial
from typing import Any

from ftjax.data.tasks.table import Source, as_text, load_table
from ftjax.data.tasks.task import Chat, Task

COLUMNS = {"messages": "messages|conversations"}
ROLES = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
}  # fmt: skip


def messages(value: Any) -> list[tuple[str, str]]:
    """(role, content) each.

    Raises:
        ValueError: no list of messages, an unknown role, an empty message, or none of the assistant's.
    """
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError("it must be a list of objects with role and content, or from and value")
    found = []
    for number, one in enumerate(value, 1):
        role, content = one.get("role", one.get("from")), one.get("content", one.get("value"))
        if role not in ROLES:
            raise ValueError(f"message {number} is of '{role}', none of {', '.join(ROLES)}")
        if not isinstance(content, str) or not content.strip():
            raise ValueError(f"message {number} has no text")
        found.append((ROLES[role], as_text(content)))
    if not any(role == "assistant" for role, _ in found):
        raise ValueError("no message is the assistant's, so there is nothing to learn")
    return found


def example(row: dict[str, Any], eos: str) -> Chat:
    """The messages; what ends them is the template's."""
    return Chat(tuple(map(tuple, row["messages"])))


SOURCE = Source(COLUMNS, lambda row: None, formats=(".jsonl", ".json"), take={"messages": messages})
TASK = Task(("lm",), COLUMNS, partial(load_table, source=SOURCE), example, ("perplexity",))
