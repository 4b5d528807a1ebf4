"""The balance heuristic against exact rates: every response of a tiny model is listed under several weights."""

import math

import numpy as np
import pytest
from test_importance_sampling import SHOWS, exact
from test_scoring import PROMPTS

from gradsteer.evaluation.importance_sampling import normalised_weights
from gradsteer.evaluation.mixtures import mixture_log_density, source_sizes

ALPHAS, TARGET = (-0.3, 0.0, 0.2), 0.4


def densities(prompt):
    """(responses, sources) exact log-probabilities, and (responses,) those at the target."""
    return np.log(np.stack([exact(alpha, prompt) for alpha in ALPHAS], axis=1)), np.log(exact(TARGET, prompt))


@pytest.mark.parametrize("counts", [(2, 1, 1), (1, 6, 3)])
def test_with_all_responses_in_proportion_the_rate_is_the_exact_one(counts):
    """Each response as often as the sources give it in the mean: the weighted sum is then the sum over p' itself."""
    scores, target = densities(PROMPTS[1])
    share = np.array(counts) / sum(counts)
    often = np.exp(scores) @ share  # the mixture's own probabilities
    # as many rows as needed do not fit: the multiplicity goes into the weight
    log_mixture = np.log(often)
    weights = often * np.exp(target - log_mixture)
    assert weights.sum() == pytest.approx(1)
    assert weights[SHOWS].sum() == pytest.approx(np.exp(target)[SHOWS].sum(), rel=1e-12)
    # and `mixture_log_density` is that mixture, for rows that are the responses in any order and number
    rows = np.tile(np.arange(len(often)), sum(counts))
    per_source = [len(often) * count for count in counts]
    np.testing.assert_allclose(mixture_log_density(scores[rows], per_source), log_mixture[rows], rtol=1e-12)


def test_over_draws_the_estimate_is_unbiased_and_better_than_the_worst_source():
    scores, target = densities(PROMPTS[0])
    truth = np.exp(target)[SHOWS].sum()
    generator, counts = np.random.default_rng(0), (20, 10, 30)
    pooled, single = [], []
    shares = np.exp(scores) / np.exp(scores).sum(axis=0)
    for _ in range(800):
        drawn = np.concatenate([generator.choice(len(target), n, p=p) for n, p in zip(counts, shares.T, strict=True)])
        weights = np.exp(target[drawn] - mixture_log_density(scores[drawn], counts))
        pooled.append(float(weights[SHOWS[drawn]].sum()) / sum(counts))
        own = generator.choice(len(target), sum(counts), p=shares[:, 0])
        single.append(float(np.exp(target - scores[:, 0])[own][SHOWS[own]].sum()) / sum(counts))
    assert np.mean(pooled) == pytest.approx(truth, abs=4 * np.std(pooled) / math.sqrt(len(pooled)))
    assert np.std(pooled) < np.std(single)


def test_one_source_gives_the_plain_weights():
    scores, target = densities(PROMPTS[2])
    alone = mixture_log_density(scores[:, :1], [len(target)])
    np.testing.assert_array_equal(alone, scores[:, 0])
    # equal sources too, whatever their counts
    same = mixture_log_density(np.repeat(scores[:, :1], 2, axis=1), [1, len(target) - 1])
    np.testing.assert_allclose(same, alone, rtol=1e-12)


def test_a_response_that_one_source_never_gives_counts_through_the_others():
    found = mixture_log_density(np.array([[-math.inf, math.log(0.5)], [math.log(0.2), math.log(0.1)]]), [1, 1])
    np.testing.assert_allclose(np.exp(found), [0.25, 0.15])
    assert mixture_log_density(np.array([[-2000.0, -2001.0]] * 2), [1, 1])[0] == pytest.approx(-2000.3799, abs=1e-4)


@pytest.mark.parametrize(
    ("scores", "counts", "message"),
    [
        ([[0.0, 0.0]], [1], "1 counts for densities of shape"),
        ([[0.0, 0.0]], [1, 1], r"counts are \[1, 1\] of 1 responses"),
        ([[0.0, 0.0]], [0, 1], "at least 1 from each source"),
        ([[math.nan, 0.0]] * 2, [1, 1], "NaN or infinite"),
        ([[0.0, 0.0], [-math.inf, -math.inf]], [1, 1], "response 2 is possible under no source"),
    ],
)
def test_what_is_no_mixture_is_refused(scores, counts, message):
    with pytest.raises(ValueError, match=message):
        mixture_log_density(np.array(scores), counts)


def test_each_source_is_measured_by_its_own_responses():
    scores = np.log(np.array([[0.5, 0.1], [0.5, 0.1], [0.1, 0.4], [0.2, 0.4]]))
    target = np.log(np.array([0.5, 0.5, 0.4, 0.8]))
    found = source_sizes(target, scores, np.array([0, 0, 1, 1]))
    assert [each.num_responses for each in found] == [2, 2]
    assert [each.effective_sample_size for each in found] == pytest.approx([2, 9 / 5])  # ratios 1, 1 and 1, 2
    none = source_sizes(np.full(4, -math.inf), scores, np.array([0, 0, 1, 1]))
    assert [each.effective_sample_size for each in none] == [0, 0]
    assert normalised_weights(target - mixture_log_density(scores, [2, 2])).sum() == pytest.approx(1)
