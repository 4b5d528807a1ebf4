"""Saving and resuming an attribution's partial sums."""

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from gradsteer.partial import PartialSum
from gradsteer.vectors import PileAverage


class PartialSums(L.Callback):
    """Saves what has been summed every few minutes; a run that was cut off goes on from there.

    A pile that is finished is not computed again. Partial sums of another configuration, data set or model are refused.

    Args:
        output_dir: the experiment's directory.
        every_minutes: time between two savings; 0 saves after every batch.
        overwrite: start afresh.
    """

    def __init__(self, output_dir: str, every_minutes: float = 10.0, overwrite: bool = False) -> None:
        if every_minutes < 0:
            raise ValueError(f"partial_sums.every_minutes is {every_minutes}; accepted: 0 or more")
        self.directory = Path(output_dir) / "gradients"
        self.every_seconds, self.overwrite = 60 * every_minutes, overwrite
        self._saved = time.monotonic()

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before a pile's first batch: gives the module what was left of it, and starts afresh where told to."""
        del batch
        if batch_idx != 0:
            return
        self._saved = time.monotonic()
        digest = pl_module.work_digest(dataloader_idx)
        partial = self._path(trainer, pl_module, dataloader_idx)
        if self.overwrite:
            partial.unlink(missing_ok=True)
            return
        pile = pl_module.pile_name(dataloader_idx)
        finished = self.directory / f"{pile}.safetensors"
        average = PileAverage.load(finished) if finished.is_file() else None
        same = average is not None and average.metadata.get("work_digest") == digest
        # all ranks or none: those that compute meet in a reduction
        if trainer.strategy.reduce_boolean_decision(same) and average is not None:
            rank_zero_info(f"\npile {pile}: finished already, not computed again")
            pl_module.resume(average)
            return
        if partial.is_file():
            left = PartialSum.load(partial, work_digest=digest)
            rank_zero_info(f"\npile {pile}: goes on after {left.totals.num_examples} examples")
            pl_module.resume(left)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Saves where it is time; a finished pile needs no partial sums any more."""
        del batch
        path = self._path(trainer, pl_module, dataloader_idx)
        if outputs["average"] is not None:
            trainer.strategy.barrier()  # rank 0 has written the pile's gradient by now
            path.unlink(missing_ok=True)
        elif not outputs["skipped"] and time.monotonic() - self._saved >= self.every_seconds:
            pl_module.partial_sum(batch_idx + 1).save(path, work_digest=pl_module.work_digest(dataloader_idx))
            self._saved = time.monotonic()

    def _path(self, trainer: L.Trainer, pl_module: Any, dataloader_idx: int) -> Path:
        return self.directory / f".{pl_module.pile_name(dataloader_idx)}.rank{trainer.global_rank}.partial"
