"""SIGTERM, and SIGUSR1 from a scheduler, as Ctrl-C: what is under way ends in order, and what was computed is kept."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

_NAMES = ("SIGTERM", "SIGUSR1")  # Windows has no SIGUSR1
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
_PATIENCE = 10.0  # seconds for which a second signal is held to be the first one, sent twice
_STUCK = 5.0  # seconds for the main thread to hear of it: it does not while it is in a library's own loop
_LONGEST = 25.0  # seconds to end in order: schedulers kill after 30


class Terminated(KeyboardInterrupt):
    """The process was told to end; handled like Ctrl-C wherever that is.

    Attributes:
        status: the exit status that says so.
    """

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.status = 128 + number


@dataclass
class Termination:
    """Whether a signal came: Lightning makes another exception of it on the way out.

    Attributes:
        told: when it came last, by the monotonic clock; None where it did not.
        number: the signal's.
    """

    told: float | None = None
    number: int = signal.SIGTERM
    _heard: threading.Event = field(default_factory=threading.Event)
    _over: threading.Event = field(default_factory=threading.Event)

    @property
    def status(self) -> int:
        """The exit status that says so."""
        return 128 + self.number

    @property
    def name(self) -> str:
        """The signal's name."""
        return signal.Signals(self.number).name


@contextmanager
def signals_as_interrupt() -> Iterator[Termination]:
    """Inside, a signal to end raises `Terminated` in the main thread; a second one within seconds is ignored.

    Where the main thread does not hear of it within seconds, or does not end within what a scheduler allows, the
    process ends all the same: every file is either whole or not there, and locks go with the process.
    """
    termination = Termination()
    if threading.current_thread() is not threading.main_thread():
        yield termination
        return
    deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as a shell starts what runs in its background

    def handle(number: int, frame: Any) -> None:
        del frame
        termination._heard.set()
        now, last = time.monotonic(), termination.told
        termination.told, termination.number = now, number
        ending = signal.getsignal(signal.SIGINT) is signal.SIG_IGN and not deaf  # so Lightning shuts down
        if not ending and (last is None or now - last > _PATIENCE):
            raise Terminated(number)

    previous = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        with _watched(termination):
            yield termination
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _watched(termination: Termination) -> Iterator[None]:
    """Ends the process from a thread of its own, which sees a signal whatever the main thread does."""
    here, there = socket.socketpair()
    there.setblocking(False)
    before = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(here, termination), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        termination._over.set()
        signal.set_wakeup_fd(before)
        there.send(b"\0")
        thread.join()
        here.close()
        there.close()


def _watch(here: socket.socket, termination: Termination) -> None:
    while (number := here.recv(1)[0]) != 0:
        if number not in SIGNALS:
            continue
        if not termination._heard.wait(_STUCK) or not termination._over.wait(_LONGEST):
            name = signal.Signals(number).name
            os.write(2, f"gradsteer: ended by {name} in the midst of its work; what was written is kept\n".encode())
            os._exit(128 + number)


def requeue(termination: Termination) -> None:
    """Asks Slurm to run the job again where it sent SIGUSR1 (``sbatch --signal=USR1@120 --requeue``); says so.

    Lightning would, too, but only from within a training loop, after a checkpoint of everything.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if termination.name != "SIGUSR1" or job is None or os.environ.get("SLURM_PROCID", "0") != "0":
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    if re.fullmatch(r"[0-9_]+", job) is None:
        return
    try:
        asked = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"job {job} could not be put back into Slurm's queue ({error})\n")
        return
    failed = asked.returncode != 0
    said = f"could not be put back into Slurm's queue ({asked.stderr.strip()})" if failed else "is in the queue again"
    sys.stderr.write(f"job {job} {said}\n")
