"""One empty batch per condition, for commands that load no data."""

from typing import Any

from torch.utils.data import DataLoader

from gradsteer.trainer.datamodules.batches import RunDataModule, batch_loader


class ConditionDataModule(RunDataModule):
    """One data loader with a single empty batch for each condition."""

    def __init__(self, **template: Any) -> None:
        super().__init__(**template)
        self.num_passes = 1

    def setup(self, stage: str) -> None:
        """Sets how prompts are rendered, behind a condition's system prompt too."""
        self.use_template()

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """One loader per condition, on every rank."""
        return [batch_loader([{}]) for _ in range(self.num_passes)]
