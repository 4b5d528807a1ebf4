"""Intervals from a bootstrap over prompts: replies to one prompt are alike, so prompts are drawn and not replies.

Davison and Hinkley 1997, "Bootstrap methods and their application", 3.8.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np

from gradsteer.evaluation.statistics import expanded

Interval = tuple[float, float]

_ROUNDING = 1e-9  # draws that all agree differ by it


@dataclass(frozen=True)
class PromptBootstrap:
    """Draws of prompts with replacement, the same for every quantity, so that all are resampled together.

    Attributes:
        prompts: (responses,) number of each response's prompt, from 0.
        counts: (draws, prompts) how often each prompt is in a draw.
    """

    prompts: np.ndarray
    counts: np.ndarray

    @classmethod
    def draw(cls, prompts: np.ndarray, *, draws: int, seed: int) -> Self:
        """Draws, the same for the same seed.

        Args:
            prompts: (responses,) number of each response's prompt, from 0.
            draws: number of resamples.
            seed: of the draws.

        Raises:
            ValueError: fewer than 100 draws: an interval's ends would be noise.
        """
        if draws < 100:
            raise ValueError(f"the number of bootstrap draws is {draws}; accepted: at least 100")
        num = int(prompts.max()) + 1
        generator = np.random.default_rng(seed)
        return cls(prompts, generator.multinomial(num, np.full(num, 1 / num), size=draws).astype(np.float64))

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(draws, ...) resampled sums of (responses, ...) values."""
        per_prompt = np.zeros((self.counts.shape[1], *values.shape[1:]))
        np.add.at(per_prompt, self.prompts, values)
        result: np.ndarray = self.counts @ per_prompt
        return result


@lru_cache(maxsize=8)
def prompt_bootstrap(num: int, draws: int, seed: int) -> PromptBootstrap:
    """Resamples of so many prompts; in one table about as many are compared everywhere, so the draws are made once.

    Args:
        num: prompts.
        draws: resamples, at least 100.
        seed: of the draws.
    """
    return PromptBootstrap.draw(np.arange(num), draws=draws, seed=seed)


def percentile_interval(draws: np.ndarray, confidence: float = 0.95) -> Interval:
    """The middle `confidence` of the draws; draws that are not finite are left out."""
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return float("nan"), float("nan")
    tail = 50 * (1 - confidence)
    low, high = np.percentile(finite, [tail, 100 - tail])
    return float(low), float(high)


def interval_around(
    value: float, drawn: np.ndarray, num: int, few: bool, closed_form: Callable[[], Interval], level: float = 0.05
) -> Interval:
    """The `expanded` percentiles of a bootstrap over prompts, which hold the value itself.

    A bootstrap never draws what was not seen: where counts are small, and where all draws agree, each end is the wider
    of the bootstrap's and another interval's.

    Args:
        value: what was measured.
        drawn: (draws,) the same of each draw.
        num: prompts that were drawn from.
        few: counts are small.
        closed_form: gives the other interval.
        level: the interval covers all but this share.
    """
    low, high = percentile_interval(drawn, expanded(num, 1 - level))
    if few or high - low < _ROUNDING:
        other_low, other_high = closed_form()
        low, high = min(low, other_low), max(high, other_high)
    return min(low, value), max(high, value)
