"""Which pile or condition is running, how fast, and what is left: a bar on a terminal, a line a minute elsewhere."""

import math
import sys
import time
from contextlib import ExitStack
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar

from gradsteer.progress import Tick, progress
from gradsteer.trainer.session import session_of

_REFRESH = 1.0  # seconds between two looks at the metrics


def stage_progress() -> ProgressBar:
    """The Trainer's progress bar: `StageProgressBar` on a terminal, `StageProgressLines` elsewhere."""
    return StageProgressBar() if sys.stderr.isatty() else StageProgressLines()


class StageProgressBar(TQDMProgressBar):
    """The Trainer's progress bar with the data loader's title and the module's own progress text."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=5)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The metrics to show, without the logger's version."""
        return _without_version(super().get_metrics(trainer, pl_module))

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Shows the data loader's title instead of its number."""
        super().on_test_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        if batch_idx == 0 and not self.is_disabled:
            title = _title(pl_module, dataloader_idx)
            if title:
                self.test_progress_bar.set_description(title)
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


class StageProgressLines(ProgressBar):
    """The same for a log file, where every drawing of a bar would stay: a line a minute, by `gradsteer.progress`."""

    def __init__(self) -> None:
        super().__init__()
        self._shown = True
        self._open: list[tuple[ExitStack, Tick]] = []  # the outermost first: validation is inside training
        self._step = 0
        self._num_tokens: Any = 0
        self._started = self._looked = 0.0

    def disable(self) -> None:
        """Writes nothing from now on, as on every process but the first."""
        self._shown = False

    def enable(self) -> None:
        """Writes again."""
        self._shown = True

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The metrics to show, without the logger's version."""
        return _without_version(super().get_metrics(trainer, pl_module))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Counts optimizer steps from here, also where a finetune is resumed."""
        del pl_module
        self._step, self._num_tokens = trainer.global_step, 0
        self._started = self._looked = time.monotonic()
        total = trainer.estimated_stepping_batches - self._step
        self._begin("training", total if math.isfinite(total) else None, "step")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts steps and tokens; the metrics are looked at once a second, as a device is waited for then."""
        del outputs, batch_idx
        self._num_tokens = self._num_tokens + batch["attention_mask"].sum()
        now = time.monotonic()
        if now - self._looked < _REFRESH and trainer.global_step < trainer.estimated_stepping_batches:
            return
        metrics = [f"{name} {value:.3g}" for name, value in self.get_metrics(trainer, pl_module).items()]
        speed = f"{float(self._num_tokens) / max(now - self._started, 1e-9):,.0f} tokens/s"
        self._tick(trainer.global_step - self._step, ", ".join([f"epoch {trainer.current_epoch + 1}", *metrics, speed]))
        self._step, self._looked = trainer.global_step, now

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Says how long it took."""
        self._end()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Counts batches."""
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._begin("validation", _sum(batches), "batch")

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Counts one."""
        self._tick()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ends the count."""
        self._end()

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Counts the batches of all data loaders: piles, or conditions."""
        batches = trainer.num_test_batches
        one_each = bool(session_of(trainer).conditions) and set(batches) == {1}
        self._begin(getattr(pl_module, "work", "testing"), _sum(batches), "condition" if one_each else "batch")

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Names the data loader."""
        if batch_idx == 0:
            self._tick(0, _title(pl_module, dataloader_idx))

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts one, with the module's progress text."""
        text = outputs.get("progress", "") if isinstance(outputs, dict) else ""
        self._tick(1, ", ".join(filter(None, [_title(pl_module, dataloader_idx), text])))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Says how long it took."""
        self._end()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Ends without a word."""
        while self._open:
            stack, _ = self._open.pop()
            stack.__exit__(type(exception), exception, exception.__traceback__)

    def _begin(self, title: str, total: float | None, unit: str) -> None:
        stack = ExitStack()
        self._open.append((stack, stack.enter_context(progress(title, total, unit=unit, shown=self._shown))))

    def _tick(self, n: float = 1, note: str = "") -> None:
        _, tick = self._open[-1]
        tick(n, note)

    def _end(self) -> None:
        stack, _ = self._open.pop()
        stack.close()


def _without_version(metrics: Any) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name != "v_num"}


def _title(pl_module: Any, dataloader_idx: int) -> str:
    """What the module calls a data loader."""
    title = getattr(pl_module, "loader_title", None)
    return "" if title is None else str(title(dataloader_idx))


def _sum(batches: Any) -> float | None:
    total = sum(batches) if isinstance(batches, list) else batches
    return total if math.isfinite(total) else None
