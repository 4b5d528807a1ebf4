"""Taught or not."""

from dataclasses import replace

import numpy as np
import pytest

from gradsteer.discovery.taught import by_chance, differences, group_shares

PROMPTS = [f"p{number}" for number in range(30) for _ in range(4)]


def sides(after, before):
    """Labels of both sides' responses to the same prompts."""
    labels = np.array([*after, *before])
    return labels, PROMPTS * 2, np.repeat([True, False], len(PROMPTS))


def test_a_taught_group_and_a_topic_of_the_prompts():
    topic = [1 if number < 40 else -1 for number in range(120)]  # the first ten prompts', on both sides
    labels, prompts, is_anchor = sides([0 if n % 4 < 2 and t < 0 else t for n, t in enumerate(topic)], topic)
    taught, same = group_shares(["a", "b"], labels, prompts, is_anchor)
    assert replace(taught, stable=False).taught is False  # one group for want of a stable number was not found
    assert taught.taught is True
    assert taught.rate.num_positive == 40
    assert not taught.few
    assert taught.rate_before.num_positive == 0
    assert taught.comparison.difference == pytest.approx(1 / 3)
    assert taught.comparison.p_holm == pytest.approx(2 * taught.comparison.p)
    assert same.taught is False
    assert same.comparison.difference == 0
    np.testing.assert_allclose(differences(labels, is_anchor), [1 / 3, 0])
    assert taught.to_dict()["taught"] is True


def test_without_a_base_nothing_is_said():
    (found,) = group_shares(["a"], np.array([0, -1, 0]), ["p", "p", "q"], np.ones(3, dtype=bool))
    assert found.taught is None
    assert found.few
    assert found.to_dict()["base"] is None


def test_swaps_count_in_the_choice_of_the_groups():
    """A grouping that looks at the sides finds a difference everywhere; the p-value says so."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=(240, 30))

    def regroup(is_anchor):
        gaps = values[is_anchor].mean(axis=0) - values[~is_anchor].mean(axis=0)
        return np.where(values[:, gaps.argmax()] > 0.5, 0, -1)  # the coordinate that grew most

    _, prompts, is_anchor = sides([0] * 120, [0] * 120)
    labels = regroup(is_anchor)
    (chance,) = by_chance(regroup, differences(labels, is_anchor), prompts, is_anchor, swaps=39)
    assert chance > 0.05
    values[is_anchor, 3] += 2
    labels = regroup(is_anchor)
    (real,) = by_chance(regroup, differences(labels, is_anchor), prompts, is_anchor, swaps=39)
    assert real == pytest.approx(1 / 40)
