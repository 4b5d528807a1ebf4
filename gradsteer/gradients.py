"""The pile-average gradient: the mean gradient of the loss over a pile of responses.

The formula (the project's note, and three readings of its average), for a pile of examples with token losses
``l_t`` on their labelled tokens:

* ``example``: mean over examples of (mean over the example's tokens of grad l_t);
* ``token``: sum over all tokens of grad l_t / number of tokens;
* ``sum``: mean over examples of (sum over tokens of grad l_t), the score function of the whole response.

Gradients are summed into float32 buffers whatever the compute dtype and divided once, when the pile ends.
Knows of models and batches; knows nothing of files, Trainers or process groups.
"""

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from gradsteer.losses import example_losses
from gradsteer.packing import Pack, attending, pack_losses

Batch = Mapping[str, Any] | Pack
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
    """What was summed so far: examples, labelled tokens and losses (nats)."""

    num_examples: int = 0
    num_tokens: int = 0
    token_loss_sum: float = 0.0

    @property
    def mean_token_loss(self) -> float | None:
        """Nats a token over all labelled tokens; None before the first."""
        return self.token_loss_sum / self.num_tokens if self.num_tokens else None

    def divisor(self, reduction: Reduction) -> int:
        """What the summed gradients are divided by."""
        return self.num_tokens if reduction == "token" else self.num_examples


class GradientSum:
    """Float32 sums of a model's gradients, one buffer a parameter, filled by hooks during backward.

    Each parameter's gradient is added and freed as soon as it is complete, so that the gradients of a whole
    model never exist at once beside the buffers. Tied weights have one buffer.

    Args:
        model: all of its parameters are covered, frozen ones included.
        parameters: names of those to cover instead; the others take no gradient at all.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[str] | None = None) -> None:
        everything = dict(model.named_parameters())
        self._parameters = everything if parameters is None else {name: everything[name] for name in parameters}
        self._others = [parameter for name, parameter in everything.items() if name not in self._parameters]
        self.buffers = {
            name: torch.zeros(parameter.shape, dtype=_buffer_dtype(parameter), device=parameter.device)
            for name, parameter in self._parameters.items()
        }
        self._squares: list[Tensor] = []

    @contextmanager
    def collecting(self, skip: Set[str] = frozenset()) -> Iterator[set[str]]:
        """Within the block every backward pass adds to the buffers; afterwards hooks and flags are as before.

        Args:
            skip: parameters whose gradient is not added: a pass that broke off had added it already.

        Yields:
            The names of the parameters whose gradient was added, filled as the backward pass goes.
        """
        added: set[str] = set()
        with self.differentiating():
            handles = []
            try:
                for name, parameter in self._parameters.items():
                    hook = self._drop if name in skip else self._hook(name, added)
                    handles.append(parameter.register_post_accumulate_grad_hook(hook))
                yield added
            finally:
                for handle in handles:
                    handle.remove()

    @contextmanager
    def differentiating(self) -> Iterator[list[nn.Parameter]]:
        """Within the block the covered parameters take gradients and have none; afterwards all is as before.

        Yields:
            The covered parameters.
        """
        covered = list(self._parameters.values())
        before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in [*covered, *self._others]]
        try:
            for parameter in covered:
                parameter.requires_grad_(True)
                parameter.grad = None
            for parameter in self._others:
                parameter.requires_grad_(False)
            yield covered
        finally:
            for parameter, required, gradient in before:
                parameter.requires_grad_(required)
                parameter.grad = gradient

    @staticmethod
    def _drop(parameter: Tensor) -> None:
        parameter.grad = None

    def _hook(self, name: str, added: set[str]) -> Any:
        def add(parameter: Tensor) -> None:
            if parameter.grad is not None:
                added.add(name)
                self._squares.append(torch.linalg.vector_norm(parameter.grad, dtype=self.buffers[name].dtype).square())
                self.buffers[name].add_(parameter.grad)
                parameter.grad = None

        return add

    def pop_norm(self) -> float:
        """Norm of the gradients added since the last call (of one backward pass, when called after each)."""
        norm = float(torch.stack(self._squares).sum().sqrt()) if self._squares else 0.0
        self._squares.clear()
        return norm

    def mean(self, divisor: int) -> dict[str, Tensor]:
        """The sums divided once.

        Raises:
            ValueError: the divisor is not positive: nothing was added.
        """
        if divisor <= 0:
            raise ValueError("a pile-average gradient of an empty pile: no example was added")
        return {name: buffer / divisor for name, buffer in self.buffers.items()}

    def zero(self) -> None:
        """Sets all sums to zero, for the next pile."""
        for buffer in self.buffers.values():
            buffer.zero_()
        self._squares.clear()


class PileGradient:
    """The pile-average gradient of a model, batch by batch, without Lightning.

    Example::

        pile = PileGradient(model, reduction="example")
        for batch in batches:          # input_ids, attention_mask, labels: (batch, tokens)
            pile.add(batch)
        gradient = pile.average()      # parameter name -> float32 tensor

    Args:
        model: a causal LM in eval mode (dropout would make the gradient random).
        reduction: ``example`` (default), ``token`` or ``sum``; see the module's docstring.
        parameters: names of the parameters to cover; all by default. See `gradsteer.selection`.
        head_chunk: for packs, positions at a time in the head and its cross-entropy; see `pack_losses`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        reduction: Reduction = "example",
        parameters: Sequence[str] | None = None,
        head_chunk: int | None = None,
    ) -> None:
        example_weights(torch.ones(1, dtype=torch.int64), reduction)  # refuses an unknown reduction at once
        self.model, self.reduction, self.head_chunk = model, reduction, head_chunk
        self.totals = PileTotals()
        self._spoilt = False
        self.sums = GradientSum(model, parameters)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed loss (nats) and number of labelled tokens of each example of a batch or a pack, inside `running`."""
        if isinstance(batch, Pack):
            return pack_losses(self.model, batch, head_chunk=self.head_chunk), batch.counts
        return example_losses(self.model, batch)

    def running(self, batch: Batch) -> AbstractContextManager[None]:
        """Within the block the model can run a batch forward and backward: a pack's segments see themselves only."""
        return attending(self.model, batch) if isinstance(batch, Pack) else nullcontext()

    def add(self, batch: Batch, *, sources: list[str] | None = None) -> float:
        """Adds a batch's gradients to the sums. The parameters do not change.

        Args:
            batch: a `Pack`, or ``input_ids``, ``attention_mask``, ``labels``: (batch, tokens), padded on the right;
                ``-100`` labels do not count.
            sources: where each example comes from, for the error text.

        Returns:
            The norm of the batch's summed gradient.

        Raises:
            ValueError: a loss or a gradient is not finite; names the example.
        """
        with self.running(batch), self.sums.collecting(), torch.enable_grad():
            objective = self.objective(batch, sources=sources)
            objective.backward()
        return self.check_norm(batch, sources=sources)

    def objective(self, batch: Batch, *, sources: list[str] | None = None) -> Tensor:
        """The weighted sum of the batch's losses, whose gradient is added; counts it in `totals`.

        Raises:
            ValueError: a loss is not finite; names the example.
        """
        sums, counts = self.losses(batch)
        if not bool(torch.isfinite(sums).all()):
            row = int((~torch.isfinite(sums)).nonzero()[0])
            raise ValueError(f"the loss of {_source(sources, row)} is {float(sums.detach()[row])}, not finite")
        self.totals.num_examples += int((counts > 0).sum())
        self.totals.num_tokens += int(counts.sum())
        self.totals.token_loss_sum += float(sums.detach().double().sum())
        return (example_weights(counts, self.reduction, sums.dtype) * sums).sum()

    def check_norm(self, batch: Batch, *, sources: list[str] | None = None) -> float:
        """The norm of the last backward pass.

        Raises:
            ValueError: it is not finite; names the example, found by running the batch's examples one by one.
        """
        norm = self.sums.pop_norm()
        if math.isfinite(norm):
            return norm
        self._spoilt = True
        for row in range(len(batch.lengths if isinstance(batch, Pack) else batch["labels"])):
            single = batch.alone(row) if isinstance(batch, Pack) else {k: v[row : row + 1] for k, v in batch.items()}
            with self.running(single), self.sums.differentiating() as parameters, torch.enable_grad():
                gradients = torch.autograd.grad(self.losses(single)[0].sum(), parameters, allow_unused=True)
            if not all(bool(torch.isfinite(g).all()) for g in gradients if g is not None):
                raise ValueError(f"the gradient of {_source(sources, row)} holds NaN or Inf")
        raise ValueError(f"the gradient of the batch that starts with {_source(sources, 0)} is not finite")

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


def _buffer_dtype(parameter: Tensor) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32
