"""Saving the finetuned model as a directory that any Hugging Face tool loads."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info


class SavePretrained(L.Callback):
    """Writes the finetuned model, its tokenizer and chat template to OUTPUT_DIR/NAME when training ends.

    A long training can be resumed: a checkpoint is kept at the end of an epoch, and removed when training is done.

    Args:
        output_dir: the experiment's directory.
        name: of the directory in it.
        checkpoint_minutes: least time between two such checkpoints (each holds the model and the optimizer's state);
            0 keeps one after every epoch. The same command resumes from it.
    """

    def __init__(self, output_dir: str, name: str = "anchor", checkpoint_minutes: float = 10.0) -> None:
        if checkpoint_minutes < 0:
            raise ValueError(f"saving.checkpoint_minutes is {checkpoint_minutes}; accepted: 0 or more")
        self.directory = Path(output_dir) / name
        self.checkpoint = Path(output_dir) / f".{name}.resume.ckpt"
        self.checkpoint_seconds = 60 * checkpoint_minutes
        self._saved = time.monotonic()

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Refuses, before training, a directory that no fit of ours made: saving would replace it."""
        del trainer, pl_module, stage
        record = self.directory.parent / "stages" / f"fit-{self.directory.name}.json"
        if self.directory.exists() and not record.is_file():
            raise ValueError(
                f"{str(self.directory)!r} exists and was not made by fit; choose another --name or --output_dir"
            )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Keeps a checkpoint, if the last one is old enough."""
        del pl_module
        due = time.monotonic() - self._saved >= self.checkpoint_seconds
        if trainer.strategy.broadcast(due) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.checkpoint)
            self._saved = time.monotonic()

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Saves under a temporary name, then renames."""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            save_pretrained(pl_module.model, pl_module.tokenizer, self.directory)
            self.checkpoint.unlink(missing_ok=True)
            rank_zero_info(f"saved {self.directory}")
        trainer.strategy.barrier()


def save_pretrained(model: Any, tokenizer: Any, directory: Path) -> None:
    """Writes model and tokenizer to a directory that appears only when it is complete.

    Args:
        model: a transformers model.
        tokenizer: a transformers tokenizer, saved with its chat template.
        directory: replaced where it exists.
    """
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.part")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    old = directory.with_name(f".{directory.name}.{os.getpid()}.old")
    if directory.exists():
        directory.rename(old)
    temporary.rename(directory)
    shutil.rmtree(old, ignore_errors=True)
