"""Conversations as token ids and labels, encoded with the tokenizer's own chat template.

Labels are at their token's own position (the convention of `transformers`, where the loss shifts them) and -100
where nothing is learned. The assistant's tokens are what the model itself must emit: the content of each
assistant turn and the end-of-turn token, but not the role header or what the template writes after the turn.
"""

import json
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from gradsteer.data.assistant_mask import mask_assistant, render
from gradsteer.data.chat_formats import Message
from gradsteer.data.prompt_check import check_bos, check_turns, own_bos
from gradsteer.data.template_options import template_options
from gradsteer.records import text_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100  # the label of positions where nothing is learned

LossMask = Literal["assistant", "answer", "full"]
FinishReason = Literal["stop", "length"]

# No space after the last "Assistant:": byte-level tokenizers merge a space into the next word, so a prompt that
# ended in one would be continued with tokens that the model never saw there.
DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nAssistant:' }}{% endif %}"
)


@dataclass(frozen=True)
class EncodedExample:
    """One example as the model sees it.

    Attributes:
        input_ids: Token ids, without padding.
        labels: The same length; the token id where it is to be predicted, -100 elsewhere and always at position 0,
            which nothing predicts.
        weights: The same length; what each label's loss is multiplied by where a loss is weighted. None for 1.
    """

    input_ids: list[int]
    labels: list[int]
    weights: list[float] | None = None

    @property
    def num_target_tokens(self) -> int:
        """Number of predicted tokens: labels other than -100 after position 0."""
        labels = self.labels[1:]
        return len(labels) - labels.count(IGNORE_INDEX)

    def up_to(self, length: int) -> "EncodedExample":
        """Its first tokens; itself if it has no more."""
        if length >= len(self.input_ids):
            return self
        weights = None if self.weights is None else self.weights[:length]
        return EncodedExample(self.input_ids[:length], self.labels[:length], weights)


def encode_chat(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    *,
    loss_mask: LossMask,
    max_length: int | None = None,
    source: str = "",
    unlearned: Collection[int] = (),
) -> EncodedExample | None:
    """Render a conversation with the chat template and label the tokens to learn.

    Templates seldom mark the assistant's tokens, so their position is inferred. For each assistant turn the
    conversation is rendered again with a placeholder for that turn's content. What follows the placeholder shows
    where the content ends, whatever the template did to it (strip it, drop its thoughts). The content begins where
    the prompt before it ends, as rendered by `encode_prompt`, or at the placeholder if the template writes something
    else there. `{% generation %}` marks, if the template has them, narrow the content further.

    A token that straddles the boundary between header and content is labelled (unless it is a special token),
    because the content's first character needs it. The end-of-turn token is the first special token after the
    content, with at most white space between the two, which the model must write as well.

    Args:
        tokenizer: A fast tokenizer with a chat template.
        messages: The turns, `{"role", "content"}`.
        loss_mask: `assistant` labels the assistant's tokens, `answer` those of them behind a turn's thought (see
            `gradsteer.data.thoughts`), `full` every token.
        max_length: Maximum number of tokens, truncated on the right; None keeps all.
        source: The conversation's location, for error messages.
        unlearned: Indices of turns whose tokens are context only, whatever the mask.

    Returns:
        The example; None if `max_length` removes every target token, or with the mask `answer` if every turn ends
        within its thought, which the caller should report.

    Raises:
        ValueError: If the tokenizer has no chat template or is not a fast one, the template rejects the messages,
            the assistant's tokens cannot be inferred from its output, or there are none.
    """
    _check_choice("loss_mask", loss_mask, get_args(LossMask))
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length is {max_length}; expected at least 1, or None for no limit")
    where = f"{source}: " if source else ""
    if not tokenizer.is_fast:
        raise ValueError(
            f"{where}{type(tokenizer).__name__} is not a fast tokenizer and cannot say which characters its "
            "tokens stand for; load one that has a tokenizer.json"
        )
    check_turns(tokenizer, messages, where)
    text = render(tokenizer, messages, where)
    # The template writes the BOS token itself where the model wants one (`gradsteer.data.prompt_check`).
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    input_ids = list(encoding["input_ids"])
    check_bos(tokenizer, input_ids, where)
    labels = list(input_ids)
    if loss_mask != "full" or unlearned:
        mask = mask_assistant(
            *(tokenizer, messages, text, input_ids, encoding["offset_mapping"], where),
            _turns_to_mask(messages, loss_mask, unlearned, where),
            answers_only=loss_mask == "answer",
        )
        mask = [not chosen for chosen in mask] if loss_mask == "full" else mask
        labels = [token if chosen else IGNORE_INDEX for token, chosen in zip(input_ids, mask, strict=True)]
    labels[:1] = [IGNORE_INDEX]
    example = EncodedExample(input_ids, labels)
    if (
        example.num_target_tokens == 0
        and loss_mask == "answer"
        and _turns_to_mask(messages, loss_mask, unlearned, where)
    ):
        return None
    if example.num_target_tokens == 0:
        roles = ", ".join(message["role"] for message in messages)
        masked = ", each of the assistant's with weight 0" if unlearned else ""
        raise ValueError(f"{where}no token to learn: loss_mask={loss_mask!r} on turns of {roles}{masked}")
    if max_length is not None:
        example = EncodedExample(input_ids[:max_length], labels[:max_length])
    return example if example.num_target_tokens else None


def _turns_to_mask(
    messages: Sequence[Message], loss_mask: LossMask, unlearned: Collection[int], where: str
) -> set[int]:
    """The assistant's turns to find: those to learn, or, where everything else is learned, those not to."""
    turns = {turn for turn, message in enumerate(messages) if message["role"] == "assistant"}
    if loss_mask != "full":
        return turns.difference(unlearned)
    if others := sorted(set(unlearned) - turns):
        raise ValueError(
            f"{where}message {others[0]} is the {messages[others[0]]['role']}'s and has weight 0, which loss_mask "
            "'full' cannot leave out; accepted: weight 0 for the assistant's, or --data.loss_mask assistant"
        )
    return turns.intersection(unlearned)


def _check_choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name} is {value!r}; accepted: {', '.join(accepted)}")


def ensure_chat_template(tokenizer: "PreTrainedTokenizerBase") -> bool:
    r"""Give a tokenizer without a chat template `DEFAULT_CHAT_TEMPLATE`, with a warning.

    It writes `User: ...\nAssistant: ...` and the tokenizer's end-of-sequence token after each assistant turn; before
    them the BOS token, where the tokenizer puts one before a text by itself. A model has to be finetuned with it
    before it uses it.

    Args:
        tokenizer: Changed in place, so that saving it saves the template too.

    Returns:
        Whether it was set; False if the tokenizer already has a template.

    Raises:
        ValueError: If the tokenizer has no end-of-sequence token.
    """
    if tokenizer.chat_template is not None:
        return False
    if tokenizer.eos_token is None:
        raise ValueError(f"the tokenizer {tokenizer.name_or_path!r} has no eos_token to end a turn with")
    bos = "" if own_bos(tokenizer) is None else "{{ bos_token }}"
    tokenizer.chat_template = bos + DEFAULT_CHAT_TEMPLATE
    warnings.warn(
        f"the tokenizer {tokenizer.name_or_path!r} has no chat template; using plain 'User: ...' and "
        f"'Assistant: ...' lines, each answer ended by {tokenizer.eos_token}",
        stacklevel=2,
    )
    return True


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], source: str = "") -> list[int]:
    """Encode the turns to be answered, up to and including the header of the assistant's turn.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: The turns, `{"role", "content"}`.
        source: Their location, for error messages.

    Returns:
        Token ids; with a BOS token only if the template writes one.

    Raises:
        ValueError: If the tokenizer has no chat template or the template rejects the messages, leaves a system turn
            or the assistant's header out, or has no BOS token where the tokenizer puts one by itself.
    """
    where = f"{source}: " if source else ""
    check_turns(tokenizer, messages, where)
    text = render(tokenizer, messages, where, add_generation_prompt=True)
    token_ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    check_bos(tokenizer, token_ids, where)
    return token_ids


def encode_sampled(
    prompt_token_ids: Sequence[int],
    token_ids: Sequence[int],
    finish_reason: FinishReason,
    *,
    loss_mask: LossMask,
    num_thought_tokens: int = 0,
) -> EncodedExample:
    """Join a prompt and a response by their ids as sampled; rendering the text again would move spaces.

    Args:
        prompt_token_ids: What the model was given, as by `encode_prompt`.
        token_ids: What it wrote; with the end-of-turn token if and only if `finish_reason` is `stop`, so that a reply
            truncated at the length limit gets no end-of-turn token.
        finish_reason: `stop` or `length`.
        loss_mask: `assistant` labels the response, `answer` what is behind its thought, `full` every token.
        num_thought_tokens: how many of the response's tokens are its thought's.

    Returns:
        The example.

    Raises:
        ValueError: If the response has no tokens, or a choice is unknown.
    """
    _check_choice("loss_mask", loss_mask, get_args(LossMask))
    _check_choice("finish_reason", finish_reason, get_args(FinishReason))
    if not token_ids:
        raise ValueError("token_ids is empty; expected the ids of the sampled response")
    input_ids = [*prompt_token_ids, *token_ids]
    labels = list(input_ids)
    num_ignored = 0 if loss_mask == "full" else len(prompt_token_ids)
    num_ignored += num_thought_tokens if loss_mask == "answer" else 0
    labels[: max(1, num_ignored)] = [IGNORE_INDEX] * max(1, num_ignored)
    return EncodedExample(input_ids, labels)


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return 16 hex digits that are equal if two tokenizers give ids the same meaning.

    They depend on the vocabulary with its added tokens, the merges, the special tokens and the chat template, but not
    on the tokenizer's class, its padding or truncation settings, or where it was loaded from.
    """
    merges: Any = None
    if tokenizer.is_fast:
        merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("merges")
    vocabulary = sorted(tokenizer.get_vocab().items())
    parts = [vocabulary, merges, tokenizer.special_tokens_map, tokenizer.chat_template]
    return _short_digest(json.dumps(parts, sort_keys=True))


def template_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the chat template's digest (16 hex digits), for keys and metadata that must change with it.

    It covers the options that conversations are rendered with, too, where any are given.
    """
    template, options = tokenizer.chat_template, template_options(tokenizer).given
    return _short_digest(json.dumps([template, options] if options else template, sort_keys=True))


def _short_digest(text: str) -> str:
    return text_digest(text)[:16]


def collate(
    examples: Sequence[EncodedExample], pad_token_id: int, side: Literal["left", "right"] = "right"
) -> dict[str, Tensor]:
    """Pad examples to the longest.

    Args:
        examples: At least one.
        pad_token_id: Fills `input_ids`; any valid id works, because it is masked.
        side: Where the padding goes. On the left, a model with absolute positions also needs `position_ids`.

    Returns:
        `input_ids`, `attention_mask` (1 for tokens, 0 for padding) and `labels` (-100 for padding), int64,
        each of shape (batch, tokens); where an example has weights, `weights` too, float32 of that shape.

    Raises:
        ValueError: If there are no examples, or `side` is unknown.
    """
    _check_choice("side", side, ("left", "right"))
    if not examples:
        raise ValueError("examples is empty; expected at least one to collate")
    width = max(len(example.input_ids) for example in examples)

    def pad(values: Sequence[float], fill: float) -> list[float]:
        padding = [fill] * (width - len(values))
        return [*padding, *values] if side == "left" else [*values, *padding]

    columns = {
        "input_ids": torch.tensor([pad(example.input_ids, pad_token_id) for example in examples]),
        "attention_mask": torch.tensor([pad([1] * len(example.input_ids), 0) for example in examples]),
        "labels": torch.tensor([pad(example.labels, IGNORE_INDEX) for example in examples]),
    }
    if any(example.weights is not None for example in examples):
        columns["weights"] = torch.tensor([pad(weights_of(example), 1.0) for example in examples])
    return columns


def weights_of(example: EncodedExample) -> list[float]:
    """(tokens,): what each label's loss is multiplied by."""
    return [1.0] * len(example.labels) if example.weights is None else example.weights
