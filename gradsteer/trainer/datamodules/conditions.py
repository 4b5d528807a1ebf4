"""One empty batch per condition, for commands that load no data."""

from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from gradsteer.trainer.datamodules.batches import batch_loader


class ConditionDataModule(L.LightningDataModule):
    """One data loader with a single empty batch for each condition."""

    def __init__(self) -> None:
        super().__init__()
        self.num_passes = 1

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """One loader per condition, on every rank."""
        return [batch_loader([{}]) for _ in range(self.num_passes)]
