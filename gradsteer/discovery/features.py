"""What responses are grouped by: their sketches, or the words of their spans; one row of norm 1 for each response.

Sketches are preconditioned by their own second moment, per coordinate, ``s / root (m + ridge mean m)``, or whitened,
``U (L + ridge mean L)^(-1/2) U^T s`` with U L U^T the matrix of second moments.

Words: a response has the weight ``max(0, z_w)`` at each word w of its spans, z_w = delta_w / its standard error being
how surely the word grew against the base (`gradsteer.discovery.ngrams`). Words that the prompts' topics bring make no
groups then. Without the base's responses it has the inverse document frequency in place of z_w: TF-IDF of words that
are there or not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

from gradsteer.discovery.ngrams import PRIOR, log_odds_ratio, words_of

Precondition = Literal["none", "diagonal", "whitened"]
_FEWEST = 3  # responses with a word
_TINY = 1e-12


@dataclass(frozen=True)
class Preconditioner:
    """Divides sketches by the root of their second moment.

    Attributes:
        scale: (size,), or (size, size) where it whitens; None leaves them as they are.
        unit: whether each is then made of norm 1; one that is 0 stays 0.
    """

    scale: np.ndarray | None
    unit: bool = True

    @classmethod
    def of(
        cls, sketches: np.ndarray, how: Precondition = "diagonal", *, ridge: float = 1e-3, unit: bool = True
    ) -> Self:
        """Takes the second moment of sketches (responses, size).

        Args:
            sketches: those that are grouped.
            how: per coordinate, or whitened; see the module's docstring.
            ridge: added to the moments, as a fraction of their mean.
            unit: see the attribute.

        Raises:
            ValueError: the ridge is not above 0, or the choice is unknown.
        """
        if not ridge > 0:
            raise ValueError(f"ridge is {ridge}; accepted: more than 0")
        if how == "none" or not len(sketches):
            return cls(None, unit)
        if how == "diagonal":
            moments = np.square(sketches).mean(axis=0)
            return cls(1 / np.sqrt(moments + ridge * moments.mean() + _TINY), unit)
        if how != "whitened":
            raise ValueError(f"precondition is {how!r}; accepted: none, diagonal, whitened")
        values, vectors = np.linalg.eigh(sketches.T @ sketches / max(1, len(sketches)))
        values = np.maximum(values, 0)
        return cls((vectors / np.sqrt(values + ridge * values.mean() + _TINY)) @ vectors.T, unit)

    def apply(self, sketches: np.ndarray) -> np.ndarray:
        """(responses, size)."""
        made = sketches
        if self.scale is not None:
            made = sketches * self.scale if self.scale.ndim == 1 else sketches @ self.scale
        return unit_rows(made) if self.unit else made


@dataclass(frozen=True)
class WordWeights:
    """The weight of each word.

    Attributes:
        words: in order.
        weights: (words,).
    """

    words: tuple[str, ...]
    weights: np.ndarray

    @classmethod
    def of(cls, spans: Sequence[str], after: Sequence[str], before: Sequence[str]) -> Self:
        """Weights of the words that stand in the spans of several responses.

        Args:
            spans: the texts of responses' spans, of both sides.
            after: the anchor's whole responses.
            before: the base's; none where there are none, and no growth then.
        """
        held = [set(words_of(text)) for text in spans]
        numbers: dict[str, int] = {}
        for words in held:
            for word in words:
                numbers[word] = numbers.get(word, 0) + 1
        known = tuple(sorted(word for word, number in numbers.items() if number >= _FEWEST))
        counts = np.array([numbers[word] for word in known], dtype=np.float64)
        if before and known:
            return cls(known, np.maximum(_growth(known, after, before), 0))
        return cls(known, np.log((1 + len(spans)) / (1 + counts)) + 1)

    def apply(self, spans: Sequence[str]) -> np.ndarray:
        """(responses, words), each of norm 1; 0 where it has none of the words."""
        places = {word: place for place, word in enumerate(self.words)}
        found = np.zeros((len(spans), len(self.words)))
        for row, text in enumerate(spans):
            for word in words_of(text):
                if word in places:
                    found[row, places[word]] = 1
        return unit_rows(found * self.weights)


def _growth(words: Sequence[str], after: Sequence[str], before: Sequence[str]) -> np.ndarray:
    """z_w (words,) of the words between the whole texts of both sides."""
    places = {word: place for place, word in enumerate(words)}
    counts, totals = np.zeros((2, len(words))), np.zeros(2)
    for side, texts in enumerate((after, before)):
        for text in texts:
            for word in words_of(text):
                totals[side] += 1
                if word in places:
                    counts[side, places[word]] += 1
    share = PRIOR * counts.sum(axis=0) / totals.sum() + _TINY
    errors = np.sqrt((1 / (counts + share)).sum(axis=0))
    found: np.ndarray = log_odds_ratio(counts, totals, share, PRIOR) / errors
    return found


def unit_rows(values: np.ndarray) -> np.ndarray:
    """Rows of norm 1; what is 0 stays 0."""
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    found: np.ndarray = np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)
    return found


def joined(*parts: np.ndarray) -> np.ndarray:
    """Features side by side, each with the same say: rows of norm 1 where all parts' are."""
    found: np.ndarray = np.hstack(parts) / np.sqrt(len(parts))
    return found
