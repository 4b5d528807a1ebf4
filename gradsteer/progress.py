"""Progress of long work: a bar on a terminal; elsewhere, such as in a log file, a line a minute.

Lines come by time, not by steps, from a thread of their own: a single step of ten minutes is no silence either.
Progress inside other progress adds no lines of its own: the outer one's line tells of both.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, Protocol, TextIO

FIRST_LINE = 10.0  # seconds
EVERY = 60.0
_REDRAW = 1.0

_lock = threading.RLock()
_active: list["_Task"] = []  # the outermost first


class Tick(Protocol):
    """What `progress` yields; any thread may call it."""

    def __call__(self, n: float = 1, note: str = "") -> None:
        """Counts ``n`` more units as done, and shows a short note, such as the loss, beside the count."""


class _Task:
    """Work that is under way, and how much of it is done."""

    def __init__(self, title: str, total: float | None, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self.note = 0.0, ""
        self.said: float | None = None  # `done` in the last line
        self.start = time.monotonic()

    def text(self, now: float) -> str:
        """The task in a line, such as ``bridge: 12/44 conditions, 80 s, about 3 min left``."""
        elapsed = now - self.start
        words = [self._count(), duration(elapsed)]
        if self.total is not None and self.done == self.said:
            words[0] = f"still at {words[0]}"
        elif self.total is not None and 0 < self.done < self.total:
            words.append(f"about {duration(elapsed * (self.total / self.done - 1))} left")
        return f"{self.title}: {', '.join(word for word in [*words, self.note] if word)}"

    def end(self, now: float) -> str:
        """Its last line, such as ``bridge: 44/44 conditions, done in 4 min``."""
        return f"{self.title}: {', '.join(filter(None, [self._count(), f'done in {duration(now - self.start)}']))}"

    def _count(self) -> str:
        if self.total is None:
            return f"{self.done:,.0f} {_plural(self.unit, self.done)}" if self.done else ""
        return f"{self.done:,.0f}/{self.total:,.0f} {_plural(self.unit, self.total)}"


@contextmanager
def progress(
    title: str,
    total: float | None = None,
    *,
    unit: str = "step",
    shown: bool = True,
    stream: TextIO | None = None,
    first: float = FIRST_LINE,
    every: float = EVERY,
) -> Iterator[Tick]:
    """Shows how far the work inside has come; yields what is to be called after each unit of it.

    Args:
        title: what is done, in a few words.
        total: units that there are to do; None if unknown.
        unit: what is counted, in the singular.
        shown: nothing at all is written otherwise.
        stream: where to; standard error by default. A terminal gets a bar, which goes when the work is over.
        first: seconds until the first line.
        every: seconds from line to line.
    """
    stream = sys.stderr if stream is None else stream
    if not shown:
        yield _silent
        return
    bar = stream.isatty()
    with _bar(title, total, unit, stream) if bar else _lines(title, total, unit, stream, first, every) as tick:
        yield tick


@contextmanager
def working(
    title: str, *, shown: bool = True, stream: TextIO | None = None, first: float = FIRST_LINE, every: float = EVERY
) -> Iterator[None]:
    """`progress` of work that says nothing on its way: its title and how long it has taken.

    Args:
        title: what is done, such as ``statistics over 44 conditions``.
        shown: as for `progress`, as is what follows.
        stream: where to.
        first: seconds until the first line.
        every: seconds from line to line.
    """
    with progress(title, shown=shown, stream=stream, first=first, every=every):
        yield


def duration(seconds: float) -> str:
    """Seconds to be read: ``80 s``, ``3 min``, ``2.5 h``."""
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 119.5 * 60 else f"{seconds / 3600:.1f} h"


@contextmanager
def _lines(title: str, total: float | None, unit: str, stream: TextIO, first: float, every: float) -> Iterator[Tick]:
    task = _Task(title, total, unit)

    def tick(n: float = 1, note: str = "") -> None:
        with _lock:
            task.done, task.note = task.done + n, note

    def say() -> None:
        with _lock:
            _write(stream, " | ".join(each.text(time.monotonic()) for each in _active))
            for each in _active:
                each.said = each.done

    with _lock:
        outermost = not _active
        _active.append(task)
    try:
        with _thread(say, first, every) if outermost else nullcontext():
            yield tick
        if outermost and task.said is not None:
            _write(stream, task.end(time.monotonic()))
    finally:
        with _lock:
            _active.remove(task)


@contextmanager
def _bar(title: str, total: float | None, unit: str, stream: TextIO) -> Iterator[Tick]:
    from tqdm import tqdm

    plain = "{desc}: {n_fmt} {unit} [{elapsed}{postfix}]" if unit != "step" else "{desc} [{elapsed}]"
    bar: Any = tqdm(
        total=total, desc=title, unit=f" {unit}", file=stream, leave=False, dynamic_ncols=True,
        delay=_REDRAW, bar_format=plain if total is None else None,
    )  # fmt: skip

    def tick(n: float = 1, note: str = "") -> None:
        with _lock:
            bar.set_postfix_str(note, refresh=False)
            bar.update(n)

    def redraw() -> None:
        with _lock:
            bar.refresh()

    with bar, _thread(redraw, _REDRAW, _REDRAW):
        yield tick


@contextmanager
def _thread(say: Callable[[], None], first: float, every: float) -> Iterator[None]:
    """Calls a function from another thread, after so many seconds and then again and again."""
    over = threading.Event()

    def run() -> None:
        with suppress(OSError, ValueError):  # nobody reads the stream any more
            wait = first
            while not over.wait(wait):
                say()
                wait = every

    thread = threading.Thread(target=run, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _write(stream: TextIO, line: str) -> None:
    stream.write(f"{line}\n")
    stream.flush()


def _silent(n: float = 1, note: str = "") -> None:
    pass


def _plural(unit: str, count: float) -> str:
    return unit if count == 1 else f"{unit}es" if unit.endswith(("ch", "s")) else f"{unit}s"
