"""GradDiff: several full-batch gradient steps on a vector's piles, the baseline of the one step that steering takes.

    theta_{j+1} = theta_j + (alpha / k) (grad L_PLUS(theta_j) - grad L_MINUS(theta_j)),    j = 0 ... k - 1

There is no optimizer; k = 1 is steering with V itself. The k steps from the anchor come to ``alpha`` times the mean of
the contrasts along the way, and that mean is what is given: steering with it at the same alpha is where the k steps
end.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.attribution.reductions import PileTotals
from gradsteer.data.chat import EncodedExample
from gradsteer.models.batches import Batch
from gradsteer.steering.weight_steering import rewritten

Batches = Sequence[tuple[Sequence[EncodedExample], list[str]]]


class ContrastGradient:
    """``grad L_PLUS - grad L_MINUS`` at whatever weights the model has, with one set of sums for both.

    Args:
        pile: of the model; all that is in its sums is lost.
        make_batch: of some examples, such as `BatchLayout.make`.
        plus: the PLUS pile's examples and their sources, as many at once as memory holds.
        minus: the MINUS pile's.
        tick: called after every batch.
    """

    def __init__(
        self,
        pile: PileGradient,
        make_batch: Callable[[Sequence[EncodedExample]], Batch],
        plus: Batches,
        minus: Batches,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.pile, self.make_batch, self.plus, self.minus, self.tick = pile, make_batch, plus, minus, tick
        self.losses: dict[str, float] = {}

    def __call__(self) -> Mapping[str, Tensor]:
        """Runs both piles.

        Returns:
            Parameter name -> contrast, in the sums' own memory: the next call overwrites it. The piles' mean losses,
            nats a token, are in `losses` afterwards, under ``plus`` and ``minus``.

        Raises:
            ValueError: a loss or a gradient is not finite; names the example.
        """
        sums = self.pile.sums
        sums.zero()
        # (S_PLUS n_MINUS / n_PLUS - S_MINUS) / n_MINUS: to divide the losses instead would cost gradients in half
        # precision that the plain sums keep
        num_plus, num_minus = self._divisor(self.plus), self._divisor(self.minus)
        self._add("plus", self.plus, 1.0)
        for buffer in sums.buffers.values():
            buffer.mul_(num_minus / num_plus)
        self._add("minus", self.minus, -1.0)
        for buffer in sums.buffers.values():
            buffer.div_(num_minus)
        return sums.buffers

    def _divisor(self, batches: Batches) -> float:
        """What a pile's average divides its sums by."""
        examples = [example for batch, _ in batches for example in batch]
        totals = PileTotals(len(examples), sum(example.num_target_tokens for example in examples))
        return totals.divisor(self.pile.reduction)

    def _add(self, side: Literal["plus", "minus"], batches: Batches, coefficient: float) -> None:
        """Adds a pile to the sums."""
        pile = self.pile
        pile.totals = PileTotals()
        for examples, sources in batches:
            pile.add(self.make_batch(examples), sources=sources, coefficient=coefficient)
            self.tick()
        assert pile.totals.divisor(pile.reduction) == self._divisor(batches), "an example without a target token"
        self.losses[side] = pile.totals.mean_token_loss or 0.0


def graddiff(
    model: nn.Module,
    contrast: Callable[[], Mapping[str, Tensor]],
    *,
    steps: int,
    alpha: float,
    first: Mapping[str, Tensor] | None = None,
    after_step: Callable[[int], None] = lambda step: None,
) -> dict[str, Tensor]:
    """The mean contrast of k steps of GradDiff: ``(theta_k - theta_0) / alpha``.

    Every step's weights are computed from the model's own and rounded to its dtype once, and those are put back byte
    for byte, also when a step raises. Extra memory: two copies of the covered weights (the originals, the sum).

    Args:
        model: at the anchor's weights, which it has again afterwards.
        contrast: gives ``grad L_PLUS - grad L_MINUS`` at the weights that the model has, such as a `ContrastGradient`;
            float32 (or float64), on the model's device.
        steps: k, at least 1.
        alpha: of all steps together; positive raises the PLUS pile's loss.
        first: the contrast at the anchor, V, where it is known; then it is not computed again.
        after_step: called with the number of a step, from 1, once its contrast is there.

    Returns:
        Parameter name -> tensor in the contrasts' dtype, V itself for one step.

    Raises:
        ValueError: a setting is not accepted, or a contrast is not finite: alpha is too large for so few steps.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; accepted: 1 or more")
    if not math.isfinite(alpha) or alpha == 0:
        raise ValueError(f"alpha is {alpha}; accepted: a finite number other than 0")
    total: dict[str, Tensor] = {}
    for step in range(steps):
        if step == 0 and first is not None:
            found = first
        else:
            with rewritten(model, total, _stepped(total, alpha / steps)):
                found = contrast()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in found.values()):
            raise ValueError(f"GradDiff's step {step + 1} of {steps} to alpha {alpha:g} is not finite: lower alpha")
        for name, tensor in found.items():
            if name in total:
                total[name].add_(tensor)
            else:
                total[name] = tensor.detach().clone()
        after_step(step + 1)
    return {name: tensor / steps for name, tensor in total.items()}


def _stepped(total: Mapping[str, Tensor], scale: float) -> Callable[[str, Tensor], Tensor]:
    def step(name: str, value: Tensor) -> Tensor:
        return torch.add(value, total[name].to(value), alpha=scale)

    return step
