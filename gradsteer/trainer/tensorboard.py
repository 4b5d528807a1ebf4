"""Logging scalars to all of the Trainer's loggers, and tables and figures to those that support them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_metrics(trainer: L.Trainer, metrics: Mapping[str, float], *, step: int) -> None:
    """Logs scalars at a step to every logger."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=step)


def log_figure(trainer: L.Trainer, tag: str, figure: "Figure", *, step: int = 0) -> None:
    """Logs a figure to TensorBoard."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            logger.experiment.add_figure(tag, figure, global_step=step, close=False)


def log_table(trainer: L.Trainer, tag: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Logs a table as text; cells are escaped, as they may come from data or a model."""
    lines = [header, ["---"] * len(header), *rows]
    text = "\n".join("| " + " | ".join(map(_cell if i != 1 else str, line)) + " |" for i, line in enumerate(lines))
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            logger.experiment.add_text(tag, text)


def _cell(text: str) -> str:
    """Escapes text so that TensorBoard's Markdown shows it verbatim."""
    entities = "".join(f"&#{ord(c)};" if c in "&<>\"'\\`*_{}[]()#+-.!|~" else c for c in text)
    return entities.replace("\r", " ").replace("\n", "<br>")
