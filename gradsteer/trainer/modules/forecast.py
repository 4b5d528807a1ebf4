"""The model under a forecast: its weights are steered, but nothing is sampled."""

from typing import Any

from gradsteer.trainer.modules.model import ModelModule
from gradsteer.trainer.session import session_of


class ForecastModule(ModelModule):
    """Holds the anchor; `Forecasting` scores its responses under each condition's weights."""

    work = "forecast"  # for the progress lines

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Returns the effective sample size for the progress bar; the forecast was made when the condition started."""
        predicted = session_of(self.trainer).result(dataloader_idx).predicted
        return {"progress": f"effective sample size {predicted['effective_sample_size']:.0f}" if predicted else ""}
