"""Finding the assistant's tokens in a conversation rendered by a chat template.

Most templates do not mark them, so their position is inferred from the template's own output.
"""

import re
import uuid
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from gradsteer.data.chat_formats import Message
from gradsteer.data.template_options import fold_system, template_options
from gradsteer.data.thoughts import answer_start, knows_thoughts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Llama 3.x templates write today's date into the system header unless given one, so the same data would encode
# differently tomorrow. This is the date that they fall back to. Templates without a date ignore it.
TEMPLATE_DATE = "26 Jul 2024"
_DAY = datetime.strptime(TEMPLATE_DATE, "%d %b %Y")
_PINNED: dict[str, Any] = {"date_string": TEMPLATE_DATE, "strftime_now": _DAY.strftime}


def mask_assistant(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    text: str,
    input_ids: list[int],
    offsets: Sequence[tuple[int, int]],
    where: str,
    turns: Collection[int],
    *,
    answers_only: bool = False,
) -> list[bool]:
    """Return, for each token, whether it is the assistant's, in the assistant turns of the given indices.

    With `answers_only`, of a turn with a thought, the answer's alone.
    """
    starts = _cover_gaps(offsets)
    ends = [end for _, end in offsets]
    special = set(tokenizer.all_special_ids)
    special |= {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    marks = _read_generation_marks(tokenizer, messages, input_ids, offsets)
    mask = [False] * len(input_ids)
    known = knows_thoughts(tokenizer)
    for turn in sorted(turns):
        start, end = _find_turn(tokenizer, messages, turn, text, where)
        thought = answer_start(text[start:end], known=known) if answers_only else 0
        if thought is None:
            continue
        start += thought
        # A special token that starts before the content belongs to the header and absorbed white space (Phi-3).
        content = {
            i
            for i, token in enumerate(input_ids)
            if max(start, starts[i]) < min(end, ends[i]) and (starts[i] >= start or token not in special)
        }
        behind = [i for i in range(len(input_ids)) if ends[i] > end]
        stop = next((i for i in behind if input_ids[i] in special), None)
        if stop is None or text[end : starts[stop]].strip():
            raise ValueError(
                f"{where}the chat template writes {text[end : end + 30]!r} after assistant turn {turn}, "
                "so the model would not learn to stop; expected one of the tokenizer's special tokens: set "
                "another chat_template, or register its end-of-turn token as special"
            )
        turn_tokens = content.union(i for i in behind if i <= stop)
        if marks is None or any(marks[i] for i in turn_tokens):
            for i in turn_tokens:
                mask[i] = marks is None or marks[i] or i == stop
    return mask


def _find_turn(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], turn: int, text: str, where: str
) -> tuple[int, int]:
    """Return the characters [start, end) of `text` that render the content of assistant turn `turn`."""
    stand_in = f"content{uuid.uuid4().hex}"
    marked = [*messages[:turn], {**messages[turn], "content": stand_in}, *messages[turn + 1 :]]
    pieces = render(tokenizer, marked, where).split(stand_in)
    problem = f"{where}the chat template does not show the tokens of assistant turn {turn}: "
    if len(pieces) != 2:
        raise ValueError(f"{problem}it writes the content {len(pieces) - 1} times; expected once")
    before, after = pieces
    if not text.endswith(after):
        content = messages[turn]["content"]
        raise ValueError(f"{problem}what it writes after the turn depends on its content, {content[:40]!r}")
    end = len(text) - len(after)
    start = len(before) if text.startswith(before) else None
    if turn > 0:
        prompt = render(tokenizer, messages[:turn], where, add_generation_prompt=True)
        between = before.removeprefix(prompt)
        if text.startswith(prompt) and (
            # The model itself writes white space after the prompt (Mistral, the default template). Other text is
            # an empty thought (Qwen3), which the model writes too, or else the role header, if the template
            # ignores add_generation_prompt.
            not between.strip() or prompt != render(tokenizer, messages[:turn], where)
        ):
            start = len(prompt)
    if start is None or start > end:
        raise ValueError(f"{problem}it renders the preceding turns differently once the turn is there")
    return start, end


def _cover_gaps(offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Return where each token starts, assigning characters that no token covers to the token after them.

    Some byte-level tokenizers report offsets without the leading space that the token includes.
    """
    starts = []
    reached = 0
    for start, end in offsets:
        starts.append(min(start, reached))
        reached = max(reached, end)
    return starts


def _read_generation_marks(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    input_ids: list[int],
    offsets: Sequence[tuple[int, int]],
) -> list[bool] | None:
    if not re.search(r"\{%-?\s*generation\s*-?%\}", tokenizer.get_chat_template()):
        return None
    options = template_options(tokenizer)
    encoding: Any = tokenizer.apply_chat_template(
        fold_system(messages) if options.system_role == "fold" else list(messages),
        return_dict=True,
        return_assistant_tokens_mask=True,
        **{**_PINNED, **options.kwargs},
    )
    assert list(encoding["input_ids"]) == input_ids
    marks = [bool(mark) for mark in encoding["assistant_masks"]]
    for i in range(1, len(marks)):
        # transformers marks only the first token of a marked span's last character; an emoji has several.
        marks[i] = marks[i] or (marks[i - 1] and offsets[i][0] < offsets[i - 1][1])
    return marks


def render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    where: str = "",
    add_generation_prompt: bool = False,
) -> str:
    """Renders messages with the tokenizer's chat template and its `template_options`.

    Raises:
        ValueError: the tokenizer has no template, there are no messages, or the template rejects them.
    """
    import jinja2

    if tokenizer.chat_template is None:
        raise ValueError(
            f"{where}the tokenizer {tokenizer.name_or_path!r} has no chat template; set its chat_template to "
            "the one that the model was trained with, or call gradsteer.data.chat.ensure_chat_template(tokenizer) "
            "for a plain one"
        )
    if not messages:
        raise ValueError(f"{where}no messages; expected at least one {{'role', 'content'}}")
    options = template_options(tokenizer)
    try:
        text = tokenizer.apply_chat_template(
            fold_system(messages, where) if options.system_role == "fold" else list(messages),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **{**_PINNED, **options.kwargs},
        )
    except (jinja2.TemplateError, TypeError, ZeroDivisionError, OverflowError) as error:  # what its sums may raise
        roles = ", ".join(message["role"] for message in messages)
        folding = "; --data.system_role fold puts the system text into the user's first turn"
        hint = folding if "system" in roles and options.system_role != "fold" else ""
        raise ValueError(f"{where}the chat template refuses turns of {roles}: {error}{hint}") from error
    assert isinstance(text, str)
    return text
