"""SIGTERM as Ctrl-C: what is under way ends in order, and what was computed is kept."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

STATUS = 128 + signal.SIGTERM
_PATIENCE = 10.0  # seconds for which a second signal is held to be the first one, sent twice


class Terminated(KeyboardInterrupt):
    """The process was told to end; handled like Ctrl-C wherever that is."""


@dataclass
class Termination:
    """Whether SIGTERM came: Lightning makes another exception of it on the way out.

    Attributes:
        told: when it came last, by the monotonic clock; None where it did not.
    """

    told: float | None = None


@contextmanager
def sigterm_as_interrupt() -> Iterator[Termination]:
    """Inside, SIGTERM raises `Terminated` in the main thread; a second one within seconds is ignored."""
    termination = Termination()
    if threading.current_thread() is not threading.main_thread():
        yield termination
        return
    deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as a shell starts what runs in its background

    def handle(number: int, frame: Any) -> None:
        del number, frame
        now, last = time.monotonic(), termination.told
        termination.told = now
        ending = signal.getsignal(signal.SIGINT) is signal.SIG_IGN and not deaf  # so Lightning shuts down
        if not ending and (last is None or now - last > _PATIENCE):
            raise Terminated

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield termination
    finally:
        signal.signal(signal.SIGTERM, previous)
