"""Groups of planted features."""

import numpy as np
import pytest

from gradsteer.discovery.features import unit_rows
from gradsteer.discovery.groups import Grouping, group, nearest, stability_of

DIRECTIONS = np.eye(12)[:3]


def planted(sizes=(60, 40, 30), noise=0.1, seed=0):
    """Responses of several planted groups, and what each one's is; prompts have eight responses each."""
    generator = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    generator.shuffle(truth)
    features = unit_rows(DIRECTIONS[truth] + noise * generator.normal(size=(len(truth), 12)))
    return features, truth, [str(index // 8) for index in range(len(truth))]


@pytest.mark.parametrize("method", ["average", "ward", "kmeans", "hdbscan"])
def test_planted_groups_are_found_with_their_number(method):
    features, truth, prompts = planted()
    found = group(features, prompts, Grouping(method, min_size=15, repeats=2, most=5))
    assert len(found) == 3
    placed = found.labels >= 0
    assert placed.mean() > 0.9
    assert (found.labels[placed] == truth[placed]).all()  # numbered by size
    assert found.stability[0 if method == "hdbscan" else found.number] > 0.8
    again, others, _ = planted(seed=1)
    given = found.nearest(again)
    assert (given[given >= 0] == others[given >= 0]).all()
    assert (given >= 0).mean() > 0.8


@pytest.mark.parametrize(("apart", "noise", "number"), [(0.9, 0.15, 2), (1.0, 0.05, 4)])
def test_two_groups_in_two_phrasings_each_are_two_unless_the_phrasings_are_much_clearer(apart, noise, number):
    generator, axes = np.random.default_rng(0), np.eye(12)
    truth = np.repeat([0, 1, 2, 3], 30)
    generator.shuffle(truth)
    centres = unit_rows(np.array([axes[kind] + apart * axes[2 + 2 * kind + way] for kind in (0, 1) for way in (0, 1)]))
    features = unit_rows(centres[truth] + noise * generator.normal(size=(120, 12)))
    found = group(features, [str(index // 8) for index in range(120)], Grouping(min_size=15, repeats=2, most=5))
    assert found.stability[2] == found.stability[4] == pytest.approx(1)  # stability tells nothing
    assert found.number == number


def test_a_response_may_belong_to_no_group():
    features, truth, prompts = planted()
    features = np.vstack([features, np.zeros((5, 12)), np.tile(np.eye(12)[8], (4, 1))])
    prompts += [f"new {number}" for number in range(9)]
    found = group(features, prompts, Grouping(min_size=15, number=4))
    assert (found.labels[-9:] == -1).all()  # nothing to go by; a cluster of four alone
    assert (found.labels[:-9] == truth).all()
    assert found.nearest(np.zeros((1, 12))).tolist() == [-1]
    assert found.nearest(np.eye(12)[8:9]).tolist() == [-1]  # nearest to one, but too far


def test_noise_has_no_stable_number_of_groups():
    generator = np.random.default_rng(0)
    features = unit_rows(generator.normal(size=(120, 30)))
    prompts = [str(index // 4) for index in range(120)]
    found = group(features, prompts, Grouping("ward", repeats=3))
    assert (found.number, len(found), found.stable) == (1, 1, False)
    assert group(features, prompts, Grouping("ward", number=1)).stable
    assert max(found.stability.values()) < 0.5
    loose = group(features, prompts, Grouping("ward", repeats=3, least_stability=-1))
    assert loose.number > 1


def test_stability_is_one_for_planted_and_lower_for_too_many():
    features, _, prompts = planted(noise=0.02)
    options = Grouping("ward", repeats=3, min_size=8)
    assert stability_of(features, np.array(prompts), 3, options) == 1
    assert stability_of(features, np.array(prompts), 7, options) < 0.8


def test_the_order_of_responses_does_not_matter():
    features, _, prompts = planted()
    found = group(features, prompts, Grouping(repeats=2))
    order = np.random.default_rng(3).permutation(len(features))
    shuffled = group(features[order], [prompts[place] for place in order], Grouping(repeats=2))
    assert (shuffled.labels == found.labels[order]).all()


def test_too_few_and_wrong_options():
    features, _, prompts = planted(sizes=(5, 4, 3))
    found = group(features, prompts, Grouping())
    assert len(found) == 0
    assert (found.labels == -1).all()
    assert nearest(features, found.centroids).tolist() == [-1] * 12
    for options, text in (
        ({"method": "other"}, "discovery.method is 'other'; accepted: average, ward, kmeans, hdbscan"),
        ({"number": 0}, "discovery.number is 0; accepted: at least 1"),
        ({"number": 3, "method": "hdbscan"}, "null for hdbscan"),
        ({"most": 1}, "discovery.most is 1; accepted: at least 2"),
        ({"min_size": 1}, "discovery.min_size is 1"),
        ({"repeats": 0}, "discovery.repeats is 0"),
        ({"least_stability": 2.0}, "discovery.least_stability is 2.0"),
    ):
        with pytest.raises(ValueError, match=text):
            Grouping(**options)
