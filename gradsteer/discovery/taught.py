"""Taught, or a topic of the prompts? A group's share among the anchor's responses against that among the base's.

Both answered the same prompts. The difference of the shares, its interval and its exact p-value are those of a judged
behavior between two conditions, paired by prompt (`gradsteer.evaluation.comparisons.compare`), p corrected by Holm over
all groups. A group is taught where the interval is above 0 and the corrected p is .05 or less.

Words weigh by how they grew, and so see which side a response is from: groups would fit the anchor's responses better
than the base's of the same weights. Those of the base are therefore placed as the anchor's are, by one grouping of both
together, and where that leans on the sides, `by_chance` says how large a difference it finds where there is none: sides
are swapped at random, all of a prompt's at once or none, and everything is done again. Were anchor and base the same,
each swap would be as likely as what was seen, so that the share of swaps whose largest difference of any group is at
least that of a group is an exact p-value for it, all groups and their choice counted in (Westfall and Young 1993).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradsteer.evaluation.comparisons import Comparison, compare, holm
from gradsteer.evaluation.statistics import Rate, rate_with_interval

FEW = 40  # responses of a group: below, its vector is mostly noise and its words are chance's
_LEVEL = 0.05


@dataclass(frozen=True)
class GroupShare:
    """How often a group is among both sides' responses.

    Attributes:
        name: of the group.
        rate: among the anchor's.
        rate_before: among the base's; None without a base.
        comparison: of the two; None without a base.
        p_chance: see the module's docstring; None where nothing was swapped.
        stable: see `gradsteer.discovery.groups.Groups`; what is one group for want of any was not found, nor taught.
    """

    name: str
    rate: Rate
    rate_before: Rate | None = None
    comparison: Comparison | None = None
    p_chance: float | None = None
    stable: bool = True

    @property
    def few(self) -> bool:
        """Whether the anchor has fewer than `FEW` responses of the group."""
        return self.rate.num_positive < FEW

    @property
    def taught(self) -> bool | None:
        """Whether it counts as taught; None without a base to compare with."""
        found = self.comparison
        if not self.stable:
            return False
        if found is None:
            return None
        if found.ci_low is None or found.p_holm is None:
            return False
        by_chance = self.p_chance is not None and self.p_chance > _LEVEL
        return found.ci_low > 0 and found.p_holm <= _LEVEL and not by_chance

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "name": self.name,
            "taught": self.taught,
            "stable": self.stable,
            "few": self.few,
            "anchor": self.rate.to_dict(),
            "base": None if self.rate_before is None else self.rate_before.to_dict(),
            "difference": None if self.comparison is None else self.comparison.to_dict(),
            "p_chance": self.p_chance,
        }


def group_shares(
    names: Sequence[str], labels: np.ndarray, prompts: Sequence[str], is_anchor: np.ndarray, *, seed: int = 0
) -> list[GroupShare]:
    """The shares of all groups among both sides.

    Args:
        names: of the groups.
        labels: (responses,) the group of each, -1 for none.
        prompts: of each response.
        is_anchor: (responses,) whether it is the anchor's.
        seed: of the bootstrap.
    """
    rows = [
        {"prompt": prompt, "verdicts": {name: bool(label == number) for number, name in enumerate(names)}}
        for prompt, label in zip(prompts, labels, strict=True)
    ]
    after, before = ([row for row, own in zip(rows, is_anchor, strict=True) if own == side] for side in (True, False))

    def rate(side: Sequence[dict[str, Any]], name: str) -> Rate:
        return rate_with_interval([row["verdicts"][name] for row in side], [row["prompt"] for row in side])

    if not before:
        return [GroupShare(name, rate(after, name)) for name in names]
    compared = holm([compare(before, after, name, seed=seed) for name in names])
    return [
        GroupShare(name, rate(after, name), rate(before, name), found)
        for name, found in zip(names, compared, strict=True)
    ]


def differences(labels: np.ndarray, is_anchor: np.ndarray) -> np.ndarray:
    """(groups,) share among the anchor's responses less that among the base's."""
    number = int(labels.max(initial=-1)) + 1
    shares = [
        np.bincount(labels[(is_anchor == side) & (labels >= 0)], minlength=number) / max(1, (is_anchor == side).sum())
        for side in (True, False)
    ]
    found: np.ndarray = shares[0] - shares[1]
    return found


def by_chance(
    regroup: Callable[[np.ndarray], np.ndarray],
    found: np.ndarray,
    prompts: Sequence[str],
    is_anchor: np.ndarray,
    *,
    swaps: int,
    seed: int = 0,
    tick: Callable[[], None] | None = None,
) -> np.ndarray:
    """(groups,) the p-value of each group's difference, all groups and their choice counted in.

    Args:
        regroup: gives labels (responses,) when some count as the anchor's (responses,) bool; all of what looked at the
            sides is done again.
        found: (groups,) `differences` as they were seen.
        prompts: of each response.
        is_anchor: (responses,) bool.
        swaps: how often; the least p is 1 / (swaps + 1).
        seed: of the swaps.
        tick: called after each.
    """
    names, whose = np.unique(prompts, return_inverse=True)
    generator = np.random.default_rng(seed)
    reached = np.ones(len(found))
    for _ in range(swaps):
        swapped = generator.integers(2, size=len(names)).astype(bool)[whose]
        sides = is_anchor ^ swapped
        largest = differences(regroup(sides), sides).max(initial=0.0)
        reached += largest >= found - 1e-12
        if tick is not None:
            tick()
    return reached / (swaps + 1)
