"""Saving and resuming an attribution's partial sums."""

import glob
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from gradsteer.attribution.gradient_store import Assembly
from gradsteer.attribution.partial_sums import PartialSum
from gradsteer.models.parallel import in_common, is_split_model
from gradsteer.trainer.session import is_trial


class PartialSums(L.Callback):
    """Saves partial gradient sums every few minutes, so that an interrupted run can resume.

    Finished sums are not recomputed. Partial sums from another configuration, dataset or model are refused.

    Args:
        output_dir: the experiment's directory.
        every_minutes: minutes between saves; 0 saves after every batch.
        overwrite: start from scratch.
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
        """Before a part's first batch: resumes from its partial sums, or deletes them if `overwrite` is set."""
        if batch_idx != 0:
            return
        self._saved = time.monotonic()
        assembly: Assembly = pl_module.assembly(self.output_dir)
        saved = self._files(trainer, assembly, dataloader_idx)
        if self.overwrite:
            for path in saved.values() if not is_trial(trainer) else ():
                path.unlink(missing_ok=True)
            return
        name = assembly.parts[dataloader_idx].name
        # all ranks or none, because the ranks that compute meet in a reduction
        if trainer.strategy.reduce_boolean_decision(assembly.has(dataloader_idx)):
            rank_zero_info(f"\n{name}: already finished, not computed again")
            pl_module.skip()
            return
        for number, path in list(saved.items()):
            header = PartialSum.check(path, work_digest=assembly.digests[dataloader_idx])
            if header["layout"] != pl_module.layouts[dataloader_idx]:
                rank_zero_info(f"\n{name}: its partial sums are of other batches or processes; starting over")
                saved.pop(number).unlink()
        # with split weights every batch is collective, so all ranks have to resume from the same one
        numbers = in_common(saved) if is_split_model(pl_module.model) else set(saved)
        if numbers:
            left = PartialSum.load(saved[max(numbers)], work_digest=assembly.digests[dataloader_idx])
            rank_zero_info(f"\n{name}: resumes after {left.totals.num_examples} examples")
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
        """Saves if it is due; deletes the partial sums of a finished part."""
        if is_trial(trainer) or (outputs["skipped"] and not outputs["is_last"]):
            return
        assembly: Assembly = pl_module.assembly(self.output_dir)
        due, split = time.monotonic() - self._saved >= self.every_seconds, is_split_model(pl_module.model)
        if outputs["is_last"]:
            trainer.strategy.barrier()  # rank 0 has written the finished sum by now
        elif trainer.strategy.reduce_boolean_decision(due, all=False) if split else due:
            left: PartialSum = pl_module.partial_sum(batch_idx + 1)
            left.layout = pl_module.layouts[dataloader_idx]
            path = self._folder / f"{self._stem(trainer, assembly, dataloader_idx)}.{batch_idx + 1}.partial"
            left.save(path, work_digest=assembly.digests[dataloader_idx])
            self._saved = time.monotonic()
            if split:
                trainer.strategy.barrier()  # older files are needed until every rank has written this one
        else:
            return
        for number, path in self._files(trainer, assembly, dataloader_idx).items():
            if outputs["is_last"] or number != batch_idx + 1:
                path.unlink(missing_ok=True)

    @property
    def _folder(self) -> Path:
        return self.output_dir / "gradients"

    def _stem(self, trainer: L.Trainer, assembly: Assembly, index: int) -> str:
        return f".{assembly.stem(index)}.rank{trainer.global_rank}"

    def _files(self, trainer: L.Trainer, assembly: Assembly, index: int) -> dict[int, Path]:
        """This rank's partial sums of a part, by the number of batches they contain."""
        stem = self._stem(trainer, assembly, index)
        return {int(path.name.split(".")[-2]): path for path in self._folder.glob(f"{glob.escape(stem)}.*.partial")}
