"""What forward passes found at steps, on disk, so that a run that was interrupted does not make them again."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gradsteer.records import replacing, text_digest

# the value at an alpha: the one kept, or else the one that the pass finds
Keep = Callable[[float, Callable[[], Any]], np.ndarray]


def pass_anew(alpha: float, made: Callable[[], Any]) -> np.ndarray:
    """A `Keep` that keeps nothing."""
    return np.asarray(made(), dtype=np.float64)


@dataclass
class KeptPasses:
    """The passes of one model, along its vectors: a file of each, named by everything that its values hang on.

    Attributes:
        directory: where the files are.
        about: of the model, its vectors and how it computes, as plain values.
        agreed: gives every process the first one's value (collective).
        is_first: whether this process writes.
    """

    directory: Path
    about: Mapping[str, Any]
    agreed: Callable[[Any], Any] = field(default=lambda value: value)
    is_first: bool = True

    def of(self, **what: Any) -> Keep:
        """The passes along one direction.

        Args:
            **what: the direction, the text and what is taken of it, as plain values.
        """
        whose = json.dumps([self.about, what], sort_keys=True)

        def at(alpha: float, made: Callable[[], Any]) -> np.ndarray:
            path = self.directory / f"{text_digest(whose + float(alpha).hex())}.npy"
            known = self.agreed(np.load(path, allow_pickle=False) if self.is_first and path.is_file() else None)
            if known is not None:
                return np.asarray(known)
            found = pass_anew(alpha, made)
            if self.is_first:
                with replacing(path) as temporary, temporary.open("wb") as file:
                    np.save(file, found, allow_pickle=False)
            return found

        return at
