"""Keeping two commands from sampling the same condition into the same directory at once."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
from filelock import FileLock, Timeout

from gradsteer.conditions import Condition

_REPORT = "@report.lock"  # with a character that no condition's file has


class ExclusiveConditions(L.Callback):
    """Locks the files of every condition that will be sampled; a process that dies lets go of its locks.

    Where conditions are steered, their report too: some conditions are named only after the locks were taken. The
    command line keeps them until it has noted that the command finished.

    Args:
        output_dir: the experiment's directory.
    """

    def __init__(self, output_dir: str) -> None:
        self.directory = Path(output_dir) / "responses" / ".locks"
        self._held = ExitStack()

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Takes the locks, before the model is loaded.

        Raises:
            ValueError: another command is at work on one of the conditions, or on the report.
        """
        del pl_module, stage
        if not trainer.is_global_zero:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        conditions: list[Condition] = trainer.conditions  # type: ignore[attr-defined]
        locks = {f"{condition.slug}.lock": f"condition {condition.name!r}" for condition in conditions}
        if trainer.steering is not None:  # type: ignore[attr-defined]
            locks[_REPORT] = "the report"
        for name, held in locks.items():
            try:
                self._held.enter_context(FileLock(self.directory / name, timeout=0))
            except Timeout as error:
                raise ValueError(
                    f"another command is at work on {held} in {str(self.directory.parent)!r}: "
                    "they would write the same files. Wait for it, or give this one another --output_dir"
                ) from error
        if trainer.check_again is not None:  # type: ignore[attr-defined]
            trainer.check_again()  # type: ignore[attr-defined]  # another command may have finished in the meantime

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Lets go."""
        del trainer, pl_module, exception
        self._held.close()

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Lets go, or leaves that to the command line."""
        del pl_module, stage
        if trainer.held is None:  # type: ignore[attr-defined]
            self._held.close()
        else:
            trainer.held.callback(self._held.pop_all().close)  # type: ignore[attr-defined]
