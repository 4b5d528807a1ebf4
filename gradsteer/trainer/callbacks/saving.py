"""Saving the finetuned model as a directory that any Hugging Face tool can load."""

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from gradsteer.attribution.pile_partition import FISHER
from gradsteer.models.adapter_space import is_in_adapter_space
from gradsteer.models.base_record import record_base
from gradsteer.models.lora import save_adapter
from gradsteer.provenance import provenance
from gradsteer.records import replacing_directory
from gradsteer.trainer.datamodules.batches import ResumableLoader
from gradsteer.trainer.session import is_trial
from gradsteer.vectors.preconditioning import adam_second_moment, check_keeps_second_moment


class SavePretrained(L.Callback):
    """Writes the finetuned model, its tokenizer and chat template to OUTPUT_DIR/NAME when training ends.

    Long trainings can be resumed: a checkpoint is saved every few minutes and removed when training finishes.

    Args:
        output_dir: the experiment's directory.
        name: name of the model's directory inside it.
        checkpoint_minutes: time between checkpoints (each holds the model and the optimizer state); 0 saves one after
            every epoch and none within. The same command resumes from it.
        second_moment: also write Adam's bias-corrected second moment of the gradients to
            OUTPUT_DIR/second_moments/NAME.safetensors (float32, as large as the model), for the transform
            {preconditioned: {second_moment: FILE}}. Needs Adam, AdamW or another optimizer that keeps one.
    """

    def __init__(
        self,
        output_dir: str,
        name: str = "anchor",
        checkpoint_minutes: float = 10.0,
        second_moment: bool = False,
    ) -> None:
        if checkpoint_minutes < 0:
            raise ValueError(f"saving.checkpoint_minutes is {checkpoint_minutes}; accepted: 0 or more")
        if name == FISHER:
            raise ValueError(f"--name is {name!r}; accepted: another, as attribute writes second_moments/{FISHER}")
        self.directory = Path(output_dir) / name
        self.checkpoint = Path(output_dir) / f".{name}.resume.ckpt"
        self.checkpoint_seconds = 60 * checkpoint_minutes
        self.second_moment = second_moment
        self.second_moment_path = Path(output_dir) / "second_moments" / f"{name}.safetensors"
        self._saved = time.monotonic()
        self._state_checked = not second_moment

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Refuses, before training, to train without a step or an end, or to replace what fit did not create.

        Raises:
            ValueError: one of these.
        """
        _check_length(trainer)
        record = self.directory.parent / "stages" / f"fit-{self.directory.name}.json"
        if self.directory.exists() and not record.is_file():
            raise ValueError(
                f"{str(self.directory)!r} exists and was not made by fit; choose another --name or --output_dir"
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Refuses, before training, an optimizer without a second moment if one is to be saved."""
        if self.second_moment:
            self._check_optimizer(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Goes on within an epoch; the Trainer itself restores no loader that was asked for its length before."""
        loader, done = trainer.train_dataloader, trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if isinstance(loader, ResumableLoader):
            loader.load_state_dict({"position": done})

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Checks again after the first step, when the optimizer has created its state; saves a checkpoint if due."""
        if not self._state_checked and trainer.optimizers[0].state:
            self._check_optimizer(trainer)
            self._state_checked = True
        loop = trainer.fit_loop.epoch_loop
        if self.checkpoint_seconds and not (loop.batch_progress.is_last_batch or loop._should_accumulate()):
            self._save(trainer, time.monotonic() - self._saved >= self.checkpoint_seconds)

    def _check_optimizer(self, trainer: L.Trainer) -> None:
        try:
            check_keeps_second_moment(trainer.optimizers[0])
        except ValueError as error:
            raise ValueError(f"--saving.second_moment true: {error}") from error

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Saves a checkpoint if the last one is old enough."""
        self._save(trainer, time.monotonic() - self._saved >= self.checkpoint_seconds)

    def _save(self, trainer: L.Trainer, due: bool) -> None:
        if trainer.strategy.broadcast(due) and not is_trial(trainer):
            trainer.save_checkpoint(self.checkpoint, weights_only=False)
            self._saved = time.monotonic()

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Saves under a temporary name, then renames."""
        if trainer.is_global_zero and not is_trial(trainer):
            self._save_second_moment(trainer, pl_module)  # first, because the model's directory marks a complete fit
            base = getattr(pl_module, "model_name_or_path", None)  # None: from fresh weights
            model, tokenizer = pl_module.model, pl_module.tokenizer
            if is_in_adapter_space(model):
                save_finetuned_adapter(pl_module, str(base), self.directory)
            else:
                save_pretrained(model, tokenizer, self.directory, base=base)
            self.checkpoint.unlink(missing_ok=True)
            rank_zero_info(f"saved {self.directory}")
        trainer.strategy.barrier()

    def _save_second_moment(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not self.second_moment:
            self.second_moment_path.unlink(missing_ok=True)  # left by an earlier, overwritten fit of this name
            return
        moment = adam_second_moment(trainer.optimizers[0], pl_module.model)
        moment.metadata.update(provenance())
        path = moment.save(self.second_moment_path)
        rank_zero_info(f"saved {path} (second moment over {moment.metadata['optimizer_steps']} steps)")


def _check_length(trainer: L.Trainer) -> None:
    """Refuses a fit of no step, which would save its base as the anchor, and one without an end.

    Raises:
        ValueError: names the option.
    """
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if getattr(trainer, name) == 0:
            raise ValueError(f"--trainer.{name} is 0: nothing would be trained; accepted: more than 0")
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise ValueError(
            "--trainer.max_epochs is -1, without an end, and the learning rate's schedule needs one; accepted: more "
            "than 0, or -1 with --trainer.max_steps"
        )


def save_finetuned_adapter(pl_module: Any, base: str, directory: Path) -> None:
    """Writes a trained adapter as peft does, with the tokenizer and what it was trained on, when it is complete."""
    with replacing_directory(directory) as temporary:
        save_adapter(pl_module.model, temporary, base=base, revision=pl_module.loading.revision)
        pl_module.tokenizer.save_pretrained(temporary)
        record_base(base, temporary, pl_module.base_fingerprint)


def save_pretrained(model: Any, tokenizer: Any, directory: Path, *, base: str | None = None) -> None:
    """Writes model and tokenizer to a directory that appears only when it is complete.

    Args:
        model: a transformers model.
        tokenizer: a transformers tokenizer, saved with its chat template.
        directory: replaced where it exists.
        base: the directory or hub id that the model was finetuned from, recorded in the directory.
    """
    with replacing_directory(directory) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if base is not None:
            record_base(base, temporary)
