"""The model whose weights a forecast moves: nothing is sampled from it."""

from typing import Any

from gradsteer.trainer.modules.model import ModelModule


class ForecastModule(ModelModule):
    """Holds the anchor that responses were sampled from; `Forecasting` scores them under each condition's weights."""

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Says, for the progress bar, on how much the condition's forecast rests; it is made as the batch starts."""
        del batch, batch_idx
        predicted = self.trainer.conditions[dataloader_idx].predicted  # type: ignore[attr-defined]
        return {"progress": f"effective sample size {predicted['effective_sample_size']:.0f}" if predicted else ""}
