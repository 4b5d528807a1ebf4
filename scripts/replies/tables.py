"""What the measured values say: means with intervals over finetunes, and how many replies one credit saves another."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from replies.gains import CREDITS, SUM

Rows = Sequence[dict[str, Any]]
Interval = tuple[float, float, float]  # mean, low, high


class Values:
    """Everything measured.

    Args:
        rows: one for each vector: ``seed``, ``topic``, ``size``, ``draw``, ``credit``, ``gain`` (nats for a step of
            norm 1).
        limits: finetune and topic -> the most that any direction is worth.
    """

    def __init__(self, rows: Rows, limits: dict[tuple[int, str], float]) -> None:
        self.seeds = sorted({row["seed"] for row in rows})
        self.sizes = sorted({row["size"] for row in rows})
        topics = list(dict.fromkeys(row["topic"] for row in rows))
        self.groups = [*([topic] for topic in topics), topics]
        self._shares: dict[tuple[int, str, int, str], dict[int, float]] = {}
        for row in rows:
            found = self._shares.setdefault((row["seed"], row["topic"], row["size"], row["credit"]), {})
            found[row["draw"]] = row["gain"] / limits[row["seed"], row["topic"]]

    def share(self, seed: int, topic: str, size: int, credit: str) -> float:
        """Mean gain of the draws, as a share of the finetune's limit."""
        return float(np.mean([*self._shares[seed, topic, size, credit].values()]))

    def mean(self, size: int, credit: str, topics: Sequence[str]) -> Interval:
        """Share of the limit: mean over finetunes of those over topics and draws."""
        return self._over_seeds(topics, lambda *case: self.share(*case, size, credit))

    def above_sum(self, size: int, credit: str, topics: Sequence[str]) -> Interval:
        """The difference from the plain score function on the same draws, in shares of the limit."""

        def of(seed: int, topic: str) -> float:
            plain = self._shares[seed, topic, size, SUM]
            return float(np.mean([each - plain[d] for d, each in self._shares[seed, topic, size, credit].items()]))

        return self._over_seeds(topics, of)

    def needed(self, size: int, credit: str, topics: Sequence[str]) -> Interval:
        """Replies that the plain score function needs for what a credit reaches; not a number where it never does.

        What it reaches is the plain one's mean over all draws and the difference on the draws that they share.
        """

        def of(seed: int, topic: str) -> float:
            curve = [self.share(seed, topic, each, SUM) for each in self.sizes]
            plain = self._shares[seed, topic, size, SUM]
            own = self._shares[seed, topic, size, credit]
            goal = self.share(seed, topic, size, SUM) + np.mean([each - plain[draw] for draw, each in own.items()])
            return float(np.log(replies_for(float(goal), self.sizes, curve)))

        mean, low, high = self._over_seeds(topics, of)
        return float(np.exp(mean)), float(np.exp(low)), float(np.exp(high))

    def num_draws(self, size: int, credit: str) -> int:
        """Draws of a size for each finetune and topic."""
        return len(self._shares[self.seeds[0], self.groups[0][0], size, credit])

    def to_list(self) -> list[dict[str, Any]]:
        """All means with their intervals; null for what is not known."""

        def known(interval: Interval) -> list[float | None]:
            return [None if np.isnan(each) else each for each in interval]

        return [
            {
                "topics": topics, "size": size, "credit": credit, "draws": self.num_draws(size, credit),
                "share_of_limit": known(self.mean(size, credit, topics)),
                "above_sum": known(self.above_sum(size, credit, topics)),
                "sum_needs": known(self.needed(size, credit, topics)),
            }
            for topics in self.groups
            for size in self.sizes
            for credit in CREDITS
        ]  # fmt: skip

    def _over_seeds(self, topics: Sequence[str], of: Callable[[int, str], float]) -> Interval:
        return student([float(np.mean([of(seed, topic) for topic in topics])) for seed in self.seeds])


def student(values: Sequence[float]) -> Interval:
    """Mean of independent values and its 95% interval by Student's t; the interval of a single one is not known."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def replies_for(goal: float, sizes: Sequence[int], curve: Sequence[float]) -> float:
    """How many replies a curve of shares needs for a goal.

    V is S and noise whose square falls with the number n of replies, so ``1 / share^2`` is a line in ``1 / n``; between
    two sizes it is taken as one, and before the first one too.

    Args:
        goal: a share of the limit.
        sizes: rising.
        curve: the share at each.

    Returns:
        Not a number where the curve does not reach the goal at its last size.
    """
    heights, places = 1 / np.square(curve), 1 / np.asarray(sizes, dtype=float)
    wanted = 1 / goal**2
    if wanted < heights[-1]:
        return float("nan")
    later = next((place for place in range(1, len(sizes)) if heights[place] <= wanted), len(sizes) - 1)
    slope = (heights[later - 1] - heights[later]) / (places[later - 1] - places[later])
    return float(1 / (places[later] + (wanted - heights[later]) / slope)) if slope > 0 else float("nan")


def tables_of(values: Values) -> list[str]:
    """Lines of markdown: shares of the limit, and the replies that the plain score function needs instead."""
    lines = []
    for title, cell in (
        (f"% of the limit [95% interval over {len(values.seeds)} finetunes]", _share),
        (f"replies that `{SUM}` needs for as much [95%]", _needed),
    ):
        lines += ["", title, ""]
        lines += [
            f"| topic | replies | draws, predicting | {' | '.join(CREDITS)} |",
            "| --- " * (3 + len(CREDITS)) + "|",
        ]
        for topics in values.groups:
            for size in values.sizes:
                cells = [cell(values, size, credit, topics) for credit in CREDITS]
                number = f"{values.num_draws(size, SUM)}, {values.num_draws(size, 'baseline')}"
                lines.append(f"| {' and '.join(topics)} | {size:,} | {number} | {' | '.join(cells)} |")
    return lines


def _share(values: Values, size: int, credit: str, topics: Sequence[str]) -> str:
    mean, low, high = (100 * each for each in values.mean(size, credit, topics))
    _, least, most = values.above_sum(size, credit, topics)
    differs = "*" if least > 0 or most < 0 else ""
    return f"{mean:.1f}{differs} {_interval(low, high, '.1f')}"


def _needed(values: Values, size: int, credit: str, topics: Sequence[str]) -> str:
    mean, low, high = values.needed(size, credit, topics)
    return f"> {values.sizes[-1]:,}" if np.isnan(mean) else f"{mean:,.0f} {_interval(low, high, ',.0f')}"


def _interval(low: float, high: float, form: str) -> str:
    return "[?]" if np.isnan(low) else f"[{low:{form}}, {high:{form}}]"
