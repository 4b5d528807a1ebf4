"""Saving and resuming an attribution's partial sums."""

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from gradsteer.assembly import Assembly
from gradsteer.partial import PartialSum


class PartialSums(L.Callback):
    """Saves what has been summed every few minutes; a run that was cut off goes on from there.

    What is finished is not computed again. Partial sums of another configuration, data set or model are refused.

    Args:
        output_dir: the experiment's directory.
        every_minutes: time between two savings; 0 saves after every batch.
        overwrite: start afresh.
    """

    def __init__(self, output_dir: str, every_minutes: float = 10.0, overwrite: bool = False) -> None:
        if every_minutes < 0:
            raise ValueError(f"partial_sums.every_minutes is {every_minutes}; accepted: 0 or more")
        self.output_dir = Path(output_dir)
        self.every_seconds, self.overwrite = 60 * every_minutes, overwrite
        self._saved = time.monotonic()

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before a part's first batch: gives the module what was left of it, and starts afresh where told to."""
        del batch
        if batch_idx != 0:
            return
        self._saved = time.monotonic()
        assembly: Assembly = pl_module.assembly(self.output_dir)
        partial = self._path(trainer, assembly, dataloader_idx)
        if self.overwrite:
            partial.unlink(missing_ok=True)
            return
        name = assembly.parts[dataloader_idx].name
        # all ranks or none: those that compute meet in a reduction
        if trainer.strategy.reduce_boolean_decision(assembly.has(dataloader_idx)):
            rank_zero_info(f"\n{name}: finished already, not computed again")
            pl_module.skip()
        elif partial.is_file():
            left = PartialSum.load(partial, work_digest=assembly.digests[dataloader_idx])
            rank_zero_info(f"\n{name}: goes on after {left.totals.num_examples} examples")
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
        """Saves where it is time; a finished part needs no partial sums any more."""
        del batch
        assembly: Assembly = pl_module.assembly(self.output_dir)
        path = self._path(trainer, assembly, dataloader_idx)
        if outputs["is_last"]:
            trainer.strategy.barrier()  # rank 0 has written the sum by now
            path.unlink(missing_ok=True)
        elif not outputs["skipped"] and time.monotonic() - self._saved >= self.every_seconds:
            digest = assembly.digests[dataloader_idx]
            pl_module.partial_sum(batch_idx + 1).save(path, work_digest=digest)
            self._saved = time.monotonic()

    def _path(self, trainer: L.Trainer, assembly: Assembly, index: int) -> Path:
        return self.output_dir / "gradients" / f".{assembly.stem(index)}.rank{trainer.global_rank}.partial"
