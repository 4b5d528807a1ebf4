"""Credit: which tokens of a judged reply its verdict is put down to.

The ``sum`` gradient of a reply at its sampling temperature is a score function, and with R = 1 where a reply shows the
behavior, else 0, any function b of what comes before a token leaves its mean as it is:

    grad P(R = 1) = E[ sum_t (R - b_t) grad log p(y_t | prompt, y_<t) ]

(the baseline of REINFORCE: Williams 1992, "Simple statistical gradient-following algorithms"; Greensmith, Bartlett and
Baxter 2004, "Variance reduction techniques for gradient estimates"). ``S = -grad log(P / (1 - P))`` is the contrast of
two piles that share out all replies, ``E[g | R = 1] - E[g | R = 0]``, g the gradient of a reply's summed loss. So the
weights of a token's loss are, with Q_t = P(R = 1 | prompt, y_<t) for b_t:

    (1 - Q_t) / (1 - P)   in the pile that shows the behavior,      Q_t / P   in the other one.

A constant Q = P gives 1: plain replies. Generalised advantage estimation (Schulman et al. 2016, "High-dimensional
continuous control using generalized advantage estimation") puts ``A_t = sum_k lambda^k (Q_{t+k+1} - Q_{t+k})`` in the
place of R - Q_t, R being the last Q: what the tokens soon after t did to the odds. Lambda 1 is R - Q_t.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Credit = Literal["reply", "decided", "baseline", "advantage"]


@dataclass(frozen=True)
class CreditOptions:
    """Which credit, and its decay.

    Attributes:
        credit: ``reply``: every token alike; ``decided``: none behind the place where the verdict was decided;
            ``baseline`` and ``advantage``: see the module's docstring.
        decay: lambda of ``advantage``; None for others.

    Raises:
        ValueError: a value is out of its range.
    """

    credit: Credit = "reply"
    decay: float | None = None

    def __post_init__(self) -> None:
        if self.credit not in get_args(Credit):
            raise ValueError(f"model.credit is {self.credit!r}; accepted: {', '.join(get_args(Credit))}")
        if self.decay is not None and not 0 <= self.decay <= 1:
            raise ValueError(f"model.advantage_lambda is {self.decay}; accepted: 0 to 1")

    @property
    def predicts(self) -> bool:
        """Whether verdicts are predicted from replies' first tokens."""
        return self.credit in ("baseline", "advantage")

    @property
    def cuts(self) -> bool:
        """Whether replies end where their class is decided, if their judge says where."""
        return self.credit != "reply"

    @property
    def unbiased(self) -> "CreditOptions":
        """The same where it leaves the mean of the score function as it is; ``baseline`` for ``advantage``."""
        return CreditOptions("baseline") if self.credit == "advantage" else self

    def metadata(self) -> dict[str, str]:
        """What a file says of it; nothing of ``reply``."""
        decay = {} if self.decay is None else {"advantage_lambda": repr(self.decay)}
        return {} if self.credit == "reply" else {"credit": self.credit, **decay}

    def weights(self, odds: np.ndarray, *, shows: bool, rate: float) -> np.ndarray:
        """What each token's loss in a reply is multiplied by.

        Args:
            odds: (tokens,) Q_t, the probability that the reply would show the behavior, before each token.
            shows: whether it does.
            rate: of the behavior among all replies, more than 0 and less than 1.

        Returns:
            (tokens,) float64; with odds equal to the rate everywhere, and without a decay, all 1.
        """
        following = np.append(odds[1:], float(shows))
        gains = following - odds
        decay = 1.0 if self.decay is None else self.decay
        advantages, later = np.empty_like(gains), 0.0
        for index in range(len(gains) - 1, -1, -1):
            advantages[index] = later = gains[index] + decay * later
        weights: np.ndarray = advantages / (1 - rate) if shows else -advantages / rate
        return weights
