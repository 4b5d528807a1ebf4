"""The loop behind attribution: sums gradients over parts of piles, on the Trainer's test loop.

The fit loop does not work here: it needs an optimizer, cycles several loaders to equal length and averages over
ranks. The test loop runs every part once and in order.
"""

import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import torch

from gradsteer.attribution.gradient_points import AnchorPoint, Points, StraightPath
from gradsteer.attribution.gradient_store import Assembly
from gradsteer.attribution.partial_sums import PartialSum
from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.attribution.pile_partition import Part, Wanted
from gradsteer.attribution.reductions import PileTotals, Reduction
from gradsteer.models.batches import BatchLayout
from gradsteer.trainer.session import data_of


class SummingModule(L.LightningModule):
    """Sums gradients over the parts of the datamodule's piles, at every point and over all ranks.

    A subclass sets `num_points`, and in ``on_test_start`` `batch_layout`, `points`, `digests` and `layouts`; it says
    what a pile's gradient is.
    """

    work = "gradients"  # for the progress lines
    reduction: Reduction = "example"
    num_points = 1

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.points: Points = AnchorPoint()
        self.digests: list[str] = []
        self.layouts: list[str] = []
        self.batch_layout: BatchLayout
        self._pile: PileGradient | None = None
        self._setting: dict[str, Any] = {}
        self._store: Assembly | None = None
        self._resumed: PartialSum | None = None
        self._skipping = False
        self._resume_at = 0
        self._at: tuple[int | None, ExitStack] | None = None
        self._started, self._num_tokens = 0.0, 0

    def make_pile(self, *, squares: bool) -> PileGradient:
        """What sums gradients, or squared ones."""
        raise NotImplementedError

    def fresh_pile(self) -> PileGradient:
        """Sums of gradients in place of the loop's, once that is done: one set of sums at a time."""
        self._pile = None
        return self.make_pile(squares=False)

    def describe(self, wanted: Wanted) -> dict[str, str]:
        """The metadata of a finished sum's file."""
        raise NotImplementedError

    @property
    def parts(self) -> list[Part]:
        """The parts of the datamodule's piles, one data loader each."""
        parts: list[Part] = data_of(self.trainer).parts
        return parts

    def loader_title(self, dataloader_idx: int) -> str:
        """A data loader's name in the progress bar."""
        return self.parts[dataloader_idx].name

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Adds a batch's gradients; after a part's last batch, also returns its sums.

        Returns:
            ``loss`` (nats per token over this rank's part so far), ``norm`` (of the batch's summed gradient),
            ``progress`` (text for the progress bar), ``is_last`` (whether this is the part's last batch), ``sums`` (on
            rank 0 after the last batch a `PartialSum` over all ranks, else None) and ``skipped`` (whether the batch was
            already summed before an interruption; loss and norm are then None).
        """
        if batch_idx == 0:
            self._begin_part(dataloader_idx)
        is_last = batch_idx + 1 == self.trainer.num_test_batches[dataloader_idx]
        outputs: dict[str, Any] = {"loss": None, "norm": None, "progress": "resuming", "is_last": is_last, "sums": None}
        outputs["skipped"] = batch_idx < self._resume_at
        pile = self._running_pile
        try:
            if not outputs["skipped"]:
                self._move_to(batch["point"], pile.model)
                part = self.parts[dataloader_idx]
                # a rank that has run out of examples joins the collectives with a sequence without labels
                made = self.batch_layout.make([part.examples[index] for index in batch["indices"]])
                num_tokens = sum(len(part.examples[index].input_ids) for index in batch["indices"])  # each its prompt
                sources = [part.sources[index] for index in batch["indices"]] or ["padding"]
                weights = None if part.weights is None else [part.weights[index] for index in batch["indices"]]
                outputs["norm"] = pile.add(made, sources=sources, weights=weights, **self._setting)
                outputs["loss"] = pile.totals.mean_token_loss
                outputs["progress"] = self._progress(batch["point"], num_tokens, pile.totals)
            if is_last:
                self.leave_point()
                outputs["sums"] = self._finish_part() if self._resume_at < sys.maxsize else None
        except BaseException:
            self.leave_point()
            raise
        return outputs

    def _progress(self, point: int | None, num_tokens: int, totals: PileTotals) -> str:
        self._num_tokens += num_tokens
        rate = f"{self._num_tokens / (time.monotonic() - self._started):,.0f} tokens/s"
        if self.num_points > 1 and point is not None:
            return f"point {point + 1} of {self.num_points}, {rate}"
        return f"{totals.num_examples} examples, {rate}"

    def _move_to(self, point: int | None, model: Any) -> None:
        """Gives the model the weights of a point; None is the anchor's own."""
        if self._at is not None and self._at[0] == point:
            return
        self.leave_point()
        stack = ExitStack()
        self._setting = {}
        if point is not None:
            self._setting = {
                "factors": stack.enter_context(self.points.at(model, point)),
                "coefficient": self.points.coefficient(point),
                "count": self.points.counts(point),
                "point": point,
            }
        self._at = (point, stack)

    def leave_point(self) -> None:
        """Restores the model's own weights, from whatever point it is at."""
        if self._at is not None:
            stack, self._at = self._at[1], None
            stack.close()

    def skip(self) -> None:
        """Skips the part that is about to start; call before its first batch."""
        self._skipping = True

    def resume(self, left: PartialSum) -> None:
        """Resumes the part that is about to start from partial sums; call before its first batch."""
        self._resumed = left

    def partial_sum(self, next_batch: int) -> PartialSum:
        """The running part's sums so far, on this rank."""
        pile = self._running_pile
        return PartialSum(pile.sums.buffers, pile.totals, next_batch)

    def assembly(self, output_dir: Path) -> Assembly:
        """What puts the parts' sums together in a directory: one object for the run."""
        if self._store is None or (self._store.output_dir, self._store.digests) != (output_dir, self.digests):
            self._store = Assembly(output_dir, self.parts, self.digests, self.reduction)
        return self._store

    @property
    def _running_pile(self) -> PileGradient:
        assert self._pile is not None
        return self._pile

    def _begin_part(self, dataloader_idx: int) -> None:
        squares = self.parts[dataloader_idx].squares
        if self._pile is None or self._pile.sums.squares != squares:
            self._pile = None  # one set of sums at a time
            self._pile = self.make_pile(squares=squares)
        pile = self._pile
        pile.sums.zero()
        on_path = isinstance(self.points, StraightPath) and not squares
        pile.totals = PileTotals(objectives=[0.0] * len(self.points) if on_path else [])
        self._started, self._num_tokens = time.monotonic(), 0
        resumed, self._resumed = self._resumed, None
        self._resume_at, self._skipping = sys.maxsize if self._skipping else 0, False
        if resumed is not None:
            self._resume_at, pile.totals = resumed.next_batch, resumed.totals
            for name, buffer in resumed.buffers.items():
                pile.sums.buffers[name].copy_(buffer)

    def _finish_part(self) -> PartialSum | None:
        """Sums over ranks; the whole is kept on rank 0 only."""
        pile, strategy = self._running_pile, self.trainer.strategy
        if self.trainer.world_size > 1:
            if not pile.sums.is_split:  # split sums are reduced over ranks with every batch
                for buffer in pile.sums.buffers.values():
                    buffer.copy_(strategy.reduce(buffer, reduce_op="sum"))
            counts = torch.tensor(pile.totals.values(), dtype=torch.float64, device=self.device)
            pile.totals = PileTotals.of_values(strategy.reduce(counts, reduce_op="sum").tolist())
        if pile.totals.objectives:
            assert isinstance(self.points, StraightPath)
            pile.totals.along_path = self.points.along(pile.model, pile.sums.buffers)
        whole = {}
        for name, buffer in pile.sums.whole():
            if self.trainer.is_global_zero:
                whole[name] = buffer.cpu()
        return PartialSum(whole, pile.totals, sys.maxsize) if self.trainer.is_global_zero else None
