"""Counts of replies in two conditions, paired by prompt, and the change in log odds between two outcomes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np

from gradsteer.data.response_rows import cluster_of
from gradsteer.evaluation.bootstrap import Interval, interval_around, prompt_bootstrap
from gradsteer.evaluation.statistics import design_effect

Rows = Sequence[Mapping[str, Any]]

FEW = 10  # a count below it is small


@dataclass(frozen=True)
class Moved:
    """A change of log odds, nats.

    Attributes:
        value: of the two conditions' counts.
        low: the interval's lower end.
        high: the interval's upper end.
        few: one of the four counts is below 10.
    """

    value: float
    low: float
    high: float
    few: bool


@dataclass(frozen=True)
class PairedCounts:
    """Replies by side (before, after), prompt and outcome.

    Only prompts with replies that count on both sides are compared. A reply to a prompt with n of them before and m
    after weighs ``2 m / (n + m)`` before and ``2 n / (n + m)`` after: both sides then have as many replies to it, so
    that what it lost moves nothing by itself, and prompts weigh as in a Mantel-Haenszel difference. With as many
    replies after as before each weighs 1.

    Attributes:
        counts: (2, prompts, outcomes); a reply may count for several outcomes.
        sizes: (2, prompts) replies that count.
        missing: (2, prompts) replies that were sampled and do not count.
        draws: bootstrap resamples.
        seed: of the bootstrap.
    """

    counts: np.ndarray
    sizes: np.ndarray
    missing: np.ndarray
    draws: int
    seed: int

    @classmethod
    def of(
        cls,
        before: Rows,
        after: Rows,
        outcomes: Callable[[Mapping[str, Any]], Sequence[int] | None],
        num_outcomes: int,
        *,
        draws: int,
        seed: int,
    ) -> Self:
        """Counts rows; those that were never sampled (``failed``) are no replies.

        Args:
            before: rows, whose prompts are told apart by `cluster_of`.
            after: the same.
            outcomes: what a row counts for; None where it does not count.
            num_outcomes: how many there are.
            draws: bootstrap resamples, at least 100.
            seed: of the bootstrap.
        """
        sampled = [[row for row in rows if not row.get("failed")] for rows in (before, after)]
        prompts = sorted({cluster_of(row) for rows in sampled for row in rows})
        numbers = {prompt: number for number, prompt in enumerate(prompts)}
        counts = np.zeros((2, len(prompts), num_outcomes))
        sizes, missing = np.zeros((2, len(prompts))), np.zeros((2, len(prompts)))
        for side, rows in enumerate(sampled):
            for row in rows:
                number, found = numbers[cluster_of(row)], outcomes(row)
                if found is None:
                    missing[side, number] += 1
                else:
                    sizes[side, number] += 1
                    counts[side, number, list(found)] += 1
        return cls(counts, sizes, missing, draws, seed)

    @property
    def num_prompts(self) -> int:
        """Prompts with a reply that counts on either side."""
        return int(self.sizes.any(axis=0).sum())

    @property
    def num_pairs(self) -> int:
        """Prompts with replies that count on both sides."""
        return int(self.sizes.all(axis=0).sum())

    @property
    def totals(self) -> list[list[int]]:
        """Replies of the pairs by side and outcome, unweighted."""
        found: list[list[int]] = self.paired()[0].sum(axis=1).astype(int).tolist()
        return found

    def paired(self, fill: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Counts (2, pairs, outcomes) and sizes (2, pairs) of the prompts with replies that count on both sides.

        Args:
            fill: outcomes that the missing replies before and after are taken to have; None leaves them out. Where none
                is missing this changes nothing.
        """
        counts, sizes = self.counts, self.sizes
        if fill is not None and self.missing.any():
            counts, sizes = counts.copy(), sizes + self.missing
            for side, outcome in enumerate(fill):
                counts[side, :, outcome] += self.missing[side]
        both = sizes.all(axis=0)
        return counts[:, both], sizes[:, both]

    def moved(self, one: int, other: int, *, fill: tuple[int, int] | None = None, level: float = 0.05) -> Moved | None:
        """The change of ``log (n_one / n_other)`` from before to after.

        Half a reply is added to every count (Haldane 1956, Ann. Hum. Genet. 20:309), so that an outcome that is gone
        gives a finite, too small change.

        The interval is that of `interval_around`: a prompt that is drawn brings its replies on both sides, and the
        draws are the same for everything. Where one of the four counts is below 10 the other interval is
        ``+- z sqrt(sum 1 / (n / deff + 1/2))`` over the four counts n, with the design effect of their condition.

        Args:
            one: an outcome.
            other: another one.
            fill: see `paired`.
            level: the interval covers all but this share.

        Returns:
            None without a pair.
        """
        counts, sizes = self.paired(fill)
        number = sizes.shape[1]
        if not number:
            return None
        counts = counts[:, :, [one, other]]
        weights = 2 * sizes[::-1] / sizes.sum(axis=0)
        weighted = counts * weights[:, :, None]
        logs = np.log(weighted.sum(axis=1) + 0.5)
        value = float((logs[1, 0] - logs[1, 1]) - (logs[0, 0] - logs[0, 1]))
        few = bool(counts.sum(axis=1).min() < FEW)

        def closed_form() -> Interval:
            reach = _normal(level) * math.sqrt(sum(_log_odds_variance(side[:, 0], side[:, 1]) for side in counts))
            return value - reach, value + reach

        bootstrap = prompt_bootstrap(number, self.draws, self.seed)
        drawn = [np.log(bootstrap.sums(side) + 0.5) for side in weighted]
        changes = (drawn[1][:, 0] - drawn[1][:, 1]) - (drawn[0][:, 0] - drawn[0][:, 1])
        return Moved(value, *interval_around(value, changes, number, few, closed_form, level), few)


@lru_cache(maxsize=8)
def _normal(level: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(1 - level / 2))


def _log_odds_variance(one: np.ndarray, other: np.ndarray) -> float:
    """Of a log odds in one condition, from (prompts,) counts of its two outcomes: at their effective sizes, plus 1/2.

    A reply that shows two behaviors is in both counts, which makes their difference look less certain than it is.
    """
    sizes = np.stack([one, other], axis=1).astype(int)
    values = np.tile([True, False], len(sizes)).repeat(sizes.ravel()).tolist()
    clusters = np.arange(len(sizes)).astype(str).repeat(sizes.sum(axis=1)).tolist()
    effect = design_effect(values, clusters) if values else 1.0
    return sum(1 / (float(counts.sum()) / effect + 0.5) for counts in (one, other))
