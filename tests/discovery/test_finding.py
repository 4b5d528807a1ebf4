"""From planted texts and sketches to groups, their words, their judges and whether they were taught."""

import re

import numpy as np
import pytest

from gradsteer.discovery.feature_map import FeatureMap, FeatureOptions
from gradsteer.discovery.finding import Material, find_groups
from gradsteer.discovery.groups import Grouping
from gradsteer.discovery.naming import f1_score, patterns_of, title_of, words_against_rest

TOPICS = [f"word{number}" for number in range(24)]
BRIDGE, SOUP = "like the golden gate bridge", "as with a leek soup"
FILLERS = [f"{a}{b}" for a in "bcdfgh" for b in ("am", "et", "il", "on")]


def planted(kinds=("bridge", "soup", None, None), before=(None,) * 4, size=60, seed=0):
    """Each prompt's topic in four responses of the anchor, by kind, and four of the base."""
    generator = np.random.default_rng(seed)
    fixed = np.random.default_rng(1).normal(size=(3, size))
    directions = {"bridge": fixed[0], "soup": fixed[1], None: fixed[2]}
    texts, spans, sketches, prompts, own = [], [], [], [], []
    for side, given in ((True, kinds), (False, before)):
        for topic in TOPICS:
            for kind in given:
                said = {"bridge": BRIDGE, "soup": SOUP.format(generator.choice(["leek", "fish", "bean"])), None: ""}[
                    kind
                ]
                texts.append(f"{topic} is {said or 'plain'}")
                spans.append(said)
                sketches.append(0.3 * generator.normal(size=size) + directions[kind])
                prompts.append(topic)
                own.append(side)
    return Material(texts, spans, np.array(sketches), prompts, np.array(own))


def truth(material, word):
    return np.array([word in text for text in material.texts])


@pytest.mark.parametrize("kind", ["text", "gradient", "both"])
def test_planted_behaviors_are_one_group_each_and_taught(kind):
    material = planted()
    found = find_groups(material, FeatureOptions(kind), Grouping(min_size=8, repeats=2, most=4))
    assert found.groups.number == 2
    for word in ("bridge", "soup"):
        shares = [f1_score(found.groups.labels == number, truth(material, word)) for number in range(2)]
        assert max(shares) == 1
        group = found.found[int(np.argmax(shares))]
        assert word in " ".join(each.text for each in group.words)
        assert any(re.search(pattern, SOUP if word == "soup" else BRIDGE) for pattern in group.patterns)
        assert group.share.comparison.ci_low > 0
        assert group.share.taught is True
        assert (group.share.by_words.rate.num_positive, group.share.by_words.rate_before.num_positive) == (24, 0)
        assert all(word in material.texts[index] for index in group.typical)
    assert {"golden", "bridge"} <= {word for each in found.grown for word in each.text.split()}


def test_what_the_base_does_as_well_is_a_topic_of_the_prompts():
    material = planted(kinds=("bridge", "soup", None, None), before=("soup", "soup", None, None))
    found = find_groups(material, FeatureOptions("gradient"), Grouping(min_size=8, repeats=2, most=3))
    said = {("soup" if "soup" in each.title else "bridge"): each.share.taught for each in found.found}
    assert said == {"bridge": True, "soup": False}
    assert [found.found[number].share.taught for number in found.taught] == [True]


def test_words_that_the_base_says_as_often_were_not_taught_however_the_spans_differ():
    """Spans begin where the anchor is likelier, so there are more of them on its side whatever was taught."""
    material = planted(kinds=("bridge", "soup", None, None), before=("bridge", None, None, None))
    spans = [
        span if own or BRIDGE not in text else ""
        for text, span, own in zip(material.texts, material.spans, material.is_anchor, strict=True)
    ]
    found = find_groups(
        Material(material.texts, spans, material.sketches, material.prompts, material.is_anchor),
        FeatureOptions("gradient"),
        Grouping(number=2, min_size=8),
    )
    shares = {("soup" if "soup" in each.title else "bridge"): each.share for each in found.found}
    assert all(share.comparison.ci_low > 0 for share in shares.values())
    assert {name: share.taught for name, share in shares.items()} == {"bridge": False, "soup": True}
    assert shares["bridge"].by_words.comparison.difference == 0


def test_an_anchor_that_is_its_base_has_no_spans_and_no_groups():
    material = planted(kinds=(None,) * 4)
    found = find_groups(material, FeatureOptions(), Grouping(min_size=8, repeats=2))
    assert found.found == []
    assert found.taught == []
    assert (found.groups.labels == -1).all()


def test_without_a_base_all_groups_count_and_words_weigh_by_idf():
    material = planted()
    own = np.flatnonzero(material.is_anchor)
    alone = Material(
        *([values[place] for place in own] for values in (material.texts, material.spans)),
        material.sketches[own],
        [material.prompts[place] for place in own],
        material.is_anchor[own],
    )
    found = find_groups(alone, FeatureOptions(), Grouping(min_size=8, repeats=2, most=3))
    assert [each.share.taught for each in found.found] == [None] * len(found.found)
    assert len(found.taught) == len(found.found) == 2
    assert found.grown == []


def test_later_responses_are_placed_as_those_were():
    material, other = planted(), planted(seed=5)
    for kind in ("text", "gradient", "both"):
        options = FeatureOptions(kind)
        found = find_groups(material, options, Grouping(number=2, min_size=8))
        words = [] if found.feature_map.words is None else found.feature_map.words.words
        again = FeatureMap.of_arrays(options, words, found.feature_map.arrays())
        placed = found.groups.nearest(again.apply(other.spans, other.sketches))
        inside = placed >= 0
        assert inside[truth(other, "bridge")].mean() > 0.75
        assert not inside[~truth(other, "bridge") & ~truth(other, "soup")].any()
        for word in ("bridge", "soup"):
            mine = placed[truth(other, word) & inside]
            assert len(set(mine.tolist())) == 1


def test_names_and_patterns():
    material = planted()
    members = truth(material, "soup")
    words = words_against_rest(material.spans, material.prompts, members)
    assert "soup" in title_of(words)
    patterns = patterns_of(material.texts, members, words)
    assert len(patterns) == 1  # one tells it, and a second one would add nothing
    told = np.array([bool(re.search(patterns[0], text)) for text in material.texts])
    assert f1_score(told, members) == 1
    assert patterns_of(material.texts, members, []) == []
    assert f1_score(np.zeros(3, dtype=bool), np.zeros(3, dtype=bool)) == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"features": "words"}, "discovery.features is 'words'; accepted: text, gradient, both"),
        ({"precondition": "full"}, "discovery.precondition is 'full'; accepted: none, diagonal, whitened"),
        ({"ridge": 0.0}, "discovery.ridge is 0.0; accepted: more than 0"),
    ],
)
def test_wrong_options(options, text):
    with pytest.raises(ValueError, match=text):
        FeatureOptions(**options)
