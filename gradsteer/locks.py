"""One process at a time: a lock on a file, which goes with the process that held it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, what: str, directory: Path) -> Iterator[None]:
    """Holds a lock inside, without waiting for it.

    Args:
        path: of the lock's file, which is made and stays.
        what: is worked on, for the message.
        directory: where it lies, likewise.

    Raises:
        ValueError: another process holds it.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(path, timeout=0).acquire()
    except Timeout as error:
        raise ValueError(
            f"another command is at work on {what} in {str(directory)!r}: they would write the same files. Wait for "
            "it, or give this one another --output_dir"
        ) from error
    with lock:
        yield
