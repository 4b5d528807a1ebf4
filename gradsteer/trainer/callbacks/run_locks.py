"""Locks that keep two commands off the same files, held until the command is recorded as finished."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import lightning as L

from gradsteer.trainer.session import session_of


class LockHolder(L.Callback):
    """Takes locks before the model is loaded; they are released if the process dies.

    The command line holds them until it has recorded the command as finished. Without a command line they are
    released when the Trainer is done.
    """

    def __init__(self) -> None:
        self._held = ExitStack()

    def hold(self, trainer: L.Trainer, locks: Iterable[AbstractContextManager[None]]) -> None:
        """Takes locks, on rank 0.

        Raises:
            ValueError: another command holds one, or has meanwhile finished what this command would overwrite.
        """
        if not trainer.is_global_zero:
            return
        for lock in locks:
            self._held.enter_context(lock)
        check_again = session_of(trainer).check_again
        if check_again is not None:
            check_again()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Releases the locks."""
        self._held.close()

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Releases the locks, or leaves that to the command line."""
        held = session_of(trainer).held
        if held is None:
            self._held.close()
        else:
            held.callback(self._held.pop_all().close)
