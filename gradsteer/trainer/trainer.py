"""The Trainer with this project's commands as methods."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

from gradsteer.trainer.callbacks.progress import stage_progress
from gradsteer.trainer.modules.summing import SummingModule
from gradsteer.trainer.session import Session, is_trial
from gradsteer.trainer.trainer_options import check_watched, naming_options


class GradsteerTrainer(L.Trainer):
    """Lightning's Trainer, with this project's commands as methods.

    All commands but fit run on the test loop, which visits every data loader once and in order. The datamodules
    split their batches over the ranks themselves, without repeats, so there is no distributed sampler.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.setdefault("use_distributed_sampler", False):
            raise ValueError(
                "--trainer.use_distributed_sampler is true; accepted: false, as the datamodules split the batches over "
                "the ranks"
            )
        callbacks = kwargs.get("callbacks") or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if kwargs.get("enable_progress_bar") is not False and not has_bar:
            callbacks.append(stage_progress())
        kwargs["callbacks"] = callbacks
        with naming_options(kwargs):
            super().__init__(*args, **kwargs)
        self.session = Session()

    def attribute(self, model: L.LightningModule, datamodule: L.LightningDataModule) -> None:
        """Takes the pile-average gradient of every pile and contrasts piles into steering vectors."""
        accepted = (SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy)
        if type(self.strategy) not in accepted:  # subclasses may split weights in their own way
            raise ValueError(
                f"attribute cannot use {type(self.strategy).__name__}; accepted: one device, ddp, and FSDP2 by "
                "ModelParallelStrategy (--config configs/strategy/fsdp.yaml)"
            )
        # gradients are taken inside the loop, which inference mode would not allow
        self.test_loop.inference_mode = False
        try:
            self.test(model, datamodule=datamodule, verbose=False)
        finally:  # a callback may raise while the weights are at some point of a path
            if isinstance(model, SummingModule):
                model.leave_point()

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Finetunes a model."""
        self._refuse_split_weights("fit")
        check_watched(self.callbacks)  # type: ignore[attr-defined]  # which the Trainer sets
        super().fit(*args, **kwargs)

    def evaluate(self, model: L.LightningModule, datamodule: L.LightningDataModule) -> None:
        """Samples responses from a model, judges them and reports the behavior rates."""
        self._refuse_split_weights("evaluate")
        self._refuse_a_part("evaluate")
        self.test(model, datamodule=datamodule, verbose=False)

    def discover(self, model: L.LightningModule, datamodule: L.LightningDataModule) -> None:
        """Finds groups of responses that a finetune taught, their vectors and forecasts, without a judge."""
        self._refuse_split_weights("discover")
        self.test_loop.inference_mode = False  # gradients are taken inside
        self.test(model, datamodule=datamodule, verbose=False)

    def forecast(self, model: L.LightningModule, datamodule: L.LightningDataModule) -> None:
        """Predicts every condition's behavior rates by forward passes over judged responses."""
        self._refuse_split_weights("forecast")
        self.test_loop.inference_mode = False  # weights are rewritten between conditions
        self.test(model, datamodule=datamodule, verbose=False)

    def steer(self, model: L.LightningModule, datamodule: L.LightningDataModule) -> None:
        """Measures behavior rates under steering vectors, with base, anchor, controls and baselines."""
        self._refuse_split_weights("steer")
        self._refuse_a_part("steer")
        # weights are rewritten between batches; tensors made in inference mode could not be
        self.test_loop.inference_mode = False
        self.test(model, datamodule=datamodule, verbose=False)

    def _refuse_a_part(self, command: str) -> None:
        """Refuses a batch limit: batches start with the longest prompts, which do not represent the set."""
        if self.limit_test_batches != 1.0 and not is_trial(self):
            raise ValueError(
                f"trainer.limit_test_batches is {self.limit_test_batches}: {command} would report the longest prompts "
                "only; use --data.max_prompts N"
            )

    def _refuse_split_weights(self, command: str) -> None:
        """Only attribute splits weights; elsewhere each process would be left with its own model."""
        if isinstance(self.strategy, ModelParallelStrategy):
            raise ValueError(
                f"{command} does not split weights over processes (ModelParallelStrategy); accepted: ddp "
                "(--config configs/strategy/ddp.yaml), or one device"
            )
