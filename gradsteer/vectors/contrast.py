"""What a steering vector is the contrast of: the verdicts of its two piles, as its file's metadata say."""

import json
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Contrast:
    """What a vector is the contrast of, in verdicts.

    Attributes:
        plus: verdicts of the responses in the PLUS pile; where the piles do not say theirs (a plain file, a filter with
            `also`), the given behavior shown; None without one.
        minus: of those in the MINUS pile; there, the behavior not shown.
        behavior: that the vector is of: the one that PLUS shows and MINUS does not; None where that is no single one.
    """

    plus: dict[str, bool] | None = None
    minus: dict[str, bool] | None = None
    behavior: str | None = None

    @classmethod
    def read(cls, metadata: Mapping[str, str], behavior: str | None = None) -> "Contrast":
        """From a vector's metadata.

        Args:
            metadata: the vector's.
            behavior: given by the user; otherwise read off the two piles' verdicts.
        """
        sides = [json.loads(metadata[f"{side}_where"]) for side in ("plus", "minus") if f"{side}_where" in metadata]
        if len(sides) < 2 and behavior is not None:
            return cls({behavior: True}, {behavior: False}, behavior)
        if len(sides) < 2:
            return cls()
        plus, minus = sides
        shown = [name for name, value in plus.items() if value and not minus.get(name, False)]
        return cls(plus, minus, behavior or (shown[0] if len(shown) == 1 else None))
