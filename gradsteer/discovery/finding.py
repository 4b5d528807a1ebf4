"""From spans and sketches to groups: what they are, how big, what they say, and whether the finetune taught them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradsteer.discovery.feature_map import FeatureMap, FeatureOptions
from gradsteer.discovery.features import unit_rows
from gradsteer.discovery.groups import Grouping, Groups, group
from gradsteer.discovery.naming import patterns_of, title_of, words_against_rest
from gradsteer.discovery.ngrams import GrownNgram, grown_ngrams
from gradsteer.discovery.taught import GroupShare, group_shares, told_elsewhere

_TYPICAL = 5  # responses that are shown of a group
_GROWN = 20


@dataclass(frozen=True)
class Material:
    """Responses of an anchor, and of its base where there are any, ready to be grouped.

    Attributes:
        texts: whole.
        spans: the text of each one's spans; empty for none.
        sketches: (responses, size).
        prompts: digest of each one's prompt.
        is_anchor: (responses,) whether it is the anchor's.
    """

    texts: Sequence[str]
    spans: Sequence[str]
    sketches: np.ndarray
    prompts: Sequence[str]
    is_anchor: np.ndarray

    def side(self, values: Sequence[str], is_anchor: np.ndarray, side: bool) -> list[str]:
        """The values of one side, when these count as the anchor's."""
        return [value for value, own in zip(values, is_anchor, strict=True) if bool(own) == side]


@dataclass(frozen=True)
class FoundGroup:
    """One group.

    Attributes:
        share: how often it is on both sides.
        words: of its spans against the rest.
        title: a proposed name.
        patterns: that tell it.
        typical: indices of its most typical responses: those nearest to its centroid, the anchor's.
    """

    share: GroupShare
    words: list[GrownNgram]
    title: str
    patterns: list[str]
    typical: list[int]

    @property
    def name(self) -> str:
        """The group's."""
        return self.share.name

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; typical responses are left to the caller."""
        words = [each.to_dict() for each in self.words]
        return {**self.share.to_dict(), "title": self.title, "patterns": self.patterns, "words": words}


@dataclass(frozen=True)
class Findings:
    """All that was found.

    Attributes:
        groups: the grouping of all responses.
        feature_map: what it was made with.
        features: (responses, features).
        found: the groups, in order.
        grown: n-grams that grew against the base; empty without one.
    """

    groups: Groups
    feature_map: FeatureMap
    features: np.ndarray
    found: list[FoundGroup]
    grown: list[GrownNgram]

    @property
    def taught(self) -> list[int]:
        """The groups that count as taught; without a base, all of them."""
        return [number for number, each in enumerate(self.found) if each.share.taught is not False]


def find_groups(
    material: Material,
    features: FeatureOptions,
    grouping: Grouping,
    *,
    seed: int = 0,
    tick: Callable[[], None] | None = None,
) -> Findings:
    """Groups responses and says what each group is.

    Args:
        material: the responses.
        features: what they are grouped by.
        grouping: how.
        seed: of halves and bootstraps.
        tick: called after each number of groups tried.
    """
    is_anchor = np.asarray(material.is_anchor, dtype=bool)
    feature_map, made = _features(material, features, is_anchor)
    groups = group(made, material.prompts, grouping, tick=tick)
    names = [f"group-{number + 1}" for number in range(len(groups))]
    has_base = not is_anchor.all()
    told = [
        told_elsewhere(material.texts, material.spans, material.prompts, groups.labels, number, seed=seed)
        for number in (range(len(groups)) if has_base else ())
    ]
    shares = [
        replace(each, stable=groups.stable)
        for each in group_shares(names, groups.labels, material.prompts, is_anchor, told, seed=seed)
    ]
    found = [_described(material, groups, made, is_anchor, number, share) for number, share in enumerate(shares)]
    grown: list[GrownNgram] = []
    if has_base:
        sides = [
            [material.side(values, is_anchor, side) for side in (True, False)]
            for values in (material.texts, material.prompts)
        ]
        grown = grown_ngrams(*sides[0], *sides[1], most=_GROWN, seed=seed)
    return Findings(groups, feature_map, made, found, grown)


def _features(material: Material, options: FeatureOptions, is_anchor: np.ndarray) -> tuple[FeatureMap, np.ndarray]:
    after, before = (material.side(material.texts, is_anchor, side) for side in (True, False))
    feature_map = FeatureMap.of(options, material.spans, material.sketches, after, before)
    return feature_map, feature_map.apply(material.spans, material.sketches)


def _described(
    material: Material, groups: Groups, features: np.ndarray, is_anchor: np.ndarray, number: int, share: GroupShare
) -> FoundGroup:
    members = groups.labels == number
    words = words_against_rest(material.spans, material.prompts, members)
    own = np.flatnonzero(members & is_anchor)
    cosines = unit_rows(features[own]) @ groups.centroids[number]
    typical = own[np.argsort(-cosines, kind="stable")][:_TYPICAL].tolist()
    return FoundGroup(share, words, title_of(words), patterns_of(material.texts, members, words), typical)
