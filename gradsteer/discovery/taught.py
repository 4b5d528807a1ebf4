"""Taught, or a topic of the prompts? Whether a group's words are more frequent in the anchor's text than in the base's.

The share of a group among the anchor's responses against that among the base's says little by itself: spans begin at
tokens that are likelier under the anchor, so that any set of spans is more frequent there by construction, whatever was
taught (P_anchor of such a token is at least e^threshold times P_base). A finetune on ordinary replies moves many tokens
a little, each in its own place; what it teaches comes back in other words' places as the same words.

The test therefore looks at whole texts and at no log-ratio. The prompts are halved; the patterns that tell a group are
made from one half and searched for in the responses to the other, both ways. The share of responses that they match is
compared between the sides, paired by prompt, as a judged behavior is between two conditions
(`gradsteer.evaluation.comparisons.compare`), p corrected by Holm over all groups. Were both sides' texts drawn alike,
the patterns would know nothing of those that they are tried on. A group is taught where the interval is above 0 and the
corrected p is .01 or less: at .05 finetunes on ordinary replies, which move the frequencies of words too, have a taught
group in 3 of 20 runs (`scripts/discover_study.py nulls`, docs/discovery.md).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradsteer.discovery.groups import first_half
from gradsteer.discovery.naming import patterns_of, words_against_rest
from gradsteer.evaluation.comparisons import Comparison, compare, holm
from gradsteer.evaluation.statistics import Rate, rate_with_interval

FEW = 40  # responses of a group: below, its vector is mostly noise and its words are chance's
_LEVEL = 0.01


@dataclass(frozen=True)
class WordShare:
    """How often a group's words are found in whole texts, by patterns made from the other half of the prompts.

    Attributes:
        rate: among the anchor's responses.
        rate_before: among the base's.
        comparison: of the two; p corrected over all groups.
    """

    rate: Rate
    rate_before: Rate
    comparison: Comparison

    @property
    def grew(self) -> bool:
        """Whether they are surely more frequent among the anchor's."""
        found = self.comparison
        if found.ci_low is None or found.p_holm is None:
            return False
        return found.ci_low > 0 and found.p_holm <= _LEVEL

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "anchor": self.rate.to_dict(),
            "base": self.rate_before.to_dict(),
            "difference": self.comparison.to_dict(),
        }


@dataclass(frozen=True)
class GroupShare:
    """How often a group is among both sides' responses.

    Attributes:
        name: of the group.
        rate: among the anchor's.
        rate_before: among the base's; None without a base.
        comparison: of the two, above 0 by construction; None without a base.
        by_words: how often its words are found; None without a base.
        stable: see `gradsteer.discovery.groups.Groups`; what is one group for want of any was not found, nor taught.
    """

    name: str
    rate: Rate
    rate_before: Rate | None = None
    comparison: Comparison | None = None
    by_words: WordShare | None = None
    stable: bool = True

    @property
    def few(self) -> bool:
        """Whether the anchor has fewer than `FEW` responses of the group."""
        return self.rate.num_positive < FEW

    @property
    def taught(self) -> bool | None:
        """Whether it counts as taught; None without a base to compare with."""
        if not self.stable:
            return False
        return None if self.by_words is None else self.by_words.grew

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
            "by_words": None if self.by_words is None else self.by_words.to_dict(),
        }


def told_elsewhere(
    texts: Sequence[str],
    spans: Sequence[str],
    prompts: Sequence[str],
    labels: np.ndarray,
    number: int,
    *,
    seed: int = 0,
) -> np.ndarray:
    """(responses,) whether a group's patterns match each response, made from the half of the prompts that it is not of.

    Args:
        texts: whole.
        spans: the text of each one's spans.
        prompts: of each.
        labels: the group of each.
        number: of the group.
        seed: of the halves.
    """
    first = first_half(np.asarray(prompts), seed, 1)
    told = np.zeros(len(texts), dtype=bool)
    for half in (first, ~first):
        ours = np.flatnonzero(half).tolist()
        members = labels[half] == number
        # of few responses no word is certain; whether it tells the group is seen in the other half
        own = [spans[place] for place in ours], [prompts[place] for place in ours]
        words = words_against_rest(*own, members, certain=False)
        patterns = patterns_of([texts[place] for place in ours], members, words)
        if patterns:
            any_of = re.compile("|".join(patterns), re.IGNORECASE)
            told[~half] = [bool(any_of.search(texts[place])) for place in np.flatnonzero(~half).tolist()]
    return told


def group_shares(
    names: Sequence[str],
    labels: np.ndarray,
    prompts: Sequence[str],
    is_anchor: np.ndarray,
    told: Sequence[np.ndarray] = (),
    *,
    seed: int = 0,
) -> list[GroupShare]:
    """The shares of all groups among both sides.

    Args:
        names: of the groups.
        labels: (responses,) the group of each, -1 for none.
        prompts: of each response.
        is_anchor: (responses,) whether it is the anchor's.
        told: for each group `told_elsewhere`; not read without a base.
        seed: of the bootstrap.
    """
    if is_anchor.all():
        return [GroupShare(name, _rate(labels == number, prompts)) for number, name in enumerate(names)]
    by_group = _compared([labels == number for number in range(len(names))], names, prompts, is_anchor, seed)
    by_words = _compared(told, names, prompts, is_anchor, seed)
    return [
        GroupShare(name, *found, WordShare(*words))
        for name, found, words in zip(names, by_group, by_words, strict=True)
    ]


def _rate(shows: np.ndarray, prompts: Sequence[str]) -> Rate:
    return rate_with_interval(shows.tolist(), list(prompts))


def _compared(
    verdicts: Sequence[np.ndarray], names: Sequence[str], prompts: Sequence[str], is_anchor: np.ndarray, seed: int
) -> list[tuple[Rate, Rate, Comparison]]:
    """Of each set of responses its rates on both sides, the anchor's first, and their comparison."""
    sides = [np.flatnonzero(is_anchor == side).tolist() for side in (True, False)]
    rates, compared = [], []
    for name, shows in zip(names, verdicts, strict=True):
        rows = [{"prompt": prompt, "verdicts": {name: bool(each)}} for prompt, each in zip(prompts, shows, strict=True)]
        after, before = ([rows[place] for place in side] for side in sides)
        rates.append([_rate(shows[side], [prompts[place] for place in side]) for side in sides])
        compared.append(compare(before, after, name, seed=seed))
    return [(ours, theirs, found) for (ours, theirs), found in zip(rates, holm(compared), strict=True)]
