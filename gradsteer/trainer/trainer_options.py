"""What the Trainer's options take, where Lightning finds a mistake late, not at all, or says it in its own terms."""

import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import AcceleratorRegistry

_BATCHES = "a share from 0.0 to 1.0, or a whole number of batches"
_ACCEPTED = {
    "accelerator": "auto, or one that is here: {accelerators}",
    "strategy": "auto, ddp (--config configs/strategy/ddp.yaml), or for attribute --config configs/strategy/fsdp.yaml",
    "devices": "auto, a number of at least 1, or a list of devices",
    "num_nodes": "at least 1",
    "precision": "32-true, bf16-mixed, 16-mixed or 64-true; weights in half precision are --model.dtype bfloat16",
    "max_epochs": "more than 0, or -1 with --trainer.max_steps",
    "max_steps": "more than 0, or -1 for as many as the epochs have",
    "max_time": "DD:HH:MM:SS",
    "fast_dev_run": "true, false, or a number of batches",
    "overfit_batches": _BATCHES,
    "limit_train_batches": _BATCHES,
    "limit_val_batches": _BATCHES,
    "limit_test_batches": _BATCHES,
    "limit_predict_batches": _BATCHES,
    "val_check_interval": "more than 0: a share of an epoch up to 1.0, a whole number of batches, or DD:HH:MM:SS",
    "check_val_every_n_epoch": "at least 1, or null",
    "accumulate_grad_batches": "at least 1",
    "gradient_clip_val": "0 or more",
    "gradient_clip_algorithm": "norm, value",
    "log_every_n_steps": "0 or more",
    "profiler": "simple, advanced, pytorch",
}
_AT_LEAST = {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "gradient_clip_val": 0, "log_every_n_steps": 0}
# what a finetune logs, and so what a callback may watch
LOGGED = ("train/loss", "train/lr", "train/tokens", "val/loss", "val/perplexity")


@contextmanager
def naming_options(options: Mapping[str, Any]) -> Iterator[None]:
    """Around the making of the Trainer: its errors name the option, the value and what is accepted.

    Args:
        options: of the Trainer, by name.

    Raises:
        ValueError: one of them cannot be used.
    """
    for name, least in _AT_LEAST.items():
        value = options.get(name)
        if value is not None and value < least:
            raise ValueError(f"--trainer.{name} is {value}; accepted: {_accepted(name)}")
    interval = options.get("val_check_interval")
    if isinstance(interval, int | float) and interval <= 0:
        raise ValueError(f"--trainer.val_check_interval is {interval}; accepted: {_accepted('val_check_interval')}")
    try:
        yield
    except (MisconfigurationException, ImportError, TypeError, ValueError) as error:
        said = str(error).strip().splitlines()[0].rstrip(".")
        blamed = _blamed(options, said)
        if blamed is None:
            raise ValueError(f"the Trainer cannot be made of these options: {said}") from error
        accepted = _accepted(blamed)
        raise ValueError(f"--trainer.{blamed} is {options[blamed]!r}: {said}; accepted: {accepted}") from error


def check_watched(callbacks: Any) -> None:
    """Refuses a callback that watches what fit does not log, which Lightning finds after an epoch or passes over.

    Raises:
        ValueError: names the callback and what is logged.
    """
    for callback in callbacks:
        watched = getattr(callback, "monitor", None)
        if isinstance(watched, str) and watched not in LOGGED and not watched.startswith("lr-"):
            raise ValueError(
                f"--trainer.callbacks: {type(callback).__name__} watches {watched!r}; accepted: {', '.join(LOGGED)} "
                "(val/... with --data.validation)"
            )


def check_checkpoint(path: str) -> None:
    """Refuses, before anything is trained, what is no checkpoint; words of Lightning's such as ``last`` pass.

    Raises:
        ValueError: names the file.
    """
    if Path(path).is_dir() or (Path(path).is_file() and not zipfile.is_zipfile(path)):
        raise ValueError(f"--ckpt_path {path!r} is no checkpoint; accepted: a .ckpt file that the Trainer saved")


def _blamed(options: Mapping[str, Any], said: str) -> str | None:
    """The option that an error is about: one that it names, else one whose value it quotes, else one of its kind."""
    given = [name for name in _ACCEPTED if options.get(name) is not None]
    named = [name for name in given if re.search(rf"\b{name}\b", said)]
    quoted = [name for name in given if isinstance(options[name], str) and options[name] in said]
    kinds = ("accelerator", "strategy", "precision")
    extra = [name for name in kinds if options.get(name) not in (None, "auto", "cpu")]
    return next(iter(sorted(named, key=said.index) + quoted + extra), None)


def _accepted(name: str) -> str:
    here = [key for key, each in AcceleratorRegistry.items() if each["accelerator"].is_available()]
    return _ACCEPTED[name].format(accelerators=", ".join(here))
