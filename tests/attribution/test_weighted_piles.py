"""Piles whose replies have weights: a weight is as many replies; samples of steps give the anchor's gradient."""

from dataclasses import replace

import numpy as np
import pytest
from test_pile_gradient import ROUNDING, autograd_oracle, relative_error
from test_scoring import RESPONSES, direction_of, encoded, exact_log_probs, small_llama
from test_shared_prompts import replies_to
from tiny_models import ragged_examples, tiny_llama

from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.attribution.reductions import PileTotals
from gradsteer.attribution.verdict_prediction import predict_verdicts
from gradsteer.data.chat import collate
from gradsteer.data.piles import Pile
from gradsteer.evaluation.mixtures import mixture_log_density
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.forecast.slopes import CrossFittedSlopes
from gradsteer.models.shared_prompts import pack_shared
from gradsteer.steering.weight_steering import steered

WEIGHTS = [1, 3, 2, 0, 1, 2, 4]


def summed(model, examples, weights=None, size=3, **options):
    pile = PileGradient(model, **options)
    for start in range(0, len(examples), size):
        some = None if weights is None else weights[start : start + size]
        pile.add(collate(examples[start : start + size], 0), weights=some)
    return pile


@pytest.mark.parametrize("reduction", ["example", "token", "sum"])
def test_a_weight_is_as_many_examples(reduction):
    model, examples = tiny_llama(), ragged_examples(7)
    often = [example for example, times in zip(examples, WEIGHTS, strict=True) for _ in range(times)]
    found = summed(model, examples, [float(weight) for weight in WEIGHTS], reduction=reduction)
    assert relative_error(found.average(), autograd_oracle(model, often, reduction)) < ROUNDING
    assert found.totals.num_examples == 7
    assert found.totals.divisor("example") == len(often)
    assert found.totals.mean_token_loss == pytest.approx(
        summed(model, often, reduction=reduction).totals.mean_token_loss
    )
    # only their shares count, whatever they add up to, and however batches are cut
    one_by_one = PileGradient(model, reduction=reduction)
    one_by_one.most_tokens = 0
    one_by_one.add(collate(examples, 0), weights=[0.1 * weight for weight in WEIGHTS])
    assert relative_error(one_by_one.average(), found.average()) < ROUNDING
    assert relative_error(summed(model, examples, reduction=reduction).average(), found.average()) > 0.05


@pytest.mark.parametrize("reduction", ["example", "token", "sum"])
def test_prompts_read_once_change_no_gradient_however_packs_are_cut(reduction):
    """A reply's gradient runs through its prompt, too, whichever replies it shares it with."""
    model, prompts = tiny_llama(), [[5, 6, 7, 8], [5, 6, 7, 8, 9]]
    examples = [each for seed, prompt in enumerate(prompts) for each in replies_to(prompt, [4, 1, 6, 3], seed=seed)]
    expected = autograd_oracle(model, examples, reduction)
    for most_tokens in (1000, 9, 0):
        pile = PileGradient(model, reduction=reduction)
        pile.most_tokens = most_tokens
        pile.add(pack_shared(examples))
        assert relative_error(pile.average(), expected) < ROUNDING
        assert pile.totals.num_tokens == sum(example.num_target_tokens for example in examples)


def test_squares_are_weighted_likewise():
    model, examples = tiny_llama(), ragged_examples(4)
    often = [example for example, times in zip(examples, WEIGHTS, strict=False) for _ in range(times)]
    expected = summed(model, often, size=1, reduction="sum", squares=True).average()
    found = summed(model, examples, [float(weight) for weight in WEIGHTS[:4]], size=1, reduction="sum", squares=True)
    assert relative_error(found.average(), expected) < 1e-6


def test_totals_with_weights_add_up_and_come_back_from_their_numbers():
    totals = PileTotals(3, 12, 4.0, [1.0], 0.5, -1.5, -7.0) + PileTotals(1, 2, 1.0, [2.0], 0.0, 0.25, 0.5)
    assert PileTotals.of_values(totals.values()) == totals
    assert (totals.divisor("sum"), totals.divisor("token")) == (2.75, 7.5)
    assert PileTotals(3, 12).divisor("token") == 12  # as sums of earlier versions say it


SAYS_2 = np.array([2 in response for response in RESPONSES])
PROMPTS = [[1], [3, 2]]


def test_replies_of_a_step_give_the_anchors_gradient_without_bias():
    """Self-normalised within a pile, over replications, against the sum over all replies."""
    model = small_llama()
    step = direction_of(model, scale=-0.12)
    logs = {}
    for alpha in (0.0, 1.0):
        with steered(model, step, alpha):
            logs[alpha] = np.concatenate([exact_log_probs(model, prompt) for prompt in PROMPTS])
    rate, steered_rate = ((np.exp(logs[a]) * np.tile(SAYS_2, 2)).sum() / 2 for a in (0.0, 1.0))
    assert abs(rate - steered_rate) > 0.05
    examples = [encoded(prompt, response) for prompt in PROMPTS for response in RESPONSES]
    gradients = np.stack([_flat(summed(model, [example], reduction="sum").average()) for example in examples])
    directions = np.random.default_rng(0).normal(size=(gradients.shape[1], 6)) / gradients.shape[1] ** 0.5
    along, shows = gradients @ directions, np.tile(SAYS_2, 2)
    truth = _contrast(along, np.exp(logs[0.0]), shows)

    def drawn(generator, sizes):
        """How often each reply comes, of so many of the anchor and of the step to each prompt; and its weight."""
        counts = np.zeros(len(examples))
        for alpha, size in zip((0.0, 1.0), sizes, strict=True):
            for part in np.split(np.arange(len(examples)), 2):
                shares = np.exp(logs[alpha][part])
                counts[part] += generator.multinomial(size, shares / shares.sum())
        densities = np.stack([logs[0.0], logs[1.0]], axis=1)
        return counts, np.exp(logs[0.0] - mixture_log_density(densities, np.tile(sizes, (len(examples), 1))))

    generator = np.random.default_rng(1)
    for sizes in ((2000, 2000), (0, 4000)):  # a mixture, and the step alone
        pairs = [drawn(generator, sizes) for _ in range(400)]
        found = np.array([[_contrast(along, c * w, shows), _contrast(along, c, shows)] for c, w in pairs])
        error = found.std(axis=0) / 400**0.5
        assert (np.abs(found[:, 0].mean(axis=0) - truth) < 4 * error[0]).all()
        assert (np.abs(found[:, 1].mean(axis=0) - truth) > 9 * error[1]).all()  # without weights it is another one
    counts, weights = drawn(generator, (20, 20))
    places = np.repeat(np.arange(len(examples)), counts.astype(int))
    sides = [
        _flat(summed(model, [examples[p] for p in side], weights[side].tolist(), reduction="sum").average())
        for side in (places[shows[places]], places[~shows[places]])
    ]
    one = _contrast(along, counts * weights, shows)
    np.testing.assert_allclose((sides[0] - sides[1]) @ directions, one, rtol=1e-5, atol=1e-6)


def _flat(gradient):
    return np.concatenate([tensor.double().numpy().ravel() for tensor in gradient.values()])


def _contrast(along, masses, shows):
    plus, minus = masses * shows, masses * ~shows
    return plus @ along / plus.sum() - minus @ along / minus.sum()


def test_a_slopes_weights_are_as_many_replies():
    model, generator = small_llama(), np.random.default_rng(0)
    prompts = [[1], [3, 2], [4, 4, 1], [2]]
    half_of = {str(number): 1 + number % 2 for number in range(4)}

    def pile(name, chosen, weights=None):
        examples = [encoded(prompts[prompt], RESPONSES[response]) for prompt, response in chosen]
        keys = [str(prompt) for prompt, _ in chosen]
        more = {"sampled": [True] * len(chosen), "responses": list(examples), "sampling": [(1.0, 1.0)] * len(chosen)}
        return Pile(name, examples, keys, prompts=keys, weights=weights, **more)

    def slope(*piles):
        halves = direction_of(model), direction_of(model, seed=8)
        slopes = CrossFittedSlopes(model, half_of, lambda e, t, p: ResponseScorer(model, e, temperature=t, top_p=p))
        found = slopes.of(*piles, halves)
        return found.slope, found.standard_error

    sides = [[(place % 4, int(r)) for place, r in enumerate(generator.integers(0, len(RESPONSES), 12))] for _ in "ab"]
    counts = [generator.integers(1, 4, 12) for _ in "ab"]
    weighed = [pile(n, side, c.astype(float).tolist()) for n, side, c in zip("ab", sides, counts, strict=True)]
    often = [
        pile(n, [each for each, times in zip(side, c, strict=True) for _ in range(times)])
        for n, side, c in zip("ab", sides, counts, strict=True)
    ]
    plain = [pile(n, side) for n, side in zip("ab", sides, strict=True)]
    assert slope(*weighed) == pytest.approx(slope(*often), rel=2e-3)  # the difference's step is of each one's replies
    assert slope(*weighed) != pytest.approx(slope(*plain), rel=0.1)
    assert slope(*(replace(each, weights=[0.01] * 12) for each in plain)) == pytest.approx(slope(*plain), rel=1e-6)


def test_predicted_verdicts_take_weights_for_as_many_replies():
    generator = np.random.default_rng(0)
    truth = generator.random(60) < 0.4
    states = [generator.normal(size=(1, 3)) + 2 * shown for shown in truth]
    prompts = [str(index % 20) for index in range(60)]
    half_of = {str(number): 1 + number % 2 for number in range(20)}
    counts = generator.integers(1, 4, 60)
    often = np.repeat(np.arange(60), counts)
    found = predict_verdicts(states, truth.tolist(), prompts, half_of, sample_weight=counts.astype(float))
    other = predict_verdicts([states[i] for i in often], truth[often].tolist(), [prompts[i] for i in often], half_of)
    assert found.kept == other.kept == (2, 2)
    assert found.constant == pytest.approx(other.constant)
    assert found.brier == pytest.approx(other.brier, rel=1e-4)
    for index, odds in zip(often, other.odds, strict=True):
        np.testing.assert_allclose(found.odds[index], odds, rtol=1e-3)
