"""The Trainer with this project's commands as methods."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

from gradsteer.callbacks.progress import StageProgressBar
from gradsteer.conditions import Condition


class GradsteerTrainer(L.Trainer):
    """Lightning's Trainer, with this project's commands as methods.

    Attribute, evaluate and steer run on the test loop, which visits every data loader once and in order. The
    datamodules split their batches over the ranks themselves, without repeats, so no distributed sampler is put in
    their way.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.setdefault("use_distributed_sampler", False):
            raise ValueError("use_distributed_sampler must be false: the datamodules split the batches over the ranks")
        callbacks = kwargs.get("callbacks") or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        has_bar = any(isinstance(callback, TQDMProgressBar) for callback in callbacks)
        if kwargs.get("enable_progress_bar") is not False and not has_bar:
            callbacks.append(StageProgressBar())
        kwargs["callbacks"] = callbacks
        super().__init__(*args, **kwargs)
        self.conditions: list[Condition] = []

    def attribute(self, model: L.LightningModule, datamodule: L.LightningDataModule) -> None:
        """Takes the pile-average gradient of every pile and contrasts piles into steering vectors."""
        # gradients are taken inside the loop, which inference mode would forbid for good
        self.test_loop.inference_mode = False
        self.test(model, datamodule=datamodule, verbose=False)

    def evaluate(self, model: L.LightningModule, datamodule: L.LightningDataModule) -> None:
        """Samples responses from a model, judges them and reports the behavior rates."""
        self.test(model, datamodule=datamodule, verbose=False)

    def steer(self, model: L.LightningModule, datamodule: L.LightningDataModule) -> None:
        """Measures the behavior rates under steering vectors, beside base, anchor and random controls."""
        # weights are rewritten between batches; tensors made in inference mode could not be
        self.test_loop.inference_mode = False
        self.test(model, datamodule=datamodule, verbose=False)
