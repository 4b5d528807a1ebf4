"""Examples of a set as token ids within a length limit, and what the limit costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradsteer.data.chat import IGNORE_INDEX, EncodedExample, LossMask, encode_chat
from gradsteer.data.chat_formats import ChatExample
from gradsteer.data.prompt_check import own_bos, special_tokens_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Truncation:
    """Counts over the examples of a set, as they are cut on the right.

    Attributes:
        max_length: maximum tokens per example; None cuts none.
        num_examples: examples seen.
        num_cut: longer ones.
        num_dropped: those without a target token, cut or not.
        num_targets: target tokens of all examples, uncut.
        targets_lost: target tokens beyond the limit.
        stops_lost: of these, the last ones of a turn: the end-of-turn tokens that a model learns to stop by.
        special_tokens: what to say of examples whose own texts hold special tokens of the tokenizer.
    """

    max_length: int | None
    num_examples: int = 0
    num_cut: int = 0
    num_dropped: int = 0
    num_targets: int = 0
    targets_lost: int = 0
    stops_lost: int = 0
    special_tokens: str | None = None

    def cut(self, example: EncodedExample, *, ends: bool = True) -> EncodedExample | None:
        """The example within the limit; None if no target token is left of it.

        Args:
            example: whole.
            ends: whether each run of target tokens ends with a stop token. A reply that was cut at sampling does not.
        """
        self.num_examples += 1
        self.num_targets += example.num_target_tokens
        if example.num_target_tokens == 0:
            self.num_dropped += 1
            return None
        if self.max_length is None or len(example.input_ids) <= self.max_length:
            return example
        kept = EncodedExample(example.input_ids[: self.max_length], example.labels[: self.max_length])
        self.num_cut += 1
        self.targets_lost += example.num_target_tokens - kept.num_target_tokens
        beyond = [*example.labels[self.max_length :], IGNORE_INDEX]
        lost = sum(
            label != IGNORE_INDEX and after == IGNORE_INDEX for label, after in zip(beyond, beyond[1:], strict=False)
        )
        self.stops_lost += lost if ends else 0
        if kept.num_target_tokens == 0:
            self.num_dropped += 1
            return None
        return kept

    def drop(self) -> None:
        """Counts an example without a target token."""
        self.num_examples += 1
        self.num_dropped += 1

    def warning(self, name: str, advice: str) -> str | None:
        """What to say of the set before anything is computed with it; None if there is nothing to say.

        Args:
            name: the set's.
            advice: how to keep more, such as `advice_on` gives.
        """
        lines = [self._lost(name, advice)]
        lines.append(self.special_tokens and f"{name}: {self.special_tokens}")
        return "\n".join(filter(None, lines)) or None

    def _lost(self, name: str, advice: str) -> str | None:
        dropped = f"dropped {self.num_dropped} of {self.num_examples} examples"
        if not self.num_cut:
            return f"{name}: {dropped} whose answer is missing: they end within a thought" if self.num_dropped else None
        dropped = f"; {dropped} that keep no target token" if self.num_dropped else ""
        return (
            f"{name}: max_length={self.max_length} cuts {self.num_cut} of {self.num_examples} examples: lost "
            f"{self.targets_lost:,} of {self.num_targets:,} target tokens, {self.stops_lost:,} stop tokens among them"
            f"{dropped} ({advice})"
        )

    def metadata(self) -> dict[str, str]:
        """The counts as a file's metadata; none if no example is cut."""
        counts = {
            "examples_cut": self.num_cut,
            "target_tokens_lost": self.targets_lost,
            "stop_tokens_lost": self.stops_lost,
        }
        return {key: str(count) for key, count in counts.items()} if self.num_cut else {}


def advice_on(max_length: int, tokenizer: "PreTrainedTokenizerBase") -> str:
    """How to keep more than a length limit, which the tokenizer's own caps."""
    own = tokenizer.model_max_length
    return "a larger --data.max_length keeps more" if max_length < own else "the tokenizer's model_max_length"


def encode_examples(
    tokenizer: "PreTrainedTokenizerBase",
    examples: Sequence[ChatExample],
    *,
    loss_mask: LossMask,
    max_length: int | None,
    num_ids: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> tuple[list[EncodedExample | None], Truncation]:
    """Encodes the examples of a set.

    Args:
        tokenizer: a fast tokenizer, with a chat template unless all is raw text.
        examples: as `read_chat_examples` gives them.
        loss_mask: which tokens are targets.
        max_length: maximum tokens per example; None cuts none.
        num_ids: token ids of the model, if known.
        tick: called after each example.

    Returns:
        Each example, None if `max_length` leaves no target token of it; and what `max_length` cost.

    Raises:
        ValueError: raw text, which has no assistant's tokens, under the assistant's mask; a token that the model has no
            row for; or as for `encode_chat`.
    """
    truncation = Truncation(max_length)
    truncation.special_tokens = special_tokens_in(
        tokenizer, [(example.source, example.messages) for example in examples], "examples"
    )
    encoded: list[EncodedExample | None] = []
    for example in examples:
        whole = (
            encode_chat(
                *(tokenizer, example.messages),
                loss_mask=loss_mask,
                source=example.source,
                unlearned=example.unlearned,
            )
            if example.text is None
            else encode_text(tokenizer, example.text, loss_mask=loss_mask, source=example.source)
        )
        if whole is None:
            truncation.drop()
        elif num_ids is not None and (largest := max(whole.input_ids)) >= num_ids:
            raise ValueError(
                f"{example.source}: {tokenizer.convert_ids_to_tokens(largest)!r} is token {largest}, and the model has "
                f"rows for 0 to {num_ids - 1}; use the tokenizer that the model was saved with, or resize its embedding"
            )
        encoded.append(None if whole is None else truncation.cut(whole, ends=example.text is None))
        tick()
    return encoded, truncation


def encode_text(
    tokenizer: "PreTrainedTokenizerBase", text: str, *, loss_mask: LossMask, source: str = ""
) -> EncodedExample:
    """Encodes raw text as it stands, with the special tokens that the tokenizer itself puts around a text.

    A BOS token that the text begins with is not written twice.

    Raises:
        ValueError: the mask is the assistant's, or the text is a single token, which nothing predicts.
    """
    where = f"{source}: " if source else ""
    if loss_mask != "full":
        raise ValueError(f"{where}raw text has no assistant turn: accepted with --data.loss_mask full only")
    if own_bos(tokenizer) is not None:
        text = text.removeprefix(str(tokenizer.bos_token))
    input_ids = list(tokenizer(text)["input_ids"])
    example = EncodedExample(input_ids, [IGNORE_INDEX, *input_ids[1:]])
    if example.num_target_tokens == 0:
        raise ValueError(f"{where}text is {text[:60]!r}, a single token; expected a longer one")
    return example
