"""Doses, and the alphas that are found for them: refusals, closed forms, divergences in float64, known curves."""

import copy
import math

import numpy as np
import pytest
import torch
from test_curve import known_curve
from test_forecasting import Bigram
from test_scoring import direction_of
from tiny_models import ragged_examples, tiny_llama

from gradsteer.evaluation.importance_sampling import LinearForm
from gradsteer.evaluation.text_divergence import TextDivergence
from gradsteer.forecast.calibration import Calibration
from gradsteer.forecast.curve import VectorCurve
from gradsteer.forecast.dose_solver import DoseSolver
from gradsteer.forecast.forecaster import Direction
from gradsteer.forecast.kept_passes import KeptPasses
from gradsteer.forecast.kl_budget import solve_budget, statistic_of
from gradsteer.forecast.target_rate import solve_rate
from gradsteer.steering.condition_plan import Recipe
from gradsteer.steering.condition_weights import ConditionWeights, StepOptions, load_vectors
from gradsteer.steering.conditions import Condition
from gradsteer.steering.doses import Dose, largest_doses, plan_doses
from gradsteer.steering.weight_steering import steered
from gradsteer.vectors.combinations import combine, is_combination, parse_combination
from gradsteer.vectors.contrast import Contrast
from gradsteer.vectors.parameter_vectors import SteeringVector

# --- doses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dose", "label", "sign"),
    [
        (Dose("alpha", 0.12), "alpha=+0.12", 1),
        (Dose("alpha", -7.5e-4), "alpha=-0.00075", -1),
        (Dose("relative_norm", 0.01), "norm=+0.01", 1),
        (Dose("log_odds_shift", -0.75), "shift=-0.75", 1),
        (Dose("log_odds_shift", 0.75), "shift=+0.75", -1),
        (Dose("kl_budget", -0.02), "kl=-0.02", -1),
        (Dose("target_rate", 0.1), "rate=0.1", 0),
    ],
)
def test_labels_and_the_sign_of_alpha(dose, label, sign):
    assert dose.label == label
    assert dose.alpha_sign == sign


def test_both_signs_begin_with_the_positive_alpha():
    given = {
        "alpha": [0.1, -0.2], "relative_norm": 0.5, "log_odds_shift": [0.75], "kl_budget": [-0.01],
        "target_rate": [0.3],
    }  # fmt: skip
    planned = plan_doses(["a", "b"], given, both_signs=True)
    expected = [
        *(Dose("alpha", value) for value in (0.1, -0.1, 0.2, -0.2)),
        *(Dose("relative_norm", value) for value in (0.5, -0.5)),
        *(Dose("log_odds_shift", value) for value in (-0.75, 0.75)),
        *(Dose("kl_budget", value) for value in (0.01, -0.01)),
        Dose("target_rate", 0.3),
    ]
    assert planned == {"a": expected, "b": expected}
    signs = [dose.alpha_sign for dose in expected]
    assert signs == [1, -1] * 5 + [0]
    plain = plan_doses(["a"], given, both_signs=False)["a"]
    assert [dose.value for dose in plain] == [0.1, -0.2, 0.5, 0.75, -0.01, 0.3]


def test_doses_by_vector_once_each():
    planned = plan_doses(["a", "b"], {"alpha": {"a": [0.1, 0.1], "b": [1]}, "kl_budget": None}, both_signs=False)
    assert planned == {"a": [Dose("alpha", 0.1)], "b": [Dose("alpha", 1.0)]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"vector 'a' has no dose; give one of --steering.alphas, --steering.relative_norms, "
         r"--steering.log_odds_shifts, --steering.kl_budgets, --steering.target_rates"),
        ({"alpha": {"b": [0.1]}}, "vector 'a' has no dose"),
        ({"alpha": {"c": [0.1]}}, "steering.alphas names the vector 'c'; the vectors are: a, b"),
        ({"alpha": []}, "steering.alphas of vector 'a' is empty; accepted: one number or more"),
        ({"alpha": [0.1, 0]}, "steering.alphas holds 0.0; accepted: finite numbers other than 0"),
        ({"relative_norm": float("inf")}, "steering.relative_norms holds inf; accepted: finite numbers other than 0"),
        ({"kl_budget": [float("nan")]}, "steering.kl_budgets holds nan; accepted: finite numbers other than 0"),
        ({"target_rate": [5]}, r"steering.target_rates holds 5.0; accepted: rates, .* \(0.05 is 5%\)"),
        ({"target_rate": [0.0]}, "steering.target_rates holds 0.0; accepted: rates, more than 0 and less than 1"),
        ({"target_rate": [float("nan")]}, "steering.target_rates holds nan"),
    ],
)  # fmt: skip
def test_doses_that_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        plan_doses(["a", "b"], given, both_signs=True)


def test_curve_points_are_evenly_spaced_up_to_the_largest_alpha():
    planned = plan_doses(["a"], {"alpha": [0.3], "relative_norm": 9.0}, both_signs=False, curve_points=3)["a"]
    assert planned == [
        Dose("alpha", 0.3), Dose("relative_norm", 9.0),
        *(Dose("alpha", value) for value in (0.1, -0.1, 0.2, -0.2, -0.3)),
    ]  # fmt: skip
    # the largest is there once, also where it has more digits than a name shows
    largest = 0.123456789
    found = plan_doses(["a"], {"alpha": largest}, both_signs=True, curve_points=2)["a"]
    assert [dose.value for dose in found] == [largest, -largest, 0.0617284, -0.0617284]
    # without an alpha, in the unit that is asked for
    found = plan_doses(["a"], {"log_odds_shift": [1, 2], "kl_budget": 0.1}, both_signs=False, curve_points=4)["a"]
    shifts = [dose.value for dose in found if dose.kind == "log_odds_shift"]
    assert shifts == [1, 2, 0.5, -0.5, -1, 1.5, -1.5, -2]
    assert len(found) == len(shifts) + 1
    accepted = "one of steering.alphas, steering.relative_norms, steering.log_odds_shifts of vector 'a'"
    with pytest.raises(ValueError, match=f"steering.curve_points needs {accepted}"):
        plan_doses(["a"], {"kl_budget": 0.1}, both_signs=True, curve_points=3)
    with pytest.raises(ValueError, match="steering.curve_points is -1; accepted: 0 or more"):
        plan_doses(["a"], {"alpha": 0.1}, both_signs=True, curve_points=-1)


def test_controls_are_given_the_largest_dose_of_the_first_kind():
    doses = [Dose("log_odds_shift", value) for value in (-0.5, 0.5, -1.0, 1.0)] + [Dose("alpha", 99.0)]
    assert largest_doses(doses) == [Dose("log_odds_shift", -1.0)]  # its alpha is positive
    assert largest_doses([Dose("alpha", -0.2), Dose("alpha", 0.1)]) == [Dose("alpha", -0.2)]
    assert largest_doses([Dose("alpha", -0.2), Dose("alpha", 0.2)]) == [Dose("alpha", 0.2)]
    assert largest_doses([Dose("target_rate", 0.1)]) == [Dose("target_rate", 0.1)]


def test_controls_are_given_the_largest_dose_of_each_sign_where_asked():
    doses = [Dose("log_odds_shift", value) for value in (-0.5, 0.5, -1.0, 1.0)] + [Dose("alpha", 99.0)]
    assert largest_doses(doses, both_signs=True) == [Dose("log_odds_shift", -1.0), Dose("log_odds_shift", 1.0)]
    assert largest_doses([Dose("alpha", -0.2), Dose("alpha", 0.1)], both_signs=True) == [
        Dose("alpha", 0.1), Dose("alpha", -0.2),
    ]  # fmt: skip
    assert largest_doses([Dose("alpha", -0.2), Dose("alpha", -0.1)], both_signs=True) == [Dose("alpha", -0.2)]
    rates = [Dose("target_rate", 0.1), Dose("target_rate", 0.6)]
    assert largest_doses(rates, both_signs=True) == largest_doses(rates)  # their signs are not known yet


# --- combinations ----------------------------------------------------------------------------------------------------

NAMES = ("a", "b", "bridge")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a + b", {"a": 1, "b": 1}),
        ("a - 0.5 * b", {"a": 1, "b": -0.5}),
        ("-(a + b) / 2", {"a": -0.5, "b": -0.5}),
        ("2 * (a - (b - 3*a) * 2) / 4", {"a": 3.5, "b": -1}),
        ("  +bridge ", {"bridge": 1}),
        ("(1 + 2) * a", {"a": 3}),
        ("a + b - a", {"a": 0, "b": 1}),
        ("a * 1e-3 + b / 4", {"a": 1e-3, "b": 0.25}),
    ],
)
def test_combinations_are_linear(text, expected):
    assert is_combination(text, NAMES)
    assert parse_combination(text, NAMES) == pytest.approx(expected)


HOSTILE = [
    "__import__('os').system('touch hacked')", "a**b", "a ** 2", "a(b)", "a.b", "a[0]", "a * b", "1 / a", "a + 1", "2",
    "a if b else a", "lambda: a", "[a, b]", "a, b", "a := b", "a @ b", "a // 2", "a % 2", "a < b", "a and b", "not a",
    "f'{a}'", "'a'", "a + True", "a * 1j", "a / 0", "0 * a", "a - a", "", "a +", "a\nb", "a = b", "c", "a + c", "a;b",
    "a\0", "a * 1e999", "a - 1e999 * a", f"a * {10**400}", "(" * 300 + "a" + ")" * 300, "-" * 20_000 + "a",
    "+".join(["a"] * 20_000), "(" * 100_000, "a" + ".a" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_other_texts_are_refused_and_never_evaluated(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("eval", "exec", "compile", "__import__"):
        monkeypatch.setattr(
            f"gradsteer.vectors.combinations.{name}", lambda *_: pytest.fail("evaluated"), raising=False
        )
    assert is_combination(text, NAMES) in (True, False)
    with pytest.raises(ValueError, match="accepted: names and numbers with") as caught:
        parse_combination(text, NAMES)
    assert len(str(caught.value)) < 500
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "path", ["bridge.safetensors", "bridge/bridge.safetensors", "runs/vectors/a.safetensors", "./a", "../a", "c", "/a"]
)
def test_a_path_is_no_combination(path):
    assert not is_combination(path, NAMES)


def test_vectors_are_combined(tmp_path):
    one, two = (SteeringVector({"w": torch.tensor(values)}) for values in ([1.0, 2.0], [10.0, 0.0]))
    total = combine({"a": 2.0, "b": -0.5}, {"a": one, "b": two})
    assert total["w"].tolist() == [-3.0, 4.0]
    assert combine({"a": 2.0, "b": 0.0}, {"a": one})["w"].tolist() == [2.0, 4.0]
    with pytest.raises(ValueError, match="does not fit"):
        combine({"a": 1.0, "b": 1.0}, {"a": one, "b": SteeringVector({"v": torch.ones(2)})})
    one.save(tmp_path / "a.safetensors")
    two.save(tmp_path / "b.safetensors")
    sources = {"sum": "a + b", "a": str(tmp_path / "a.safetensors"), "b": str(tmp_path / "b.safetensors")}
    loaded = load_vectors(sources)
    assert list(loaded) == ["sum", "a", "b"]
    assert loaded["sum"]["w"].tolist() == [11.0, 2.0]
    with pytest.raises(ValueError, match="names of a, b"):
        load_vectors({**sources, "again": "sum - a"})  # of vectors with files only
    none = SteeringVector({"w": torch.zeros(2)}).save(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"vector 'none' \(.*none\.safetensors\) is 0 everywhere"):
        load_vectors({"none": str(none)})
    with pytest.raises(FileNotFoundError, match="no vector file at 'nowhere'"):
        load_vectors({"a": "nowhere"})


# --- divergences -----------------------------------------------------------------------------------------------------


def hand_divergences(anchor, moved, examples, temperature=1.0):
    """KL(steered || anchor) at every labelled token, example by example, in float64."""
    found = []
    for example in examples:
        ids = torch.tensor([example.input_ids])
        with torch.no_grad():
            logits = [model(input_ids=ids).logits[0].double() / temperature for model in (moved, anchor)]
        p, q = (each.log_softmax(-1) for each in logits)
        places = [place - 1 for place, label in enumerate(example.labels) if label != -100 and place > 0]
        found += [(p[place].exp() * (p[place] - q[place])).sum() for place in places]
    return np.array(found)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_statistics_are_of_the_divergence_of_steered_from_anchor(temperature):
    model, examples = tiny_llama(initializer_range=0.2), ragged_examples(15)
    text = TextDivergence(examples, 0, temperature=temperature)
    text.remember(model)
    with steered(model, direction_of(model), 0.05):
        found = text.divergences(model)
        exact = hand_divergences(tiny_llama(initializer_range=0.2), model, examples, temperature)
        other = hand_divergences(model, tiny_llama(initializer_range=0.2), examples, temperature).mean()
    assert abs(other / exact.mean() - 1) > 1e-3  # the other direction is another number
    assert statistic_of(found, "mean") == pytest.approx(exact.mean(), rel=1e-9)
    tail = statistic_of(found, "p95")
    assert tail == pytest.approx(np.sort(exact)[math.ceil(0.95 * len(exact)) - 1], rel=1e-9)
    assert (exact <= tail * (1 + 1e-6)).mean() >= 0.95
    with pytest.raises(ValueError, match="the statistic is 'max'; accepted: mean, p95"):
        statistic_of(found, "max")


@pytest.mark.parametrize("start", [1e-6, 0.5, 300.0])
@pytest.mark.parametrize("exponent", [2.0, 1.7])
def test_a_budget_is_reached_in_a_few_measurements(start, exponent):
    seen = []

    def measure(alpha):
        seen.append(alpha)
        return 3.0 * alpha**exponent

    alpha, value = solve_budget(measure, 0.02, start=start)
    assert value == pytest.approx(0.02, rel=0.01)
    assert alpha == pytest.approx((0.02 / 3) ** (1 / exponent), rel=0.01)
    assert len(seen) <= 6


@pytest.mark.parametrize("statistic", ["mean", "p95"])
@pytest.mark.parametrize("budget", [0.002, 0.05])
def test_a_real_models_budget(statistic, budget):
    model, examples = tiny_llama(initializer_range=0.2), ragged_examples(10)
    vector, text, seen = direction_of(model), TextDivergence(examples, 0), []
    text.remember(model)

    def measure(alpha):
        with steered(model, vector, alpha):
            seen.append(statistic_of(text.divergences(model), statistic))
        return seen[-1]

    alpha, value = solve_budget(measure, budget, start=1e-3)
    assert value == pytest.approx(budget, rel=0.01)
    assert measure(alpha) == value
    assert len(seen) <= 7


def test_hard_curves_are_bracketed_and_impossible_ones_refused():
    saturating = solve_budget(lambda alpha: 1 - math.exp(-(alpha**2)), 0.9, start=1e-3)
    assert saturating[1] == pytest.approx(0.9, rel=0.01)
    overflowing = solve_budget(lambda alpha: alpha**2 if alpha < 50 else math.inf, 9.0, start=1e4)
    assert overflowing[0] == pytest.approx(3, rel=0.01)
    rounded = solve_budget(lambda alpha: -1e-9 if alpha < 1e-3 else alpha**2, 0.01, start=1e-5)
    assert rounded[0] == pytest.approx(0.1, rel=0.01)
    with pytest.raises(
        ValueError, match="no alpha was found at which the divergence is 2.0 nats a token; the last gave"
    ):
        solve_budget(lambda alpha: 1 - math.exp(-(alpha**2)), 2.0, start=1e-3)
    for budget in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"the budget is {budget}; accepted: nats a token, more than 0"):
            solve_budget(lambda alpha: alpha, budget, start=1.0)


# --- target rates ----------------------------------------------------------------------------------------------------


def bent_curve(*, curvature=0.0, noise=0.3, number=2000, base=0.4, **options):
    """Scores that are known functions of alpha: -log p changes by alpha d + curvature alpha^2 d^2 / 2."""
    generator = np.random.default_rng(0)
    shows = np.arange(number) < base * number
    derivatives = np.where(shows, 1.0, -0.5) + noise * generator.normal(size=number)
    curve = known_curve(lambda a: -(a * derivatives + 0.5 * curvature * (a * derivatives) ** 2), shows, **options)
    curve.cover([0.1])  # derivatives come from there
    curve.forecaster.scorer.passes = 0
    return curve


def lead_astray(curve, derivatives):
    """Gives the curve another linear form."""
    curve._direction = Direction(derivatives, LinearForm.of(derivatives, curve.forecaster.verdicts))


@pytest.mark.parametrize("curvature", [0.0, 0.6, -0.4])
@pytest.mark.parametrize("target", [0.1, 0.25, 0.39, 0.6, 0.75])
def test_the_rate_is_reached_in_both_directions(target, curvature):
    curve = bent_curve(curvature=curvature)
    scorer = curve.forecaster.scorer
    alpha, by = solve_rate(curve, "two", target)
    assert by == "importance"
    assert scorer.passes <= 8
    assert (alpha > 0) == (target < 0.4)  # a positive alpha reduces the behavior
    found = curve.forecaster.forecast(scorer.function(alpha))
    assert found.reliable
    assert found.rates["two"].rate == pytest.approx(target, abs=0.001)


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_a_linear_form_that_is_far_off_is_left_behind(factor):
    """The weights' curve is `factor` times as steep: plain steps along the linear form's slope would not settle."""
    curve = bent_curve()
    lead_astray(curve, curve.direction().derivatives / factor)
    alpha, by = solve_rate(curve, "two", 0.3)
    assert by == "importance"
    assert curve.forecaster.forecast(curve.forecaster.scorer.function(alpha)).rates["two"].rate == pytest.approx(
        0.3, abs=0.001
    )
    assert curve.forecaster.scorer.passes <= 6


def test_a_small_sample_falls_back_to_the_linear_form():
    curve = bent_curve(min_sample_size=1999.0)
    alpha, by = solve_rate(curve, "two", 0.1)
    assert by == "linear"
    assert curve.direction().linear.rates(alpha)["two"] == pytest.approx(0.1, abs=1e-6)


def test_the_rate_as_it_is_needs_no_step():
    assert solve_rate(bent_curve(), "two", 0.4)[0] == pytest.approx(0, abs=1e-3)


def test_a_rare_rate_is_reached_to_a_part_of_itself():
    curve = bent_curve(noise=0.0, min_sample_size=50.0)
    alpha, by = solve_rate(curve, "two", 0.004)
    assert by == "importance"
    found = curve.forecaster.forecast(curve.forecaster.scorer.function(alpha)).rates["two"].rate
    assert found == pytest.approx(0.004, rel=0.03)


def test_targets_that_cannot_be_reached():
    curve = bent_curve()
    verdicts = curve.forecaster.responses.verdicts
    for target in (0.0, 1.0, 5.0, math.nan):
        with pytest.raises(ValueError, match=f"target rate {target} of 'two'; accepted: more than 0 and less than 1"):
            solve_rate(curve, "two", target)
    with pytest.raises(ValueError, match="has no verdicts on 'three'; it has: two"):
        solve_rate(curve, "three", 0.2)
    derivatives = curve.direction().derivatives
    lead_astray(curve, np.full(2000, 0.7))
    with pytest.raises(ValueError, match="the rate of 'two' does not reach 0.2: it hardly moves"):
        solve_rate(curve, "two", 0.2)
    for name, value, message in (
        ("never", 0.0, "none of the 2000 responses shows 'never'"),
        ("unscored", np.nan, "the rate of 'unscored' is not known"),
    ):
        verdicts[name] = curve.forecaster.verdicts[name] = np.full(2000, value)
        lead_astray(curve, derivatives)
        with pytest.raises(ValueError, match=message):
            solve_rate(curve, name, 0.2)
    # the weights do nothing, whatever the linear form says
    still = known_curve(lambda _: np.zeros(2000), verdicts["two"])
    lead_astray(still, derivatives)
    with pytest.raises(ValueError, match=r"was not brought to 0.2: the nearest forecast, at alpha .* is 20 points off"):
        solve_rate(still, "two", 0.2)


# --- all kinds of doses ----------------------------------------------------------------------------------------------


def solver_of(model=None, **changes):
    return DoseSolver(**{"model": model, "theta_norm": 12.0, "temperature": 1.0, "top_p": 1.0, **changes})


def solve(solver, dose, *, vector=None, calibration=None, contrast=None, curve=None, weights=None):
    vector = SteeringVector({"w": torch.tensor([3.0, 4.0])}) if vector is None else vector
    return solver.solve(
        *(dose, vector), key="v", calibration=calibration, contrast=contrast or Contrast(), curve=curve, weights=weights
    )


def calibration_of(slope=2.0, error=0.1, temperature=1.0, top_p=1.0):
    return Calibration(slope, error, (slope, slope), temperature, top_p, 50, 50)


def test_alphas_of_plain_doses():
    assert solve(solver_of(), Dose("alpha", -0.3)) == -0.3
    assert solve(solver_of(), Dose("relative_norm", 0.05)) == pytest.approx(0.05 * 12 / 5)
    assert solve(solver_of(), Dose("relative_norm", -0.05)) == pytest.approx(-0.05 * 12 / 5)
    shift = Dose("log_odds_shift", -0.75)
    assert solve(solver_of(), shift, calibration=calibration_of()) == pytest.approx(0.375)
    zero = SteeringVector({"w": torch.zeros(2)})
    with pytest.raises(ValueError, match="the vector is zero: no alpha gives it a norm"):
        solve(solver_of(), Dose("relative_norm", 0.1), vector=zero)


def test_a_shift_without_a_slope_of_its_sampling():
    shift, curve = Dose("log_odds_shift", -0.5), bent_curve()
    said = Contrast({"two": True}, {"two": False}, "two")
    with pytest.raises(ValueError, match=r"a shift of log-odds needs a calibrated vector .* --forecasting.responses"):
        solve(solver_of(), shift)
    with pytest.raises(
        ValueError, match=r"the slope was taken at temperature 0.6 and top_p 1, responses are sampled at 1"
    ):
        solve(solver_of(), shift, calibration=calibration_of(temperature=0.6))
    with pytest.raises(ValueError, match=r"the slope <S, V> is 1 \+- 0.6, not told from 0"):
        solve(solver_of(), shift, calibration=calibration_of(1.0, 0.6))
    with pytest.raises(ValueError, match=r"the slope <S, V> is -30 \+- 9.7, below 0: .* --steering.kl_budgets"):
        solve(solver_of(), shift, calibration=calibration_of(-30.0, 9.7))
    with pytest.raises(ValueError, match="the vector's piles do not say theirs"):
        solve(solver_of(), shift, curve=curve)
    slope = curve.forecaster.slope(curve.direction(), {"two": True}, {"two": False})[0]
    for known in (None, calibration_of(temperature=0.6)):
        found = solve(solver_of(), shift, calibration=known, contrast=said, curve=curve)
        assert found == pytest.approx(0.5 / slope)


def test_a_target_rate_wants_a_forecast_and_a_behavior():
    rate, curve = Dose("target_rate", 0.2), bent_curve()
    with pytest.raises(ValueError, match="a target rate is solved on the forecast curve: give --forecasting.responses"):
        solve(solver_of(), rate)
    with pytest.raises(ValueError, match="which behavior's rate is the target"):
        solve(solver_of(), rate, curve=curve)
    found = solve(solver_of(), rate, curve=curve, contrast=Contrast(behavior="two"))
    assert found == solve_rate(bent_curve(), "two", 0.2)[0]


def test_a_budget_is_spent_on_the_side_that_is_asked_for():
    model, examples = tiny_llama(initializer_range=0.2), ragged_examples(6)
    vector, made = direction_of(model), []

    def text():
        made.append(TextDivergence(examples, 0))
        return made[-1]

    def weights(alpha):
        return steered(model, vector, alpha)

    norm = math.sqrt(sum(float(p.detach().square().sum()) for p in model.parameters()))
    solver = solver_of(model, theta_norm=norm, text=text)
    for sign in (1, -1):
        alpha = solve(solver, Dose("kl_budget", sign * 0.01), vector=vector, weights=weights)
        assert math.copysign(1, alpha) == sign
        with weights(alpha):
            assert float(made[0].divergences(model).mean()) == pytest.approx(0.01, rel=0.01)
    assert len(made) == 1  # kept
    with pytest.raises(ValueError, match="the vector is zero: no alpha makes it diverge"):
        solve(solver, Dose("kl_budget", 0.1), vector=vector * 0.0)
    with pytest.raises(ValueError, match="a divergence is taken on text, and there is none"):
        solve(solver_of(model), Dose("kl_budget", 0.1), vector=vector)


def test_a_solver_that_starts_again_makes_no_pass_twice(tmp_path):
    model, examples = tiny_llama(initializer_range=0.2), ragged_examples(6)
    vector = direction_of(model)

    def solver(about="the model"):
        made = []

        def text():
            made.append(TextDivergence(examples, 0))
            return made[0]

        def weights(alpha):
            steps.append(alpha)
            return steered(model, vector, alpha)

        steps: list[float] = []
        own = solver_of(model, text=text, kept=KeptPasses(tmp_path, {"model": about}))
        alphas = [solve(own, Dose("kl_budget", budget), vector=vector, weights=weights) for budget in (0.01, -0.02)]
        return alphas, len(steps), made[0]._anchor is not None

    alphas, passes, read = solver()
    assert passes > 2
    assert read
    assert solver() == (alphas, 0, False)  # not even the anchor's own distributions
    next(tmp_path.glob("*.npy")).unlink()
    assert solver() == (alphas, 1, True)
    assert solver("another model") == (alphas, passes, True)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_budget_is_that_of_the_weights_that_the_condition_runs_with(rounding):
    """In half precision the two roundings of one alpha are other weights, far apart in divergence."""
    model, examples, budget = tiny_llama(initializer_range=0.2, dtype=torch.bfloat16), ragged_examples(12), 2e-3
    anchor = copy.deepcopy(model)
    weights = ConditionWeights(
        model, {"a": direction_of(model)}, options=StepOptions(rounding, 5 if rounding == "stochastic" else 0)
    )
    norm = math.sqrt(sum(float(p.detach().float().square().sum()) for p in model.parameters()))
    solver = solver_of(model, theta_norm=norm, text=lambda: TextDivergence(examples, 0))
    dose, vector = Dose("kl_budget", budget), weights.vectors["a"]
    alpha = solve(solver, dose, vector=vector, weights=lambda alpha: weights.at(vector, alpha))
    with weights.of(Condition("a", "steered", alpha=alpha), Recipe("vector", "a", dose=dose)):
        assert hand_divergences(anchor, model, examples).mean() == pytest.approx(budget, rel=0.02)
    for name, own in anchor.named_parameters():
        assert torch.equal(model.get_parameter(name), own)


def test_a_shift_that_was_asked_for_comes_out_of_a_linear_softmax():
    """Log-odds of two tokens are linear in the weights: what is asked is what comes, exactly."""
    from test_forecasting import bigram_world

    model, vector, _, forecaster = bigram_world(0.6)
    assert isinstance(model, Bigram)
    plus, minus = {"zero": True}, {"one": True, "zero": False}
    curve = VectorCurve("v", forecaster, lambda alpha: steered(model, vector, alpha), lambda: vector)
    solver = solver_of(model, temperature=0.6)
    for shift in (-0.75, 1.5):
        said = Contrast(plus, minus)
        alpha = solve(solver, Dose("log_odds_shift", shift), vector=vector, contrast=said, curve=curve)
        with steered(model, vector, alpha):
            found = forecaster.forecast(forecaster.score(), plus=plus, minus=minus)
        assert found.log_odds_shift == pytest.approx(shift, rel=1e-9)
