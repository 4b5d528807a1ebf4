"""Curves along a vector: scores that are known functions of alpha, and a real model against passes of its own."""

from contextlib import contextmanager

import numpy as np
import pytest
from test_forecasting import MINUS, PLUS, judged, sampled_world
from test_scoring import autograd_derivatives, direction_of

from gradsteer.data.chat import EncodedExample
from gradsteer.forecast.curve import MOST_ADDED, NUM_NODES, VectorCurve
from gradsteer.forecast.forecaster import Forecaster
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.steering.weight_steering import steered
from gradsteer.vectors.parameter_vectors import SteeringVector

ALPHAS = np.linspace(-0.5, 0.5, 20).tolist()


class KnownScores:
    """A scorer whose log-probabilities are a known function of alpha, and that counts its passes."""

    model = None

    def __init__(self, function, top_p=1.0):
        self.function, self.top_p, self.alpha, self.passes = function, top_p, 0.0, 0

    def __len__(self):
        return 1

    def log_probs(self, **_):
        self.passes += 1
        return self.function(self.alpha)

    @contextmanager
    def weights(self, alpha):
        self.alpha += alpha  # as steps are: within another they add up
        yield
        self.alpha -= alpha


def known_curve(function, shows, *, top_p=1.0, weights=None, **options):
    """A curve over responses with such scores and verdicts; its scorer counts passes but the anchor's."""
    number = len(shows)
    responses = judged([EncodedExample([1, 2], [-100, 2])] * number, {"two": shows}, np.arange(number) // 8)
    scorer = KnownScores(function, top_p)
    forecaster = Forecaster(responses, scorer, draws=100, **options)
    scorer.passes = 0
    vector = SteeringVector({})
    return VectorCurve("known", forecaster, weights or scorer.weights, lambda: vector)


def saturating(number=800, strength=1.0):
    """Responses that become likelier or less so ever more slowly; and which of them show the behavior."""
    generator = np.random.default_rng(0)
    shows = np.arange(number) < 0.4 * number
    slopes = np.where(shows, 4.0, -2.0) + generator.normal(size=number)
    bends = generator.uniform(0.5, 2.0, size=number)
    return lambda alpha: -strength * slopes * np.tanh(bends * alpha) / bends - 20.0, shows


def test_twenty_alphas_take_at_most_seven_passes():
    function, shows = saturating()
    curve = known_curve(function, shows)
    curve.cover(ALPHAS)
    passes = curve.forecaster.scorer.passes
    assert NUM_NODES <= passes <= 6  # and the anchor's own
    assert len(curve.nodes) == passes + 1
    for alpha in (*ALPHAS, 0.0):
        np.testing.assert_allclose(curve.log_probs(alpha), function(alpha), atol=0.02)
        exact = curve.forecaster.forecast(function(alpha)).rates["two"]
        found = curve.forecast(alpha).rates["two"]
        assert found.rate == pytest.approx(exact.rate, abs=0.1 * (exact.ci_high - exact.ci_low) / 3.92)
    assert curve.forecaster.scorer.passes == passes
    assert (curve.log_probs(0.0) == curve.forecaster.anchor_scores).all()
    np.testing.assert_allclose(curve.log_probs(0.123), function(0.123), atol=0.02)  # not asked for: tried once there
    assert curve.forecaster.scorer.passes <= 7
    assert curve.settled


def test_the_error_is_that_of_the_interpolation_without_the_alpha_left_out():
    function, shows = saturating()
    curve = known_curve(function, shows)
    curve.cover([0.5, -0.5])
    missed = curve.left_out
    others = [node for node in curve.nodes if node != missed.alpha]
    fitted = np.polynomial.Polynomial.fit(others, np.array([function(a) for a in others])[:, 7], len(others) - 1)
    alone = abs(fitted(missed.alpha) - function(missed.alpha)[7])
    assert 0 < alone <= missed.largest_error + 1e-12
    every = [
        np.polynomial.Polynomial.fit(others, np.array([function(a)[r] for a in others]), len(others) - 1)(missed.alpha)
        for r in range(len(shows))
    ]
    errors = np.array(every) - function(missed.alpha)
    assert missed.error == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-6)
    assert missed.largest_error == pytest.approx(np.abs(errors).max(), rel=1e-6)
    exact, other = (
        curve.forecaster.forecast(function(missed.alpha) + e).rates["two"].rate for e in (0 * errors, errors)
    )
    assert missed.rate_error >= abs(exact - other) - 1e-12
    assert curve.to_dict()["left_out"]["error"] == missed.error
    assert f"{missed.error:.2g} nats a response" in str(curve)


def test_nodes_are_added_until_forecasts_hold():
    function, shows = saturating(strength=3.0)
    steep = known_curve(function, shows)
    steep.cover([1.5, -1.5])
    assert len(steep.nodes) > NUM_NODES + 1
    for alpha in np.linspace(-1.5, 1.5, 31):
        if steep.forecaster.sample_size(function(alpha)) > 50:
            exact = steep.forecaster.forecast(function(alpha)).rates["two"]
            error = abs(steep.forecast(float(alpha)).rates["two"].rate - exact.rate)
            assert error <= 0.15 * (exact.ci_high - exact.ci_low) / 3.92


def test_scores_that_jump_are_not_interpolated():
    shows = np.arange(400) < 200

    def jumping(alpha):
        noise = np.random.default_rng(abs(hash(alpha)) % 2**32).normal(size=400)
        return -10 + alpha * np.where(shows, 1.0, -1.0) + (0.5 * noise if alpha else 0.0)

    curve = known_curve(jumping, shows)
    curve.cover([0.5, -0.5])
    assert not curve.settled
    assert curve.nodes == ()
    assert "does not settle" in str(curve)
    passes = curve.forecaster.scorer.passes
    assert passes <= NUM_NODES - 1 + MOST_ADDED
    np.testing.assert_array_equal(curve.log_probs(0.31), jumping(0.31))
    assert curve.forecaster.scorer.passes == passes + 1


def test_alphas_past_what_weights_can_say_are_scored_by_themselves():
    function, shows = saturating()
    curve = known_curve(lambda alpha: function(alpha) * (1 + (abs(alpha) > 2) * 30 * np.arange(800)), shows)
    curve.cover([0.1, -0.1, 3.0, -4.0])
    assert (curve.nodes[0], curve.nodes[-1]) == (-0.1, 0.1)
    passes = curve.forecaster.scorer.passes
    assert not curve.forecast(3.0).reliable
    assert curve.forecaster.scorer.passes == passes
    gone = known_curve(lambda alpha: np.where(alpha > 2, np.nan, function(alpha)), shows)
    gone.cover([0.1, 3.0])
    assert gone.nodes[-1] == 0.1
    assert gone.forecast(3.0).effective_sample_size == 0


def test_a_range_on_one_side_and_one_that_grows():
    function, shows = saturating()
    curve = known_curve(function, shows)
    curve.cover([0.3])
    assert (curve.nodes[0], curve.nodes[-1]) == (0.0, 0.3)
    passes = curve.forecaster.scorer.passes
    np.testing.assert_allclose(curve.log_probs(-0.2), function(-0.2), atol=1e-9)  # its end: scored
    assert curve.nodes[0] == -0.2
    assert passes < curve.forecaster.scorer.passes <= passes + 3
    np.testing.assert_allclose(curve.log_probs(-0.13), function(-0.13), atol=0.01)
    assert function(0.3) is not None
    lopsided = known_curve(function, shows)
    lopsided.cover([0.4, -0.01])
    assert (lopsided.nodes[0], lopsided.nodes[-1]) == (pytest.approx(-0.04), 0.4)
    assert 0.0 in lopsided.nodes


def test_with_nuclei_every_alpha_has_its_pass():
    function, shows = saturating()
    curve = known_curve(function, shows, top_p=0.9)
    curve.cover([0.3, -0.3])
    assert curve.forecaster.scorer.passes == 0
    np.testing.assert_array_equal(curve.log_probs(0.3), function(0.3))
    assert curve.forecaster.scorer.passes == 1
    assert curve.nodes == ()


def test_a_real_models_curve_gives_what_passes_give():
    model, _, responses = sampled_world(400)
    vector = direction_of(model)
    forecaster = Forecaster(responses, ResponseScorer(model, responses.examples), draws=100)

    def weights(alpha):
        return steered(model, vector, alpha)

    curve = VectorCurve("v", forecaster, weights, lambda: vector)
    curve.cover([0.1, -0.1])
    for alpha in (0.1, 0.077, -0.03, -0.1):
        with weights(alpha):
            exact = forecaster.forecast(
                forecaster.score(), direction=curve.direction(), alpha=alpha, plus=PLUS, minus=MINUS
            )
        found = curve.forecast(alpha, PLUS, MINUS)
        assert found.effective_sample_size == pytest.approx(exact.effective_sample_size, rel=2e-2)
        assert found.kl_per_token == pytest.approx(exact.kl_per_token, rel=2e-2, abs=1e-6)
        assert found.log_odds_shift == pytest.approx(exact.log_odds_shift, abs=2e-3)
        assert found.linear_log_odds_shift == exact.linear_log_odds_shift
        for name, rate in exact.rates.items():
            assert found.rates[name].rate == pytest.approx(rate.rate, abs=1e-3)
            assert found.rates[name].linear == rate.linear
    exact = autograd_derivatives(model, vector, responses.examples)
    found = curve.direction().derivatives
    assert np.sqrt(np.mean((found - exact) ** 2)) < 0.06 * np.sqrt(np.mean(exact**2))


def test_a_few_alphas_far_apart_are_scored_and_no_curve_is_kept():
    """A polynomial that reaches the farthest would miss the nearest: once all are scored nothing else is wanted."""
    gentle, shows = saturating()

    def function(alpha):
        return gentle(6 * alpha)

    curve = known_curve(function, shows)
    curve.cover([-3.0, 0.05, 3.0])
    assert curve.nodes == ()
    assert curve.settled
    assert "each alpha has one of its own" in str(curve)
    passes = curve.forecaster.scorer.passes
    assert passes == 5
    for alpha in (-3.0, 0.05, 3.0):
        np.testing.assert_array_equal(curve.log_probs(alpha), function(alpha))
    assert curve.forecaster.scorer.passes == passes
    np.testing.assert_allclose(curve.log_probs(0.03), function(0.03), atol=1e-3)  # wanted now, and drawn
    assert 0.03 in curve.nodes


def test_between_asked_alphas_a_curve_is_tried_before_it_is_believed():
    gentle, shows = saturating()

    def function(alpha):
        return gentle(6 * alpha)

    curve = known_curve(function, shows)
    curve.cover([-3.0, -0.02, 0.02, 3.0])  # the two inner ones mend each other, and no one looks elsewhere
    assert curve.nodes[-1] == 3.0
    found, exact = (curve.forecaster.forecast(scores).rates["two"] for scores in (curve.log_probs(0.3), function(0.3)))
    assert found.rate == pytest.approx(exact.rate, abs=0.15 * (exact.ci_high - exact.ci_low) / 3.92)


def test_what_a_closed_curve_says_was_taken_at_the_anchor():
    """It is read while the model has a condition's weights: a pass then would be of another step."""
    function, shows = saturating()
    for top_p in (1.0, 0.9):
        curve = known_curve(function, shows, top_p=top_p)
        forecaster = curve.forecaster
        forecaster.along = lambda *_, forecaster=forecaster, **__: forecaster.direction_of(np.zeros(len(shows)))
        curve.close([0.3, 0.1, -0.2])
        passes = curve.forecaster.scorer.passes
        with curve.forecaster.scorer.weights(0.3):
            for alpha in (0.3, 0.1, -0.2):
                np.testing.assert_allclose(curve.log_probs(alpha), function(alpha), atol=0.02)
                curve.forecast(alpha)
            with pytest.raises(RuntimeError, match="curve of known: it was closed"):
                curve.log_probs(7.0)
        assert curve.forecaster.scorer.passes == passes


def test_a_slope_does_not_hang_on_the_order_of_alphas():
    model, _, responses = sampled_world(60)
    vector, slopes = direction_of(model), []
    for alphas in ([0.3, 0.02], [0.02, 0.3]):
        forecaster = Forecaster(responses, ResponseScorer(model, responses.examples, top_p=0.9), draws=100)
        curve = VectorCurve("v", forecaster, lambda alpha: steered(model, vector, alpha), lambda: vector)
        curve.close(alphas)
        with steered(model, vector, alphas[0]):
            curve.forecast(alphas[0])
        slopes.append(curve.direction().derivatives)
    np.testing.assert_allclose(slopes[0], slopes[1], atol=1e-6)


def test_where_a_wider_range_does_not_settle_the_narrow_one_still_holds():
    function, shows = saturating()

    def wild(alpha):
        noise = np.random.default_rng(abs(hash(alpha)) % 2**32).normal(size=len(shows))
        return function(alpha) + (noise if abs(alpha) > 0.35 else 0.0)

    curve = known_curve(wild, shows)
    curve.cover([0.3, -0.3, 0.1])
    inside = curve.nodes
    curve.close([0.6, 0.5, 0.45, 0.4, 0.3, -0.3, 0.1, 0.2])
    assert curve.settled
    assert inside[0] == curve.nodes[0] == -0.3
    assert curve.nodes[-1] == 0.3
    np.testing.assert_allclose(curve.log_probs(0.2), function(0.2), atol=0.02)
    np.testing.assert_array_equal(curve.log_probs(0.6), wild(0.6))


def test_a_range_with_an_end_next_to_0_is_widened():
    function, shows = saturating()
    curve = known_curve(function, shows)
    curve.cover([-0.002, 0.2, 0.5])
    assert curve.nodes[0] == -0.05
    assert min(np.diff(curve.nodes)) > 0.02
    exact = (function(1e-5) - function(-1e-5)) / 2e-5
    np.testing.assert_allclose(-curve.direction().derivatives, exact, atol=0.1)


def test_scores_that_are_not_finite_between_the_ends_are_not_interpolated():
    function, shows = saturating()
    curve = known_curve(lambda alpha: np.where(0.05 < alpha < 0.2, np.nan, function(alpha)), shows)
    curve.forecaster.along = lambda *_, **__: curve.forecaster.direction_of(np.zeros(len(shows)))
    curve.close([0.3, -0.3, 0.1])
    assert not curve.settled
    assert curve.forecast(0.1).effective_sample_size == 0
    np.testing.assert_array_equal(curve.log_probs(0.3), function(0.3))
