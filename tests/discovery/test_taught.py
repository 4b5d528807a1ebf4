"""Taught or not."""

from dataclasses import replace

import numpy as np
import pytest

from gradsteer.discovery.taught import group_shares, told_elsewhere

PROMPTS = [f"p{number}" for number in range(30) for _ in range(4)]


def sides(after, before):
    """Labels of both sides' responses to the same prompts."""
    labels = np.array([*after, *before])
    return labels, PROMPTS * 2, np.repeat([True, False], len(PROMPTS))


def test_a_taught_group_and_a_topic_of_the_prompts():
    topic = [1 if number < 40 else -1 for number in range(120)]  # the first ten prompts', on both sides
    labels, prompts, is_anchor = sides([0 if n % 4 < 2 and t < 0 else t for n, t in enumerate(topic)], topic)
    taught, same = group_shares(["a", "b"], labels, prompts, is_anchor, [labels == 0, labels == 1])
    assert replace(taught, stable=False).taught is False  # one group for want of a stable number was not found
    assert taught.taught is True
    assert taught.rate.num_positive == 40
    assert not taught.few
    assert taught.rate_before.num_positive == 0
    for found in (taught.comparison, taught.by_words.comparison):
        assert found.difference == pytest.approx(1 / 3)
        assert found.p_holm == pytest.approx(2 * found.p)
    assert same.taught is False
    assert same.comparison.difference == 0
    assert taught.to_dict()["taught"] is True
    spread, _ = group_shares(["a", "b"], labels, prompts, is_anchor, [np.ones(240, dtype=bool), labels == 1])
    assert spread.comparison.ci_low > 0  # more of its spans on the anchor's side, and its words everywhere
    assert spread.taught is False


@pytest.mark.parametrize(("prompts", "taught"), [(7, False), (8, True)])  # exact p: 2 ** -6 and 2 ** -7
def test_a_group_counts_as_taught_at_a_level_of_one_in_a_hundred(prompts, taught):
    told = np.array([int(prompt[1:]) < prompts for prompt in PROMPTS] + [False] * len(PROMPTS))
    labels, names, is_anchor = sides(np.where(told, 0, -1)[: len(PROMPTS)], [-1] * len(PROMPTS))
    (found,) = group_shares(["a"], labels, names, is_anchor, [told])
    assert found.by_words.comparison.p_holm == 2.0 ** (1 - prompts)
    assert found.by_words.comparison.ci_low > 0
    assert found.taught is taught


def test_without_a_base_nothing_is_said():
    (found,) = group_shares(["a"], np.array([0, -1, 0]), ["p", "p", "q"], np.ones(3, dtype=bool))
    assert found.taught is None
    assert found.few
    assert found.to_dict()["base"] is None


def test_patterns_are_tried_on_the_prompts_that_they_are_not_made_from():
    texts = [f"cat {prompt}" if number % 2 else "dog" for number, prompt in enumerate(PROMPTS)]
    labels = np.array([0 if text.startswith("cat") else -1 for text in texts])
    told = told_elsewhere(texts, texts, PROMPTS, labels, 0)
    assert (told == (labels == 0)).all()  # "cat", which both halves know
    named = np.array([0 if prompt == "p3" else -1 for prompt in PROMPTS])
    assert not told_elsewhere(PROMPTS, PROMPTS, PROMPTS, named, 0).any()  # words of one prompt tell of no other
