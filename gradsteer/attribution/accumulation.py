"""Adding examples to a pile's gradient in as few pieces as memory allows.

Knows of examples, packs and padded batches; knows nothing of files or Trainers.
"""

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace

import torch
from torch import Tensor

from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.data.chat import EncodedExample
from gradsteer.models.batches import Batch, running


class Accumulator:
    """Adds examples to a pile's gradient; where memory runs out it goes on in halves, and stays with the smaller size.

    Args:
        pile: whose sums are added to.
        make_batch: lays examples out as a pack or a padded batch on the model's device.
        backward: runs the backward pass of an objective.
    """

    def __init__(
        self,
        pile: PileGradient,
        make_batch: Callable[[Sequence[EncodedExample]], Batch],
        backward: Callable[[Tensor], None] = torch.Tensor.backward,
    ) -> None:
        self.pile, self.make_batch, self.backward = pile, make_batch, backward
        self.most_tokens = sys.maxsize
        self._coefficient, self._count, self._point = 1.0, True, 0
        self._factors: Mapping[str, Tensor] | None = None

    def at(self, point: int, *, coefficient: float, factors: Mapping[str, Tensor] | None, count: bool) -> None:
        """Moves on to another point of `gradsteer.attribution.gradient_points`, at which the model is now."""
        self._point, self._coefficient, self._factors, self._count = point, coefficient, factors, count

    def add(self, examples: Sequence[EncodedExample], sources: list[str], skip: Set[str] = frozenset()) -> float:
        """Adds the gradients of some examples.

        When memory runs out in the middle of a backward pass, some parameters have their gradient already: the halves
        leave those out, so that nothing is lost and nothing is counted twice.

        Args:
            examples: at least one.
            sources: where each comes from, for messages.
            skip: parameters that have the gradient of these examples already.

        Returns:
            The norm of the summed gradient (of halves: the root of their squares' sum).

        Raises:
            ValueError: memory does not hold a single example, a loss or a gradient is not finite, or memory ran out
                where the weights are split over processes, which would have to go on in halves together.
        """
        num_tokens = sum(len(example.input_ids) for example in examples)
        if len(examples) == 1 or num_tokens <= self.most_tokens:
            added = self._attempt(examples, sources, skip)
            if added is None:
                norm = self.pile.sums.pop_norm()
                if not math.isfinite(norm):
                    self.pile.refuse(self.make_batch(examples), sources)
                return norm
            if len(examples) == 1:
                raise ValueError(f"out of memory on one example alone ({sources[0]}, {num_tokens} tokens)")
            if self.pile.sums.is_split:
                raise ValueError(f"out of memory on {num_tokens} tokens at once; lower --data.token_budget")
            self.most_tokens, skip = num_tokens // 2, skip | added
            torch.cuda.empty_cache()
            warnings.warn(
                f"out of memory with {num_tokens} tokens at once: going on with {self.most_tokens}", stacklevel=2
            )
        half = (len(examples) + 1) // 2
        parts = [(examples[:half], sources[:half]), (examples[half:], sources[half:])]
        return math.hypot(*(self.add(*each, skip) for each in parts))

    def _attempt(self, examples: Sequence[EncodedExample], sources: list[str], skip: Set[str]) -> set[str] | None:
        """Runs some examples at once.

        Returns:
            None where it went well. Where memory ran out: the parameters whose gradient was added before; nothing of
            the pass is counted, and nothing of it is held any more.
        """
        totals = self.pile.totals
        before = replace(totals, objectives=list(totals.objectives))
        added: set[str] = set()
        try:
            batch = self.make_batch(examples)
            collecting = self.pile.sums.collecting(skip, self._factors)
            with running(batch, *self.pile.models), collecting as added, torch.enable_grad():
                self.backward(
                    self.pile.objective(
                        batch, sources=sources, coefficient=self._coefficient, count=self._count,
                        point=self._point if totals.objectives else None,
                    )
                )  # fmt: skip
        except torch.OutOfMemoryError:
            self.pile.totals = before
            self.pile.sums.pop_norm()
            return added
        return None
