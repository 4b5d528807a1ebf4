"""Keeping two commands from the same files: locks that are held until a command is noted as finished."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import lightning as L

from gradsteer.trainer.session import session_of


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
        check_again = session_of(trainer).check_again
        if check_again is not None:
            check_again()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Lets go."""
        del trainer, pl_module, exception
        self._held.close()

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Lets go, or leaves that to the command line."""
        del pl_module, stage
        held = session_of(trainer).held
        if held is None:
            self._held.close()
        else:
            held.callback(self._held.pop_all().close)
