"""How a pile's token gradients are averaged, and what is counted for it.

* ``example``: mean over examples of (mean over the example's tokens of grad l_t), the project's formula;
* ``token``: sum over all tokens of grad l_t / number of tokens;
* ``sum``: mean over examples of (sum over tokens of grad l_t), the score function of the whole response.

Where examples have weights, each is as many examples as it weighs: all three are then weighted means.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

Reduction = Literal["example", "token", "sum"]


def example_weights(counts: Tensor, reduction: Reduction, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight of each example's summed loss in the pile's objective, before the final division.

    Args:
        counts: (batch,) number of labelled tokens; 0 for a padding example, which then weighs nothing.
        reduction: see the module's docstring.
        dtype: of the result; that of the losses.

    Returns:
        (batch,): ``1 / count`` for ``example``, else 1.

    Raises:
        ValueError: an unknown reduction.
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction is {reduction!r}; accepted: {', '.join(get_args(Reduction))}")
    if reduction == "example":
        return torch.where(counts > 0, counts.clamp(min=1).to(dtype).reciprocal(), 0.0)
    return torch.ones_like(counts, dtype=dtype)


@dataclass
class PileTotals:
    """What was summed so far.

    Attributes:
        num_examples: with a labelled token.
        num_tokens: labelled.
        token_loss_sum: nats, each example's times its weight.
        objectives: at each point of `gradsteer.attribution.gradient_points`, the weighted sum of the losses whose
            gradient is summed, before the final division; empty where none are measured.
        along_path: inner product of the summed gradient with anchor - base; integrated attribution only.
        excess_examples: by how much the sum of the examples' weights is more than their number; 0 without weights.
        excess_tokens: likewise of the tokens, each with its example's weight.
    """

    num_examples: int = 0
    num_tokens: int = 0
    token_loss_sum: float = 0.0
    objectives: list[float] = field(default_factory=list)
    along_path: float = 0.0
    excess_examples: float = 0.0
    excess_tokens: float = 0.0

    @property
    def mean_token_loss(self) -> float | None:
        """Nats a token over all labelled tokens; None before the first."""
        return self.token_loss_sum / self.divisor("token") if self.num_tokens else None

    def divisor(self, reduction: Reduction) -> float:
        """What the summed gradients are divided by."""
        if reduction == "token":
            return self.num_tokens + self.excess_tokens
        return self.num_examples + self.excess_examples

    def values(self) -> list[float]:
        """All numbers in a row, so that they can be summed over processes; `of_values` reads them."""
        return [
            float(self.num_examples),
            float(self.num_tokens),
            self.token_loss_sum,
            self.along_path,
            self.excess_examples,
            self.excess_tokens,
            *self.objectives,
        ]

    @classmethod
    def of_values(cls, values: list[float]) -> "PileTotals":
        """The totals of a row of numbers."""
        examples, tokens, loss, along, more_examples, more_tokens, *objectives = values
        return cls(round(examples), round(tokens), loss, objectives, along, more_examples, more_tokens)

    def __add__(self, other: "PileTotals") -> "PileTotals":
        mine, theirs = self.values(), other.values()
        width = max(len(mine), len(theirs))
        padded = ([*row, *[0.0] * (width - len(row))] for row in (mine, theirs))
        return self.of_values([a + b for a, b in zip(*padded, strict=True)])
