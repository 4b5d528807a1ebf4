"""Sums of a model's gradients, filled by hooks during the backward pass."""

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradsteer.models.parallel import is_split, shard, sum_over_shards, whole_of_shards


class GradientSum:
    """Float32 sums of a model's gradients, one buffer a parameter, filled by hooks during backward.

    Each parameter's gradient is added and freed as soon as it is complete, so that the gradients of a whole
    model never exist at once beside the buffers. Tied weights have one buffer.

    Args:
        model: all of its parameters are covered, frozen ones included.
        parameters: names of those to cover instead; the others take no gradient at all.
        squares: sum the squared gradients of the backward passes instead: with one example each, divided by their
            number, that is the diagonal of the empirical Fisher information.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[str] | None = None, *, squares: bool = False) -> None:
        everything = dict(model.named_parameters())
        self._parameters = everything if parameters is None else {name: everything[name] for name in parameters}
        self._others = [parameter for name, parameter in everything.items() if name not in self._parameters]
        self.squares = squares
        self.buffers = {
            name: torch.zeros(shard(parameter.detach()).shape, dtype=_buffer_dtype(parameter), device=parameter.device)
            for name, parameter in self._parameters.items()
        }
        self._norm_squares: list[Tensor] = []
        self._scratch = torch.empty(0)

    @contextmanager
    def collecting(
        self, skip: Set[str] = frozenset(), factors: Mapping[str, Tensor] | None = None
    ) -> Iterator[set[str]]:
        """Within the block every backward pass adds to the buffers; afterwards hooks and flags are as before.

        Args:
            skip: parameters whose gradient is not added: a pass that broke off had added it already.
            factors: what to multiply the gradients by, element by element; this process's shard.

        Yields:
            The names of the parameters whose gradient was added, filled as the backward pass goes.
        """
        added: set[str] = set()
        with self.differentiating():
            handles = []
            try:
                for name, parameter in self._parameters.items():
                    hook = self._drop if name in skip else self._hook(name, added, (factors or {}).get(name))
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

    def _hook(self, name: str, added: set[str], factor: Tensor | None) -> Any:
        def add(parameter: Tensor) -> None:
            if parameter.grad is None:
                return
            gradient, buffer = shard(parameter.grad), self.buffers[name]
            if factor is not None:
                gradient.mul_(factor)
            gradient = self._precise(gradient, buffer)
            self._norm_squares.append(torch.linalg.vector_norm(gradient, dtype=buffer.dtype).square())
            if self.squares:
                buffer.addcmul_(gradient, gradient)
            else:
                buffer.add_(gradient)
            added.add(name)  # not before: where memory ran out until here, it has to be added again
            parameter.grad = None

        return add

    def _precise(self, gradient: Tensor, buffer: Tensor) -> Tensor:
        """The gradient in the precision of the buffer; a CPU converts slowly, so it does it once."""
        if gradient.device.type != "cpu" or gradient.dtype == buffer.dtype:
            return gradient
        if self._scratch.numel() < gradient.numel() or self._scratch.dtype != buffer.dtype:
            self._scratch = torch.empty(gradient.numel(), dtype=buffer.dtype)
        return self._scratch[: gradient.numel()].view_as(gradient).copy_(gradient)

    @property
    def is_split(self) -> bool:
        """Whether the model's weights, and so the sums, are split over processes."""
        return any(is_split(parameter) for parameter in self._parameters.values())

    def pop_norm(self) -> float:
        """Norm of the gradients added since the last call (of one backward pass, when called after each)."""
        if not self._norm_squares:
            return 0.0
        total = sum_over_shards(torch.stack(self._norm_squares).sum(), next(iter(self._parameters.values())))
        self._norm_squares.clear()
        return float(total.sqrt())

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """The sums by name, one after the other; where they are split each is put together (on all processes)."""
        for name, buffer in self.buffers.items():
            yield name, whole_of_shards(buffer, self._parameters[name])

    def mean(self, divisor: float) -> dict[str, Tensor]:
        """The sums divided once.

        Raises:
            ValueError: the divisor is not positive: nothing was added.
        """
        if divisor <= 0:
            raise ValueError("a pile-average gradient of an empty pile: no example was added")
        return {name: buffer / divisor for name, buffer in self.whole()}

    def zero(self) -> None:
        """Sets all sums to zero, for the next pile."""
        for buffer in self.buffers.values():
            buffer.zero_()
        self._norm_squares.clear()


def _buffer_dtype(parameter: Tensor) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32
