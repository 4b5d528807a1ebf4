"""The pile-average gradient: the mean gradient of the loss over a pile of responses.

The formula is the project's note's, with three readings of its average: see `gradsteer.attribution.reductions`.
Gradients are summed into float32 buffers whatever the compute dtype and divided once, when the pile ends. Of a model
that is split over processes each process sums the part that it holds.
"""

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor, nn

from gradsteer.attribution.gradient_sums import GradientSum
from gradsteer.attribution.reductions import PileTotals, Reduction, example_weights
from gradsteer.models.batches import Batch, lengths_of, part_of, running, token_losses, token_weights
from gradsteer.models.exact import doubled
from gradsteer.models.losses import Reference


class PileGradient:
    """The pile-average gradient of a model, batch by batch, without Lightning.

    Example::

        pile = PileGradient(model, reduction="example")
        for batch in batches:          # input_ids, attention_mask, labels: (batch, tokens)
            pile.add(batch)
        gradient = pile.average()      # parameter name -> float32 tensor

    Args:
        model: a causal LM in eval mode (dropout would make the gradient random).
        reduction: ``example`` (default), ``token`` or ``sum``; see `gradsteer.attribution.reductions`.
        parameters: names of the parameters to cover; all by default. See `gradsteer.models.parameter_selection`.
        head_chunk: for packs, positions at a time in the head and its cross-entropy; see `pack_losses`.
        reference: take the gradient of the divergence from this model instead of the cross-entropy.
        temperature: divides the logits of both.
        squares: sum squared gradients; see `GradientSum`.
        backward: runs the backward pass of an objective.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        reduction: Reduction = "example",
        parameters: Sequence[str] | None = None,
        head_chunk: int | None = None,
        reference: Reference | None = None,
        temperature: float = 1.0,
        squares: bool = False,
        backward: Callable[[Tensor], None] = torch.Tensor.backward,
    ) -> None:
        example_weights(torch.ones(1, dtype=torch.int64), reduction)  # refuses an unknown reduction at once
        self.model, self.reduction, self.head_chunk, self.reference = model, reduction, head_chunk, reference
        self.temperature = temperature
        self.models = [model] if reference is None else [model, reference.model]
        self.totals = PileTotals()
        self.backward = backward
        self.most_tokens = sys.maxsize  # at once; with 0 examples run one by one
        self._spoilt = False
        self.sums = GradientSum(model, parameters, squares=squares)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of each example of a batch, inside `running`.

        Returns:
            The sum of its losses (nats), the sum that counts (each loss times the example's weight for it; the same
            where it has none), and the number of its labelled tokens.
        """
        losses, owners = token_losses(
            self.model, batch, head_chunk=self.head_chunk, reference=self.reference, temperature=self.temperature
        )
        number = len(lengths_of(batch))
        nothing = torch.zeros(number, dtype=losses.dtype, device=losses.device)
        weights = token_weights(batch)
        sums = nothing.index_add(0, owners, losses)
        weighted = sums if weights is None else nothing.index_add(0, owners, losses * weights.to(losses))
        return sums, weighted, torch.bincount(owners, minlength=number)

    def add(
        self,
        batch: Batch,
        *,
        sources: Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        coefficient: float = 1.0,
        factors: Mapping[str, Tensor] | None = None,
        count: bool = True,
        point: int = 0,
    ) -> float:
        """Adds a batch's gradients to the sums. The parameters do not change.

        Where memory runs out it goes on in halves, and later batches start at the smaller size.

        Args:
            batch: a `Pack`, or ``input_ids``, ``attention_mask``, ``labels``: (batch, tokens), padded on the right;
                ``-100`` labels do not count.
            sources: where each example comes from, for the error text.
            weights: what each example counts for, at least 0; 1 by default. The average is a weighted mean.
            coefficient: what the gradients are multiplied by; see `gradsteer.attribution.gradient_points`.
            factors: what they are multiplied by element by element, parameter name -> tensor of its shape.
            count: count the batch in `totals`: once for each batch, at whichever point.
            point: where the totals have objectives: add the weighted sum of the losses, without the coefficient, to the
                one at this index.

        Returns:
            The norm of the batch's summed gradient (of halves: the root of their squares' sum).

        Raises:
            ValueError: a loss or a gradient is not finite, or memory does not hold a single example; names the example.
                Or memory ran out where the weights are split over processes, which would have to go on in halves
                together.
        """
        setting = _Setting(coefficient, factors, count, point)
        number = len(lengths_of(batch))
        names = sources or [f"{row} of the batch" for row in range(number)]
        return self._add(batch, _Examples(names, weights or [1.0] * number), setting, frozenset())

    def _add(self, batch: Batch, examples: "_Examples", setting: "_Setting", skip: Set[str]) -> float:
        """See `add`.

        When memory runs out in the middle of a backward pass, some parameters have their gradient already: the halves
        skip those, so that nothing is lost and nothing is counted twice.
        """
        lengths = lengths_of(batch)
        num_tokens = sum(lengths)
        if len(lengths) == 1 or num_tokens <= self.most_tokens:
            added = self._attempt(batch, examples, setting, skip)
            if added is None:
                norm = self.sums.pop_norm()
                if not math.isfinite(norm):
                    self._refuse(batch, examples.sources)
                return norm
            if len(lengths) == 1:
                raise ValueError(f"out of memory on one example alone ({examples.sources[0]}, {num_tokens} tokens)")
            if self.sums.is_split:
                raise ValueError(f"out of memory on {num_tokens} tokens at once; lower --data.token_budget")
            self.most_tokens, skip = num_tokens // 2, skip | added
            torch.cuda.empty_cache()
            warnings.warn(
                f"out of memory with {num_tokens} tokens at once: going on with {self.most_tokens}", stacklevel=3
            )
        half = (len(lengths) + 1) // 2
        halves = [(0, half), (half, len(lengths))]
        return math.hypot(*(self._add(part_of(batch, *each), examples.part(*each), setting, skip) for each in halves))

    def _attempt(self, batch: Batch, examples: "_Examples", setting: "_Setting", skip: Set[str]) -> set[str] | None:
        """Runs a batch at once.

        Returns:
            None where it went well. Where memory ran out: the parameters whose gradient was added before; nothing of
            the pass is counted, and nothing of it is held any more.
        """
        before = replace(self.totals, objectives=list(self.totals.objectives))
        added: set[str] = set()
        try:
            collecting = self.sums.collecting(skip, setting.factors)
            with running(batch, *self.models), collecting as added, torch.enable_grad():
                self.backward(
                    self.objective(
                        batch,
                        sources=examples.sources,
                        weights=examples.weights,
                        coefficient=setting.coefficient,
                        count=setting.count,
                        point=setting.point,
                    )
                )
        except torch.OutOfMemoryError:
            self.totals = before
            self.sums.pop_norm()
            return added
        return None

    def objective(
        self,
        batch: Batch,
        *,
        sources: Sequence[str],
        weights: Sequence[float],
        coefficient: float = 1.0,
        count: bool = True,
        point: int = 0,
    ) -> Tensor:
        """The weighted sum of the batch's losses, whose gradient is added; counts it in `totals`. See `add`."""
        sums, weighted, counts = self.losses(batch)
        if not bool(torch.isfinite(sums).all()):
            row = int((~torch.isfinite(sums)).nonzero()[0])
            raise ValueError(f"the loss of example {sources[row]} is {float(sums.detach()[row])}, not finite")
        given = torch.tensor(weights, dtype=torch.float64)
        if count:
            excess = (given - 1) * (counts > 0).cpu()
            self.totals.num_examples += int((counts > 0).sum())
            self.totals.num_tokens += int(counts.sum())
            self.totals.excess_examples += float(excess.sum())
            self.totals.excess_tokens += float((excess * counts.cpu()).sum())
            self.totals.token_loss_sum += float((given * doubled(sums.detach()).cpu()).sum())
        # an example's square counts for its weight
        factors = (given.sqrt() if self.sums.squares else given).to(sums.dtype).to(sums.device)
        objective = (factors * example_weights(counts, self.reduction, sums.dtype) * weighted).sum()
        if self.totals.objectives:
            self.totals.objectives[point] += float(objective.detach())
        return objective if coefficient == 1 else coefficient * objective

    def _refuse(self, batch: Batch, sources: Sequence[str]) -> NoReturn:
        """Says which example of a batch, whose gradient was added, is not finite; from now on `average` refuses, too.

        Raises:
            ValueError: always.
        """
        self._spoilt = True
        if self.sums.is_split:  # a search would need all processes to search the same batch
            raise ValueError(f"a gradient among the batches beside example {sources[0]} holds NaN or Inf")
        try:
            row = self._bad_example(batch)
        except torch.OutOfMemoryError:
            row = None
        if row is not None:
            raise ValueError(f"the gradient of example {sources[row]} holds NaN or Inf")
        raise ValueError(f"the gradient of the batch that starts with example {sources[0]} is not finite")

    def _bad_example(self, batch: Batch) -> int | None:
        """The first example of a batch whose own gradient is not finite, found by running them one by one."""
        for row in range(len(lengths_of(batch))):
            single = part_of(batch, row, row + 1)
            with running(single, *self.models), self.sums.differentiating() as parameters, torch.enable_grad():
                gradients = torch.autograd.grad(self.losses(single)[1].sum(), parameters, allow_unused=True)
            if not all(bool(torch.isfinite(g).all()) for g in gradients if g is not None):
                return row
        return None

    def average(self) -> dict[str, Tensor]:
        """The pile-average gradient: parameter name -> float32 tensor of the parameter's shape.

        Raises:
            ValueError: no example was added, or one whose gradient is not finite.
        """
        if self._spoilt:
            raise ValueError("the sums hold a gradient that was refused: begin the pile again with a new PileGradient")
        return self.sums.mean(self.totals.divisor(self.reduction))


@dataclass(frozen=True)
class _Examples:
    """What is known of a batch's examples: where each comes from, and what it counts for."""

    sources: Sequence[str]
    weights: Sequence[float]

    def part(self, start: int, stop: int) -> "_Examples":
        return _Examples(self.sources[start:stop], self.weights[start:stop])


@dataclass(frozen=True)
class _Setting:
    """How a batch is added; see `PileGradient.add`."""

    coefficient: float
    factors: Mapping[str, Tensor] | None
    count: bool
    point: int
