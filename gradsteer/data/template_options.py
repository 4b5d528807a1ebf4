"""How conversations are put into a tokenizer's chat template: the user's options, and system turns.

The options travel with the tokenizer, so that training data, prompts, piles and held-out text are all rendered alike.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from gradsteer.data.chat_formats import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SystemRole = Literal["template", "fold"]
_ATTRIBUTE = "gradsteer_template_options"
# what `apply_chat_template` itself takes, or what is set for every conversation
_RESERVED = ("messages", "conversation", "chat_template", "add_generation_prompt", "tokenize", "continue_final_message")


@dataclass(frozen=True)
class TemplateOptions:
    """Options of rendering.

    Attributes:
        kwargs: variables given to the template, such as ``{"enable_thinking": False}``.
        system_role: what becomes of a leading system turn: ``template`` gives it to the template, ``fold`` puts its
            text before the user's first turn.
        checked: the sequences of roles whose system turns were checked, with the template that renders them.
    """

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    system_role: SystemRole = "template"
    checked: set[tuple[str, ...]] = field(default_factory=set, compare=False, repr=False)

    @property
    def given(self) -> dict[str, Any]:
        """The options that are not the defaults, as plain values."""
        found: dict[str, Any] = {"template_kwargs": dict(self.kwargs)} if self.kwargs else {}
        return found | ({} if self.system_role == "template" else {"system_role": self.system_role})


def template_options(tokenizer: "PreTrainedTokenizerBase") -> TemplateOptions:
    """The options that a tokenizer's conversations are rendered with."""
    found = vars(tokenizer).get(_ATTRIBUTE)
    if found is None:
        found = vars(tokenizer)[_ATTRIBUTE] = TemplateOptions()
    assert isinstance(found, TemplateOptions)
    return found


def use_template_options(
    tokenizer: "PreTrainedTokenizerBase",
    kwargs: Mapping[str, Any] | None = None,
    system_role: SystemRole = "template",
) -> None:
    """Renders all further conversations of a tokenizer with these options.

    Args:
        tokenizer: a tokenizer with a chat template.
        kwargs: variables for the template.
        system_role: as in `TemplateOptions`.

    Raises:
        ValueError: the template does not look at a variable, which would have no effect, or `system_role` is unknown.
    """
    if system_role not in get_args(SystemRole):
        raise ValueError(f"data.system_role is {system_role!r}; accepted: {', '.join(get_args(SystemRole))}")
    for name in kwargs or ():
        if name in _RESERVED or not re.search(rf"\b{re.escape(name)}\b", tokenizer.get_chat_template()):
            raise ValueError(
                f"data.template_kwargs has {name!r}, which the chat template of {tokenizer.name_or_path!r} does not "
                "look at; accepted: variables that it names"
            )
    vars(tokenizer)[_ATTRIBUTE] = TemplateOptions(dict(kwargs or {}), system_role)


def with_system(messages: Sequence[Message], system_prompt: str | None) -> list[Message]:
    """The turns behind a system prompt; as they are where there is none."""
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    return [*system, *messages]


def fold_system(messages: Sequence[Message], where: str = "") -> list[Message]:
    """The same turns with a leading system turn's text before the first user turn's, a blank line between them.

    Raises:
        ValueError: a system turn is not the first one, or no user turn follows it.
    """
    if all(message["role"] != "system" for message in messages):
        return list(messages)
    first, *others = messages
    roles = ", ".join(message["role"] for message in messages)
    if first["role"] != "system" or not others or others[0]["role"] != "user":
        raise ValueError(
            f"{where}data.system_role fold needs a user turn behind the system turn; the turns are {roles}"
        )
    if any(message["role"] == "system" for message in others):
        raise ValueError(f"{where}data.system_role fold takes one system turn, the first; the turns are {roles}")
    text = "\n\n".join(part for part in (first["content"], others[0]["content"]) if part)
    return [{**others[0], "content": text}, *others[1:]]
