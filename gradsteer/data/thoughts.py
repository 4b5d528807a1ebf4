"""Replies of models that think first: where the thought ends and the answer begins.

Thoughts are closed by `</think>` (or another of `TAGS`), and opened by `<think>` in the reply or at the end of the
prompt. In the harmony format the answer is the message on the final channel.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TAGS = (  # that open and close a thought
    ("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"), ("<thought>", "</thought>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)  # fmt: skip
_OPENINGS = tuple(opening for opening, _ in TAGS)
_CLOSING = f"(?:{'|'.join(re.escape(closing) for _, closing in TAGS)})"
_END = re.compile(_CLOSING + r"\s*")
# what closes a thought that nothing opened, of a model that does not know the tag, is on a line of its own
_OWN_LINE = re.compile(rf"(?m)^[ \t]*{_CLOSING}[ \t]*$\s*")
_CHANNEL = "<|channel|>"
_FINAL = re.compile(r"<\|channel\|>\s*final\b(?:(?!<\|message\|>).)*<\|message\|>", re.DOTALL)
_MESSAGE = re.compile(r"<\|message\|>(.*?)(?=<\|(?:return|end|call|start|channel)\|>|\Z)", re.DOTALL)
_LAST_PROMPT_TOKENS = 16  # enough for the header that opens a thought


@dataclass(frozen=True)
class Reply:
    """A reply that holds a thought.

    Attributes:
        thought: the text before the answer, without what opens and closes it.
        answer: the text behind the thought; None if the reply ended within it.
        num_thought_tokens: how many of the reply's tokens come before the answer's first.
    """

    thought: str
    answer: str | None
    num_thought_tokens: int


def knows_thoughts(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a tokenizer's vocabulary or chat template has a tag that closes thoughts."""
    tokens = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    return any(closing in tokens or closing in str(tokenizer.chat_template) for _, closing in TAGS)


def split_text(text: str, *, opened: bool = False, known: bool = True) -> tuple[str, str | None] | None:
    """Thought and answer of a reply's text; None if it holds no thought.

    Args:
        text: the reply.
        opened: whether its prompt ends in the opening of a thought.
        known: whether the model that wrote it knows the tags (`knows_thoughts`). In other texts a closing tag that
            nothing opened counts on a line of its own alone: they may speak of it.

    Returns:
        The thought and the answer, which is behind the last closing tag and None where there is none.
    """
    opened = opened or text.lstrip().startswith(_OPENINGS)
    ends = list((_END if opened or known else _OWN_LINE).finditer(text))
    if ends:
        return _inside(text[: ends[-1].start()]), text[ends[-1].end() :]
    return (_inside(text), None) if opened else None


def answer_start(text: str, *, known: bool = True) -> int | None:
    """Where the answer begins in the text of an assistant's turn, special tokens included: behind its thought.

    Args:
        text: the turn's.
        known: as in `split_text`.

    Returns:
        0 for a text without a thought; None for a thought without an answer.
    """
    split = _split_harmony(text, "") or split_text(text, known=known)
    if split is None:
        return 0
    return None if split[1] is None else len(text) - len(split[1])


def split_reply(
    tokenizer: "PreTrainedTokenizerBase", prompt_token_ids: Sequence[int], token_ids: Sequence[int]
) -> Reply | None:
    """Thought and answer of a sampled reply; None if it holds no thought.

    Args:
        tokenizer: of the model that wrote it.
        prompt_token_ids: what it answers.
        token_ids: the reply.
    """
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    harmony = _CHANNEL in special
    # tags that are special tokens are seen in the text only if these are kept
    keeps = harmony or any(tag in special for pair in TAGS for tag in pair)

    def text_of(ids: Sequence[int], *, skip: bool = not keeps) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=skip))

    ending = text_of(prompt_token_ids[-_LAST_PROMPT_TOKENS:], skip=False)
    text = text_of(token_ids)
    if harmony:
        split = _split_harmony(text, ending)
    else:
        opened = ending.rstrip().endswith(_OPENINGS)
        split = split_text(text, opened=opened, known=knows_thoughts(tokenizer))
    if split is None:
        return None
    thought, answer = (None if part is None else _without(part, special) for part in split)
    if split[1] is None:
        return Reply(thought or "", None, len(token_ids))
    return Reply(thought or "", answer, _tokens_before(token_ids, len(text) - len(split[1]), text_of))


def end_of_thought(tokenizer: "PreTrainedTokenizerBase", prompt_token_ids: Sequence[int]) -> list[int]:
    """What behind a prompt makes the answer come at once: the end of a thought that it opens; else nothing.

    Args:
        tokenizer: of the model that is to answer.
        prompt_token_ids: what it is to answer.
    """
    ending = str(tokenizer.decode(list(prompt_token_ids[-_LAST_PROMPT_TOKENS:]), skip_special_tokens=False))
    closing = next((closing for opening, closing in TAGS if ending.rstrip().endswith(opening)), None)
    text = "" if closing is None else f"\n{closing}\n\n" if ending.endswith("\n") else f"\n\n{closing}\n\n"
    if _CHANNEL in tokenizer.get_vocab() and ending.endswith("<|start|>assistant"):
        text = f"{_CHANNEL}final<|message|>"
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def _split_harmony(text: str, prompt_ending: str) -> tuple[str, str | None] | None:
    """As `split_text`, of a reply in the harmony format."""
    finals = list(_FINAL.finditer(text))
    if finals:
        return _messages(text[: finals[-1].start()]), text[finals[-1].end() :]
    _, opened, channel = prompt_ending.rpartition(_CHANNEL)
    if opened and not channel.lstrip().startswith("final"):
        return _messages(f"<|message|>{text}"), None
    return (_messages(text), None) if _CHANNEL in text else None


def _messages(text: str) -> str:
    """The contents of a text's messages, one below the other."""
    return "\n\n".join(found.strip() for found in _MESSAGE.findall(text))


def _inside(text: str) -> str:
    """A thought without the tag that opens it, and without blanks around it."""
    text = text.strip()
    return next((text.removeprefix(tag).strip() for tag in _OPENINGS if text.startswith(tag)), text)


def _without(text: str, special: set[str]) -> str:
    found = [token for token in special if token in text]
    for token in sorted(found, key=len, reverse=True):
        text = text.replace(token, "")
    return text


def _tokens_before(token_ids: Sequence[int], num_chars: int, text_of: Callable[[Sequence[int]], str]) -> int:
    """The number of first tokens that end before a place in the text; a token across it is not one of them."""
    low, high = 0, len(token_ids)
    while low < high:
        middle = (low + high) // 2
        if len(text_of(token_ids[:middle])) < num_chars:
            low = middle + 1
        else:
            high = middle
    return low - (len(text_of(token_ids[:low])) > num_chars)
