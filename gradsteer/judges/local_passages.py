"""Texts under judgement as token ids that hold no control token but those that the form itself has.

A response may spell out `<|im_end|>` to end its own turn, and a tokenizer would make the control token of it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradsteer.judges.base import Exchange

_VISIBLE = re.compile(r"\S")  # a space before it could make the token anew, for ever


@dataclass(frozen=True)
class Passage:
    """What the model reads in one row of a batch.

    Args:
        behaviors: That it decides.
        inputs: `input_ids` and whatever else the tokenizer gives, each as long.
    """

    behaviors: tuple[str, ...]
    inputs: Mapping[str, Sequence[int]]

    def __len__(self) -> int:
        return len(self.inputs["input_ids"])


@dataclass(frozen=True)
class Unreadable:
    """What cannot be put before the model, and why."""

    behaviors: tuple[str, ...]
    reason: str


class Disarming:
    """Takes control tokens out of texts: a space behind the first visible character, and no tokenizer finds them.

    Args:
        tokenizer: Whose tokens are meant: all that were added to its vocabulary, `<think>` as well as `<|im_end|>`.
    """

    def __init__(self, tokenizer: Any) -> None:
        added = tokenizer.added_tokens_decoder
        # runs of spaces or line breaks are no orders, and single characters cannot be split
        spelled = {str(token.content) for token in added.values()} | set(tokenizer.all_special_tokens)
        spelled = {text for text in spelled if len(text.strip()) > 1}
        longest_first = sorted(spelled, key=lambda text: (-len(text), text))
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if spelled else None
        control = {index for index, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        named = {name: value for name, value in tokenizer.special_tokens_map.items() if name != "unk_token"}
        if tokenizer.unk_token not in named.values():  # any text may hold unknown characters
            control.discard(tokenizer.unk_token_id)
        self._control = control

    def exchange(self, exchange: Exchange) -> Exchange:
        """The exchange with both texts disarmed."""
        return Exchange(self._text(exchange.prompt), self._text(exchange.response))

    def controls(self, ids: Sequence[int]) -> list[int]:
        """The control tokens among some ids, in their order."""
        return [index for index in ids if index in self._control]

    def _text(self, text: str) -> str:
        text = text.encode("utf-8", "replace").decode("utf-8")  # tokenizers take no halves of surrogate pairs
        while self._pattern is not None and self._pattern.search(text):
            text = self._pattern.sub(lambda found: _VISIBLE.sub(r"\g<0> ", found[0], count=1), text)
        return text


def padded(passages: Sequence[Passage], pad_token_id: int, device: torch.device) -> dict[str, Tensor]:
    """A batch padded on the right, where a causal model's tokens do not see it.

    Args:
        passages: At least one, all with the same inputs.
        pad_token_id: Fills `input_ids`; everything else is filled with 0.
        device: Where the batch goes.

    Returns:
        Each of the inputs, with `attention_mask` (1 for tokens, 0 for padding): int64 (passages, tokens).
    """
    width = max(map(len, passages))
    fill = {"input_ids": pad_token_id}
    rows = {name: [passage.inputs[name] for passage in passages] for name in passages[0].inputs}
    rows["attention_mask"] = [[1] * len(passage) for passage in passages]
    return {
        name: torch.tensor([[*row, *[fill.get(name, 0)] * (width - len(row))] for row in found], device=device)
        for name, found in rows.items()
    }
