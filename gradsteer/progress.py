"""Progress of long work: a bar on a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(title: str, *, total: int, unit: str = "step", shown: bool = True) -> Iterator[Callable[..., None]]:
    """Shows how far some work has come; yields what is called after each step.

    Args:
        title: what is at work.
        total: number of steps.
        unit: what a step is called.
        shown: whether this process shows anything.
    """
    from tqdm import tqdm

    visible = shown and sys.stderr.isatty()
    with tqdm(total=total, desc=title, unit=unit, leave=False, delay=1.0, disable=not visible) as bar:

        def tick(n: int = 1, note: str = "") -> None:
            if note:
                bar.set_postfix_str(note, refresh=False)
            bar.update(n)

        yield tick
