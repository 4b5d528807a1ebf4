"""How any response is turned into features: fitted on the responses that are grouped, applied to later ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np

from gradsteer.discovery.features import Precondition, Preconditioner, WordWeights, joined

Features = Literal["text", "gradient", "both"]


@dataclass(frozen=True)
class FeatureOptions:
    """What responses are grouped by.

    Attributes:
        features: the words of their spans, the sketches of their gradients, or both joined.
        precondition: of the sketches.
        ridge: likewise.
        unit_norm: make every sketch of norm 1.

    Raises:
        ValueError: a value is out of its range.
    """

    features: Features = "text"
    precondition: Precondition = "diagonal"
    ridge: float = 1e-3
    unit_norm: bool = True

    def __post_init__(self) -> None:
        for name, value, known in (
            ("features", self.features, get_args(Features)),
            ("precondition", self.precondition, get_args(Precondition)),
        ):
            if value not in known:
                raise ValueError(f"discovery.{name} is {value!r}; accepted: {', '.join(known)}")
        if not self.ridge > 0:
            raise ValueError(f"discovery.ridge is {self.ridge}; accepted: more than 0")


@dataclass(frozen=True)
class FeatureMap:
    """Turns spans and sketches into features.

    Attributes:
        words: None where words are no feature.
        preconditioner: None where sketches are none.
    """

    words: WordWeights | None
    preconditioner: Preconditioner | None

    @classmethod
    def of(
        cls,
        options: FeatureOptions,
        spans: Sequence[str],
        sketches: np.ndarray,
        after: Sequence[str],
        before: Sequence[str],
    ) -> Self:
        """Fits it.

        Args:
            options: which features.
            spans: the text of each response's spans; empty for a response without any.
            sketches: (responses, size).
            after: whole texts of the anchor's responses.
            before: whole texts of the base's.
        """
        words = None if options.features == "gradient" else WordWeights.of(spans, after, before)
        some = sketches[[bool(text) for text in spans]]
        made = Preconditioner.of(some, options.precondition, ridge=options.ridge, unit=options.unit_norm)
        return cls(words, None if options.features == "text" else made)

    def apply(self, spans: Sequence[str], sketches: np.ndarray) -> np.ndarray:
        """(responses, features); 0 where a response has no spans."""
        parts = []
        if self.words is not None:
            parts.append(self.words.apply(spans))
        if self.preconditioner is not None:
            parts.append(self.preconditioner.apply(sketches) * np.array([[bool(text)] for text in spans]))
        return parts[0] if len(parts) == 1 else joined(*parts)

    def arrays(self) -> dict[str, np.ndarray]:
        """What `of_arrays` reads, but for the words themselves."""
        found = {} if self.words is None else {"word_weights": self.words.weights}
        if self.preconditioner is not None and self.preconditioner.scale is not None:
            found["scale"] = self.preconditioner.scale
        return found

    @classmethod
    def of_arrays(cls, options: FeatureOptions, words: Sequence[str], arrays: Mapping[str, np.ndarray]) -> Self:
        """As it was when `arrays` were written."""
        weights = None if options.features == "gradient" else WordWeights(tuple(words), arrays["word_weights"])
        made = Preconditioner(arrays.get("scale"), options.unit_norm)
        return cls(weights, None if options.features == "text" else made)
