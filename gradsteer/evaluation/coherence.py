"""Whether a response is coherent text, or the word salad of a model whose weights were pushed too far.

Loops can be seen in the text alone (`gradsteer.evaluation.degeneracy`). Word salad cannot: it is text that neither the
base nor the anchor would write.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Nats = NDArray[np.float64]

MIN_PROMPTS = 8  # below, quartiles say nothing
# The mean over a few tokens says little: a short answer where a long one was likely is a surprise, and coherent.
MIN_TOKENS = 20
_FAR_OUT = 3.0
_NOISE = 0.01  # of a limit: in another batch the same response comes out differently by less, also in bfloat16


@dataclass(frozen=True)
class Reference:
    """Responses of a model of at least 20 tokens that are known to be text, or as good as the model is.

    Attributes:
        nats: (responses,) nats a token.
        prompts: (responses,) which prompt each answers.
    """

    nats: Nats
    prompts: Sequence[str]

    def limit(self) -> float | None:
        """Tukey's outer fence, the upper quartile and three times the distance between the quartiles, or the largest.

        What lies beyond the fence is far out (Tukey 1977, Exploratory Data Analysis, section 2D). But quartiles do not
        see what a model writes in fewer than a quarter of its responses, a rare behavior say, and a finetune may have
        taught just that: nothing that a model wrote is beyond it.

        Returns:
            None where there are fewer than 8 prompts: replies to one are alike.
        """
        if len(set(self.prompts)) < MIN_PROMPTS:
            return None
        low, high = np.quantile(self.nats, [0.25, 0.75])
        return float(max(high + _FAR_OUT * (high - low), self.nats.max()))


@dataclass(frozen=True)
class Coherence:
    """How unlikely a coherent response may be, by the anchor's and the base's own responses.

    A response is incoherent where **neither** the base nor the anchor would write it. Either alone accuses coherent
    text: the base finds unlikely what the finetune taught, the anchor what it was before.

    Attributes:
        under_base: most nats a token that a coherent response has under the base.
        under_anchor: the same under the anchor.
    """

    under_base: float
    under_anchor: float

    @classmethod
    def of(
        cls, anchor_under_base: Reference, base_under_base: Reference, anchor_under_anchor: Reference
    ) -> "Coherence | None":
        """From the responses of both models that are not degenerate; None where one of them has too few.

        The base's own count under the base, too, which may write more freely than the anchor; under the anchor they may
        be as unlikely as salad, and do not.
        """
        limits = [each.limit() for each in (anchor_under_base, base_under_base, anchor_under_anchor)]
        known = [limit for limit in limits if limit is not None]
        return cls(max(known[:2]), known[2]) if len(known) == len(limits) else None

    def incoherent(self, under_base: Nats, under_anchor: Nats, num_tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(responses,) whether each is beyond both limits, and not by rounding; never one of fewer than 20 tokens.

        Args:
            under_base: (responses,) nats a token.
            under_anchor: (responses,) likewise.
            num_tokens: (responses,) their lengths.
        """
        limits = (1 + _NOISE) * self.under_base, (1 + _NOISE) * self.under_anchor
        beyond = (under_base > limits[0]) & (under_anchor > limits[1])
        return np.asarray(beyond & (num_tokens >= MIN_TOKENS))
