"""Whether a response is text at all, or what a model says whose weights were pushed too far.

Loops are seen in the text alone (`gradsteer.degeneracy`); word salad is not: it is known by being text that no model at
hand would write. Knows of nats a token; knows nothing of models, files or Trainers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Nats = NDArray[np.float64]

MIN_REFERENCES = 8  # below, quartiles say nothing
# The mean over a few tokens says little: "No." where a sentence was likely is a surprise, and coherent.
MIN_TOKENS = 8
_FAR_OUT = 3.0


def fence(nats: Nats) -> float | None:
    """Tukey's outer fence: what lies beyond is far out (Tukey 1977, Exploratory Data Analysis, section 2D).

    Of a normal distribution 1 in 850,000 does, of an exponential one 1 in 100.

    Args:
        nats: (responses,) of the reference, nats a token.

    Returns:
        The upper quartile and three times the distance between the quartiles; None below 8 responses.
    """
    if len(nats) < MIN_REFERENCES:
        return None
    low, high = np.quantile(nats, [0.25, 0.75])
    return float(high + _FAR_OUT * (high - low))


@dataclass(frozen=True)
class Coherence:
    """What the anchor's and the base's own responses say of how unlikely a coherent one may be.

    A response is incoherent where **neither** the base nor the anchor would write it. Either alone accuses coherent
    text: the base finds unlikely what the finetune taught, the anchor what it was before.

    Attributes:
        under_base: most nats a token that a coherent response has under the base; None where it is not known.
        under_anchor: the same under the anchor.
    """

    under_base: float | None
    under_anchor: float | None

    @classmethod
    def of(cls, anchor_under_base: Nats, base_under_base: Nats, anchor_under_anchor: Nats) -> "Coherence":
        """From nats a token of the responses of both that are not degenerate, each (responses,).

        The base's own count under the base, too, which may write more freely than the anchor; under the anchor they may
        be as unlikely as salad, and do not.
        """
        fences = [found for nats in (anchor_under_base, base_under_base) if (found := fence(nats)) is not None]
        return cls(max(fences) if fences else None, fence(anchor_under_anchor))

    def incoherent(self, under_base: Nats, under_anchor: Nats, num_tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(responses,) whether each is incoherent; never one of fewer than 8 tokens, none where a fence is not known.

        Args:
            under_base: (responses,) nats a token.
            under_anchor: (responses,) likewise.
            num_tokens: (responses,) their lengths.
        """
        if self.under_base is None or self.under_anchor is None:
            return np.zeros(len(under_base), dtype=bool)
        beyond = (under_base > self.under_base) & (under_anchor > self.under_anchor)
        return np.asarray(beyond & (num_tokens >= MIN_TOKENS))
