"""Checks of what a chat template makes of a conversation, and the repair of what it leaves out.

Three things are missed without a word: the BOS token, the header of the turn that the model is to write, and a system
turn.
"""

import re
import uuid
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradsteer.data.assistant_mask import render
from gradsteer.data.chat_formats import Message
from gradsteer.data.template_options import template_options
from gradsteer.data.thoughts import TAGS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FOLD = "--data.system_role fold puts a leading one into the user's first turn"
_SHOWN = 400  # characters


def own_bos(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The BOS token that the tokenizer puts before a text by itself; None if it puts none there."""
    bos = tokenizer.bos_token_id
    return bos if bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos] else None


def complete_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Adds to a chat template what it leaves out, with a warning, so that saving the tokenizer saves it too.

    That is the BOS token, where the tokenizer puts one before any other text by itself, and the header of the
    assistant's turn behind a prompt, where the template ignores `add_generation_prompt`: what its own assistant turns
    begin with is written there.

    Args:
        tokenizer: changed in place. A template of several named ones, or one that refuses a plain user turn, is left
            as it is; `check_header` looks at what it makes of real prompts.
    """
    template = tokenizer.chat_template
    if not isinstance(template, str):
        return
    probe = [{"role": "user", "content": f"user{uuid.uuid4().hex}"}]
    try:
        text = render(tokenizer, probe)
    except ValueError:
        return
    bos, added = own_bos(tokenizer), []
    if bos is not None and list(tokenizer(text, add_special_tokens=False)["input_ids"])[:1] != [bos]:
        template = "{{- bos_token }}" + template
        text = f"{tokenizer.bos_token}{text}"
        added.append(f"no BOS token, which the tokenizer puts before a text by itself: {tokenizer.bos_token} is added")
    if header := missing_header(tokenizer, probe):
        template += "{%- if add_generation_prompt %}{{- " + ascii(header) + " }}{%- endif %}"
        added.append(f"no header of the assistant's turn behind a prompt: {header!r}, as its assistant turns begin, is")
        added[-1] += " added"
    if not added:
        return
    before, tokenizer.chat_template = tokenizer.chat_template, template
    if render(tokenizer, probe) != text or missing_header(tokenizer, probe):
        tokenizer.chat_template = before  # `check_header` and `check_bos` refuse it where it matters
        return
    for what in added:
        warnings.warn(f"the chat template of {tokenizer.name_or_path!r} writes {what}", stacklevel=3)


def missing_header(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], where: str = "") -> str | None:
    """What the template's assistant turns begin with and its prompts do not end in.

    Args:
        tokenizer: a tokenizer with a chat template.
        messages: the turns to be answered.
        where: where they are from, for messages.

    Returns:
        The header, without blanks at its end; empty if nothing is missing; None if something may be missing and the
        assistant's turns do not show it.
    """
    plain, prompt = (render(tokenizer, messages, where, add_generation_prompt=added) for added in (False, True))
    if not prompt.startswith(plain) or prompt[len(plain) :].strip():
        return ""
    stand_in = f"content{uuid.uuid4().hex}"
    try:
        pieces = render(tokenizer, [*messages, {"role": "assistant", "content": stand_in}]).split(stand_in)
    except ValueError:
        return None
    if len(pieces) != 2 or not pieces[0].startswith(plain):
        return None
    header = pieces[0][len(plain) :]
    return header.removeprefix(prompt[len(plain) :]).rstrip(" ") if header.strip() else ""


def check_header(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], where: str = "") -> None:
    """Refuses a template that does not write the header of the assistant's turn behind a prompt.

    Args:
        tokenizer: a tokenizer with a chat template, as `complete_template` left it.
        messages: the turns to be answered.
        where: where they are from, for messages.

    Raises:
        ValueError: it does not, or it refuses the turns.
    """
    if missing_header(tokenizer, messages, where) != "":
        ending = render(tokenizer, messages, where, add_generation_prompt=True)[-40:]
        raise ValueError(
            f"{where}the chat template of {tokenizer.name_or_path!r} does not write the header of the assistant's turn "
            f"behind a prompt (add_generation_prompt), which ends in {ending!r}; set another chat_template"
        )


def check_turns(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], where: str = "") -> None:
    """Refuses a template that leaves the text of a user's or system's turn out, or writes a system turn more than once.

    It looks once at every sequence of roles.

    Args:
        tokenizer: a tokenizer with a chat template.
        messages: the turns.
        where: where they are from, for messages.

    Raises:
        ValueError: it does, or it refuses the turns.
    """
    # where an assistant's turn is learned, `mask_assistant` looks for it
    turns = [turn for turn, each in enumerate(messages) if each["role"] != "assistant" and each["content"].strip()]
    key = (str(tokenizer.chat_template), *(message["role"] for message in messages))
    checked = template_options(tokenizer).checked
    if not turns or key in checked:
        return
    for turn in turns:
        stand_in, role = f"content{uuid.uuid4().hex}", messages[turn]["role"]
        marked = [*messages[:turn], {**messages[turn], "content": stand_in}, *messages[turn + 1 :]]
        count = render(tokenizer, marked, where).count(stand_in)
        if count == 0 or (count > 1 and role == "system"):
            said = f"leaves the text of a {role} turn out" if count == 0 else f"writes a {role} turn {count} times"
            advice = _FOLD if role == "system" else "set another chat_template"
            raise ValueError(f"{where}the chat template of {tokenizer.name_or_path!r} {said}; {advice}")
    checked.add(key)


def check_bos(tokenizer: "PreTrainedTokenizerBase", token_ids: Sequence[int], where: str = "") -> None:
    """Refuses a text without the BOS token that its tokenizer puts before a text by itself, or with several.

    Raises:
        ValueError: it is not there exactly once.
    """
    count = next((i for i, token in enumerate(token_ids) if token != tokenizer.bos_token_id), len(token_ids))
    if count != 1 and own_bos(tokenizer) is not None:
        raise ValueError(
            f"{where}the text begins with {count} of the BOS token {tokenizer.bos_token!r} where the tokenizer of "
            f"{tokenizer.name_or_path!r} puts one by itself; set another chat_template"
        )


def special_tokens_in(
    tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[tuple[str, Sequence[Message]]], unit: str
) -> str | None:
    """What to say of conversations whose own texts hold special tokens; None where none does.

    Args:
        tokenizer: reads them as such, beside those that its chat template writes. Tags of thoughts are none.
        conversations: ``file:line`` and turns of each.
        unit: what they are, in the plural.
    """
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens = {*map(str, tokenizer.all_special_tokens), *added}.difference(*TAGS)
    pattern = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")
    found = [
        (source, match[0])
        for source, messages in conversations
        if (match := next(filter(None, (pattern.search(message["content"]) for message in messages)), None))
    ]
    if not found:
        return None
    source, token = found[0]
    return (
        f"{len(found)} of {len(conversations)} {unit} hold special tokens in their own texts (the first: {token!r} at "
        f"{source}): they are read as such, beside those that the chat template writes"
    )


def other_beginning(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> str | None:
    """Says so where a model that learns these turns is later given another prompt than the last answer follows.

    Args:
        tokenizer: a tokenizer with a chat template.
        messages: the turns, which the template takes.
    """
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        return None
    prompt = render(tokenizer, messages[:-1], add_generation_prompt=True)
    if render(tokenizer, messages).startswith(prompt):
        return None
    return (
        f"the prompt that the model is to answer ends in {prompt[-40:]!r}, and its turns in the training data do not "
        "begin so: it is not trained on the prompts that it is given later"
    )


def shown_prompt(tokenizer: "PreTrainedTokenizerBase", token_ids: Sequence[int]) -> str:
    """A prompt as the model reads it, in quotes, with its number of tokens."""
    text = str(tokenizer.decode(list(token_ids)))
    shown = text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} [...] {text[-_SHOWN // 2 :]}"
    return f"{ascii(shown)} ({len(token_ids)} tokens)"
