"""The model under discover: its gradients are taken, its weights stay."""

from typing import Any

from gradsteer.trainer.modules.model import ModelModule


class DiscoveryModule(ModelModule):
    """Holds the anchor; `Discovery` does the work when the one batch comes."""

    work = "discovery"  # for the progress lines

    def loader_title(self, dataloader_idx: int) -> str:
        """A data loader's name in the progress bar."""
        return "responses"

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Nothing is left to do."""
        return {"progress": ""}
