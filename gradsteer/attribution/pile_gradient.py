"""The pile-average gradient: the mean gradient of the loss over a pile of responses.

The formula is the project's note's, with three readings of its average: see `gradsteer.attribution.reductions`.
Gradients are summed into float32 buffers whatever the compute dtype and divided once, when the pile ends. Of a model
that is split over processes each process sums the part that it holds. Knows of models and batches; knows nothing of
files or Trainers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn

from gradsteer.attribution.gradient_sums import GradientSum
from gradsteer.attribution.reductions import PileTotals, Reduction, example_weights
from gradsteer.models.batches import Batch, running
from gradsteer.models.losses import Reference, example_losses
from gradsteer.models.packing import Pack, pack_losses


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
        squares: sum squared gradients; see `GradientSum`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        reduction: Reduction = "example",
        parameters: Sequence[str] | None = None,
        head_chunk: int | None = None,
        reference: Reference | None = None,
        squares: bool = False,
    ) -> None:
        example_weights(torch.ones(1, dtype=torch.int64), reduction)  # refuses an unknown reduction at once
        self.model, self.reduction, self.head_chunk, self.reference = model, reduction, head_chunk, reference
        self.models = [model] if reference is None else [model, reference.model]
        self.totals = PileTotals()
        self._spoilt = False
        self.sums = GradientSum(model, parameters, squares=squares)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed loss (nats) and number of labelled tokens of each example of a batch, inside `running`."""
        if isinstance(batch, Pack):
            sums = pack_losses(self.model, batch, head_chunk=self.head_chunk, reference=self.reference)
            return sums, batch.counts
        return example_losses(self.model, batch, reference=self.reference)

    def add(
        self,
        batch: Batch,
        *,
        sources: list[str] | None = None,
        coefficient: float = 1.0,
        factors: Mapping[str, Tensor] | None = None,
        count: bool = True,
    ) -> float:
        """Adds a batch's gradients to the sums. The parameters do not change.

        Args:
            batch: a `Pack`, or ``input_ids``, ``attention_mask``, ``labels``: (batch, tokens), padded on the right;
                ``-100`` labels do not count.
            sources: where each example comes from, for the error text.
            coefficient: what the gradients are multiplied by; see `gradsteer.attribution.gradient_points`.
            factors: what they are multiplied by element by element, parameter name -> tensor of its shape.
            count: count the batch in `totals`: once for each batch, at whichever point.

        Returns:
            The norm of the batch's summed gradient.

        Raises:
            ValueError: a loss or a gradient is not finite; names the example.
        """
        with running(batch, *self.models), self.sums.collecting(factors=factors), torch.enable_grad():
            objective = self.objective(batch, sources=sources, coefficient=coefficient, count=count)
            objective.backward()
        return self.check_norm(batch, sources=sources)

    def objective(
        self,
        batch: Batch,
        *,
        sources: list[str] | None = None,
        coefficient: float = 1.0,
        count: bool = True,
        point: int | None = None,
    ) -> Tensor:
        """The weighted sum of the batch's losses, whose gradient is added; counts it in `totals`.

        Args:
            batch: see `add`.
            sources: see `add`.
            coefficient: see `add`.
            count: see `add`.
            point: note the sum (without the coefficient) in the totals' objectives at this index.

        Raises:
            ValueError: a loss is not finite; names the example.
        """
        sums, counts = self.losses(batch)
        if not bool(torch.isfinite(sums).all()):
            row = int((~torch.isfinite(sums)).nonzero()[0])
            raise ValueError(f"the loss of {_source(sources, row)} is {float(sums.detach()[row])}, not finite")
        if count:
            self.totals.num_examples += int((counts > 0).sum())
            self.totals.num_tokens += int(counts.sum())
            self.totals.token_loss_sum += float(sums.detach().double().sum())
        objective = (example_weights(counts, self.reduction, sums.dtype) * sums).sum()
        if point is not None:
            self.totals.objectives[point] += float(objective.detach())
        return objective if coefficient == 1 else coefficient * objective

    def check_norm(self, batch: Batch, *, sources: list[str] | None = None) -> float:
        """The norm of the last backward pass.

        Raises:
            ValueError: it is not finite; names the example, found by running the batch's examples one by one.
        """
        norm = self.sums.pop_norm()
        if not math.isfinite(norm):
            self.refuse(batch, sources)
        return norm

    def refuse(self, batch: Batch, sources: list[str] | None = None) -> NoReturn:
        """Says which example of a batch, whose gradient was added, is not finite.

        Raises:
            ValueError: always; from now on `average` refuses, too.
        """
        self._spoilt = True
        if self.sums.is_split:  # a search would need all processes to search the same batch
            raise ValueError(f"a gradient among the batches beside {_source(sources, 0)} holds NaN or Inf")
        try:
            row = self._bad_example(batch)
        except torch.OutOfMemoryError:
            row = None
        if row is not None:
            raise ValueError(f"the gradient of {_source(sources, row)} holds NaN or Inf")
        raise ValueError(f"the gradient of the batch that starts with {_source(sources, 0)} is not finite")

    def _bad_example(self, batch: Batch) -> int | None:
        """The first example of a batch whose own gradient is not finite, found by running them one by one."""
        for row in range(len(batch.lengths if isinstance(batch, Pack) else batch["labels"])):
            single = batch.alone(row) if isinstance(batch, Pack) else {k: v[row : row + 1] for k, v in batch.items()}
            with running(single, *self.models), self.sums.differentiating() as parameters, torch.enable_grad():
                gradients = torch.autograd.grad(self.losses(single)[0].sum(), parameters, allow_unused=True)
            if not all(bool(torch.isfinite(g).all()) for g in gradients if g is not None):
                return row
        return None

    def average(self) -> dict[str, Tensor]:
        """The pile-average gradient: parameter name -> float32 tensor of the parameter's shape.

        Raises:
            ValueError: no example was added, or one whose gradient is not finite.
        """
        if self._spoilt:
            raise ValueError("the sums hold a gradient that was refused: start the pile anew")
        return self.sums.mean(self.totals.divisor(self.reduction))


def _source(sources: list[str] | None, row: int) -> str:
    return f"example {sources[row]}" if sources else f"example {row} of the batch"
