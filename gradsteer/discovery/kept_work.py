"""Work on responses that is kept as it is done: a file for every so many responses, written when they are ready.

The parts do not depend on the batch size, the packing or the number of processes. Processes share the parts out; the
files are how they are gathered again, and what a run that was interrupted finds.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gradsteer.data.batching import share_of_rank
from gradsteer.records import replacing

PART = 128  # responses


class KeptWork:
    """Arrays of responses, made once.

    Args:
        directory: of the files.
        name: what is made.
        digest: of everything that decides it; files of another one are not read.
        number: of responses.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(
        self, directory: Path, name: str, digest: str, number: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        self.directory, self.name, self.digest = directory, name, digest
        self._parts = [range(start, min(start + PART, number)) for start in range(0, number, PART)]
        self._rank, self._world_size = rank, world_size

    @property
    def missing(self) -> list[int]:
        """The parts of this process that are not there yet."""
        mine = share_of_rank(list(range(len(self._parts))), self._rank, self._world_size)
        return [part for part in mine if not self._path(part).exists()]

    def make(self, function: Callable[[Sequence[int]], list[np.ndarray]]) -> None:
        """Makes what is missing.

        Args:
            function: gives the arrays of responses, by their indices; each a row of numbers, of any length.
        """
        for part in self.missing:
            rows = function(list(self._parts[part]))
            self.directory.mkdir(parents=True, exist_ok=True)
            with replacing(self._path(part)) as temporary, temporary.open("wb") as file:
                lengths = np.array([len(row) for row in rows])
                np.savez(file, lengths=lengths, values=np.concatenate(rows) if rows else np.empty(0))

    def read(self) -> list[np.ndarray]:
        """The arrays of all responses, in order; all parts must be there."""
        found: list[np.ndarray] = []
        for part in range(len(self._parts)):
            with np.load(self._path(part), allow_pickle=False) as held:
                found += np.split(held["values"], held["lengths"].cumsum()[:-1])
        return found

    def _path(self, part: int) -> Path:
        return self.directory / f"{self.name}-{self.digest[:24]}-{part:05d}.npz"


def clear(directory: Path) -> None:
    """Removes kept work that is no longer wanted."""
    shutil.rmtree(directory, ignore_errors=True)
