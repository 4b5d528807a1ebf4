"""The model whose weights a forecast moves: nothing is sampled from it."""

from typing import Any

from gradsteer.trainer.modules.model import ModelModule
from gradsteer.trainer.session import session_of


class ForecastModule(ModelModule):
    """Holds the anchor that responses were sampled from; `Forecasting` scores them under each condition's weights."""

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Returns the condition's effective sample size for the progress bar; the forecast is made as it starts."""
        del batch, batch_idx
        predicted = session_of(self.trainer).result(dataloader_idx).predicted
        return {"progress": f"effective sample size {predicted['effective_sample_size']:.0f}" if predicted else ""}
