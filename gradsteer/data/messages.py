"""Messages of a conversation as data sets write them, as `{"role", "content"}`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gradsteer.data.cells import is_empty
from gradsteer.data.row_files import parse_cell

Message = dict[str, str]

ROLES = ("system", "user", "assistant")
# ShareGPT's role names; its datasets mix both kinds.
_ROLE_ALIASES = {role: role for role in ROLES} | {"human": "user", "gpt": "assistant"}
# what a message does beside saying something: leaving it out would change what the conversation means
_REFUSED = ("tool_calls", "function_call", "tool_call_id")


@dataclass
class Turns:
    """Turns of a conversation.

    Attributes:
        messages: the turns.
        unlearned: indices of those whose `weight` is 0.
        unused: names of message keys that hold something and are not read, as ``messages.KEY``.
    """

    messages: list[Message] = field(default_factory=list)
    unlearned: list[int] = field(default_factory=list)
    unused: set[str] = field(default_factory=set)

    def __add__(self, other: "Turns") -> "Turns":
        shifted = [len(self.messages) + index for index in other.unlearned]
        return Turns(self.messages + other.messages, self.unlearned + shifted, self.unused | other.unused)


def parse_turns(value: Any, name: str, where: str) -> Turns:
    """The turns in a cell.

    Args:
        value: a list of messages, a JSON list in a text where `name` is messages, or else a text: one turn.
        name: ``messages``, ``prompt`` or ``completion``, whose text is the user's turn or the assistant's.
        where: ``file:line``, for messages.

    Raises:
        ValueError: it is anything else, a role is unknown, or a message holds what cannot be used.
    """
    if name == "messages" and isinstance(value, str):
        value = parse_cell(value, where)
    if isinstance(value, str):
        return Turns([{"role": "assistant" if name == "completion" else "user", "content": value}])
    if not isinstance(value, list):
        accepted = "a list of messages" if name == "messages" else "a string or a list of messages"
        raise ValueError(f"{where}: {name} is {value!r:.80}; expected {accepted}")
    turns = Turns()
    for index, message in enumerate(value):
        turns += _parse_message(message, name, f"{where}: {name}[{index}]")
    return turns


def _parse_message(message: Any, name: str, where: str) -> Turns:
    keys = ("role", "content")
    if isinstance(message, dict) and message.get("role") is None and "from" in message:
        keys = ("from", "value")
    if not isinstance(message, dict) or not all(key in message for key in keys):
        raise ValueError(f'{where} is {message!r:.80}; expected {{"role", "content"}} or {{"from", "value"}}')
    role, content = (message[key] for key in keys)
    if not isinstance(role, str) or role not in _ROLE_ALIASES:
        raise ValueError(f"{where} has the role {role!r}; accepted: {', '.join(_ROLE_ALIASES)}")
    for key in _REFUSED:
        if not is_empty(message.get(key)):
            raise ValueError(
                f"{where} has {key} ({message[key]!r:.60}), which would not be rendered; accepted: messages of text "
                "alone (leave such rows out)"
            )
    weight = message.get("weight")
    if weight not in (None, 0, 1):
        raise ValueError(f"{where} has the weight {weight!r}; accepted: 0 (not learned) or 1")
    unused = {f"{name}.{key}" for key, held in message.items() if key not in (*keys, "weight") and not is_empty(held)}
    parsed = {"role": _ROLE_ALIASES[role], "content": _parse_content(content, where)}
    return Turns([parsed], [0] if weight == 0 and weight is not None else [], unused)


def _parse_content(content: Any, where: str) -> str:
    """A text, or text parts joined."""
    if isinstance(content, list) and content:
        return "".join(_texts(content, where))
    if not isinstance(content, str):
        raise ValueError(f"{where} has the content {content!r:.80}; expected a string, or a list of text parts")
    return content


def _texts(parts: list[Any], where: str) -> Iterator[str]:
    for part in parts:
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
            yield part["text"]
        else:
            kind = part.get("type") if isinstance(part, dict) else part
            raise ValueError(
                f'{where} has a content part of type {kind!r:.60}; accepted: {{"type": "text", "text": "..."}}'
            )
