"""The model under discover: its gradients are taken, its weights stay."""

from typing import Any

from gradsteer.trainer.modules.model import ModelModule


class DiscoveryModule(ModelModule):
    """Holds the anchor; `Discovery` does the work when the one batch comes."""

    work = "discovery"  # for the progress lines

    def configure_model(self) -> None:
        """Loads the model, once.

        Raises:
            ValueError: it is an adapter in its own space, whose gradients are not those that are sketched.
        """
        if self.loading.adapter is not None and self.loading.adapter_reading == "adapter":
            raise ValueError(
                "model.adapter_reading is 'adapter', and discover sketches gradients of whole weights; accepted: merged"
            )
        super().configure_model()

    def loader_title(self, dataloader_idx: int) -> str:
        """A data loader's name in the progress bar."""
        return "responses"

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Nothing is left to do."""
        return {"progress": ""}
