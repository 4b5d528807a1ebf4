"""A progress bar that shows which pile or condition is running, and how fast."""

import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar


class StageProgressBar(TQDMProgressBar):
    """The Trainer's progress bar with the data loader's title and the module's own progress text.

    If the output is not a terminal it refreshes rarely, because each refresh adds a line to the log.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=5 if sys.stderr.isatty() else 500)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The metrics to show, without the logger's version."""
        metrics: dict[str, Any] = dict(super().get_metrics(trainer, pl_module))
        metrics.pop("v_num", None)
        return metrics

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Shows the data loader's title instead of its number."""
        super().on_test_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        title = getattr(pl_module, "loader_title", None)
        if batch_idx == 0 and title is not None and not self.is_disabled:
            self.test_progress_bar.set_description(title(dataloader_idx))
            self.test_progress_bar.set_postfix_str("")  # the last data loader's text

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Shows the module's progress text."""
        if isinstance(outputs, dict) and "progress" in outputs and not self.is_disabled:
            self.test_progress_bar.set_postfix_str(outputs["progress"], refresh=False)
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Ends the bars' lines, so that the error begins one of its own."""
        del trainer, pl_module, exception
        bars = (self._train_progress_bar, self._val_progress_bar, self._test_progress_bar, self._predict_progress_bar)
        for bar in bars:
            if bar is not None:
                bar.close()
