"""Keeping two commands from sampling the same condition into the same directory at once, or from the same stage."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import lightning as L

from gradsteer.locks import locked
from gradsteer.steering.conditions import Condition

_REPORT = "@report.lock"  # with a character that no condition's file has


class LockHolder(L.Callback):
    """Takes locks before the model is loaded; a process that dies lets go of them.

    The command line keeps them until it has noted that the command finished; without it they end with the Trainer's
    work.
    """

    def __init__(self) -> None:
        self._held = ExitStack()

    def hold(self, trainer: L.Trainer, locks: Iterable[AbstractContextManager[None]]) -> None:
        """Takes locks, on the first process.

        Raises:
            ValueError: another command holds one, or has finished in the meantime what this one would overwrite.
        """
        if not trainer.is_global_zero:
            return
        for lock in locks:
            self._held.enter_context(lock)
        if trainer.check_again is not None:  # type: ignore[attr-defined]
            trainer.check_again()  # type: ignore[attr-defined]

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


class ExclusiveConditions(LockHolder):
    """Locks the files of every condition that will be sampled.

    Where conditions are steered, their report too: some conditions are named only after the locks were taken.

    Args:
        output_dir: the experiment's directory.
    """

    def __init__(self, output_dir: str) -> None:
        super().__init__()
        self.directory = Path(output_dir) / "responses" / ".locks"

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Takes the locks, before the model is loaded.

        Raises:
            ValueError: another command is at work on one of the conditions, or on the report.
        """
        del pl_module, stage
        conditions: list[Condition] = trainer.conditions  # type: ignore[attr-defined]
        locks = {f"{condition.slug}.lock": f"condition {condition.name!r}" for condition in conditions}
        if trainer.steering is not None:  # type: ignore[attr-defined]
            locks[_REPORT] = "the report"
        self.hold(trainer, [locked(self.directory / name, of, self.directory.parent) for name, of in locks.items()])
