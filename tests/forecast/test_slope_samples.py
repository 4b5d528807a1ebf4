"""Slopes from some of the responses: which ones, how many, what they cost, and whether the error says so."""

import dataclasses
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_calibration import random_piles, slopes_of
from test_scoring import autograd_derivatives, direction_of
from tiny_models import tiny_llama

from gradsteer.attribution.pile_partition import halves_of_prompts, plan_parts
from gradsteer.evaluation.importance_sampling import mean_difference
from gradsteer.forecast.calibration import Calibration
from gradsteer.forecast.derivatives import log_prob_derivatives, sensitivity
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.forecast.slope_samples import FEWEST, most_within, responses_in, spread
from gradsteer.trainer.vector_slopes import VectorSlopes
from gradsteer.vectors.parameter_vectors import SteeringVector


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def small_llama():
    return tiny_llama(initializer_range=0.3)


class CountingTokens:
    """Counts the tokens that go through a model."""

    def __init__(self, model):
        self.tokens = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model, args, kwargs):
        self.tokens += kwargs["input_ids"].numel()


# --- which responses -------------------------------------------------------------------------------------------------


def test_every_beginning_of_the_order_is_spread_over_the_prompts():
    prompts = [f"{index % 7:016x}" for index in range(70)] + [f"{7 + index % 3:016x}" for index in range(60)]
    order = spread(prompts)
    assert order == spread(prompts)
    assert sorted(order) == list(range(130))
    sizes = Counter(prompts)
    for number in (10, 26, 65, 100):
        taken = Counter(prompts[index] for index in order[:number])
        assert all(abs(taken[prompt] - number / 130 * sizes[prompt]) <= 1.5 for prompt in sizes)


def test_two_piles_give_their_responses_to_the_same_prompts():
    one, two = ([f"{index % 40:016x}" for index in range(number)] for number in (80, 160))
    chosen = [{prompts[index] for index in spread(prompts)[:12]} for prompts in (one, two)]
    assert len(chosen[0] & chosen[1]) >= 11


@pytest.mark.slow
def test_every_response_is_as_likely_to_be_taken():
    """Prompts with one response and with twelve: the mean over what is taken is that over all."""
    generator, found = np.random.default_rng(0), []
    for _ in range(2000):
        names = [f"{int(value):016x}" for value in generator.integers(1 << 60, size=12)]
        prompts = [*(name for name in names[:6] for _ in range(12)), *names[6:]]
        found.append(np.mean([index < 72 for index in spread(prompts)[:20]]))
    assert np.mean(found) == pytest.approx(72 / 78, abs=4 * np.std(found) / 2000**0.5)


def test_a_sample_is_taken_of_each_pile_in_each_half():
    piles = random_piles(60, prompts=12)
    half_of = halves_of_prompts(piles)
    for pile in piles:
        for half in (1, 2):
            everything, some = responses_in(pile, half, half_of), responses_in(pile, half, half_of, 9)
            assert (len(everything), len(some)) == (30, 9)
            assert all(half_of[prompt] == half for _, prompt, _ in everything)
            assert [pair for pair in everything if pair in some] == some  # in the pile's order
            assert set(Counter(prompt for _, prompt, _ in some).values()) <= {1, 2}


# --- the slope from them ---------------------------------------------------------------------------------------------


def test_a_sampled_slope_is_autograds_over_the_sample():
    model, piles = small_llama(), random_piles(60, prompts=12)
    halves = direction_of(model, seed=1), direction_of(model, seed=2)
    found = slopes_of(model, piles, most=9).of(*piles, halves)
    half_of, terms, errors = halves_of_prompts(piles), [], []
    for half in (1, 2):
        sides = [responses_in(pile, half, half_of, 9) for pile in piles]
        each = autograd_derivatives(model, halves[2 - half], [example for side in sides for example, _, _ in side])
        plus = np.arange(18) < 9
        prompts = np.unique([prompt for side in sides for _, prompt, _ in side], return_inverse=True)[1]
        slope, error = mean_difference(each, plus, ~plus, prompts)
        terms.append(slope)
        errors.append(error)
    assert found.halves == pytest.approx(terms, abs=5e-3 * max(map(abs, terms)))
    assert found.standard_error == pytest.approx(np.hypot(*errors) / 2, rel=1e-2)
    assert (found.num_plus, found.num_minus) == (18, 18)


def test_all_responses_give_what_all_gave():
    model, piles = small_llama(), random_piles(30)
    halves = direction_of(model, seed=1), direction_of(model, seed=2)
    plain, large = (slopes_of(model, piles, **options).of(*piles, halves) for options in ({}, {"most": 15}))
    assert plain == large
    vectors = slopes_of(model, piles)
    again = [vectors.of(*piles, halves) for _ in range(2)]  # the second one starts from the first one's step
    assert again[0] == plain
    for name, value in dataclasses.asdict(plain).items():
        assert getattr(again[1], name) == (value if name == "judges" else pytest.approx(value, rel=1e-3)), name


def test_a_step_that_is_known_takes_one_try_and_a_wrong_one_is_mended():
    model, piles = small_llama(), random_piles(12)
    scorer, vector = ResponseScorer(model, piles[0].examples), direction_of(model, scale=1e4)
    found, _ = log_prob_derivatives(model, scorer, vector)
    known = sensitivity(found, vector)
    again, passes = log_prob_derivatives(model, scorer, vector, sensitivity=known)
    assert passes == 2  # to both sides, once
    assert again == pytest.approx(found, rel=1e-3, abs=1e-3 * np.abs(found).max())
    for wrong in (known / 100, known * 100):
        again, passes = log_prob_derivatives(model, scorer, vector, sensitivity=wrong)
        assert passes == 4
        assert again == pytest.approx(found, rel=1e-3, abs=1e-3 * np.abs(found).max())


@pytest.mark.slow
def test_the_standard_error_covers():
    """The slope of all responses, of a population of prompts that differ, from samples of 25 a pile and half."""
    generator, model, hits, repetitions = np.random.default_rng(0), small_llama(), 0, 60
    vector = direction_of(model, seed=1)
    piles = random_piles(3000, prompts=3000)
    truth = slopes_of(model, piles).of(*piles, (vector, vector)).slope
    for _ in range(repetitions):
        drawn = []
        for pile in piles:
            rows = generator.choice(3000, size=160, replace=False)
            drawn.append(dataclasses.replace(
                pile, examples=[pile.examples[row] for row in rows], responses=[pile.responses[row] for row in rows],
                prompts=[pile.prompts[row] for row in rows], sampling=[pile.sampling[row] for row in rows],
            ))  # fmt: skip
        found = slopes_of(model, drawn, most=25).of(*drawn, (vector, vector))
        hits += abs(found.slope - truth) <= 1.96 * found.standard_error
    assert hits / repetitions >= 0.88  # 95%, less 2 standard errors of 60 tries


# --- how many --------------------------------------------------------------------------------------------------------


def module_of(model, **options):
    return SimpleNamespace(
        model=model, fingerprint="f", num_points=1, tokenizer=SimpleNamespace(pad_token_id=0, vocab_size=61),
        **{"slope_responses": None, **options},
    )  # fmt: skip


def slopes_in_a_run(piles, contrasts, module, monkeypatch):
    monkeypatch.setattr("gradsteer.trainer.response_scorers.num_known_ids", lambda tokenizer: None)
    monkeypatch.setattr("gradsteer.trainer.vector_slopes.log_metrics", lambda *args, **options: None)
    monkeypatch.setattr("gradsteer.trainer.vector_slopes.shows_progress", lambda trainer: False)
    data = SimpleNamespace(
        piles=piles, parts=plan_parts(piles, halves=True), calibrated=tuple(contrasts), budget=lambda: 1024
    )
    trainer = SimpleNamespace(datamodule=data, global_rank=0, world_size=1)
    return VectorSlopes(trainer, module, contrasts)


@pytest.mark.filterwarnings("ignore:vector .*. its slope is within two standard errors")
@pytest.mark.parametrize(("number", "top_p"), [(1, 1.0), (3, 1.0), (12, 1.0), (3, 0.9), slow(12, 0.9)])
def test_the_slopes_run_no_more_tokens_than_the_gradients_took_the_time_of(number, top_p, monkeypatch, caplog):
    size = {1: 150, 3: 200, 12: 500 if top_p == 1 else 700}[number]
    model, piles = small_llama().float(), random_piles(size, prompts=50, how=(1.0, top_p))
    contrasts = {f"v{index}": ("plus", "minus") if index % 2 else ("minus", "plus") for index in range(number)}
    slopes = slopes_in_a_run(piles, contrasts, module_of(model), monkeypatch)
    directions = tuple(direction_of(model, seed=seed, scale=10.0**seed) for seed in (1, 2))
    slopes.take("v0", directions)  # also runs the checks of packs, once for a model
    counter = CountingTokens(model)
    caplog.clear()
    slopes = slopes_in_a_run(piles, contrasts, module_of(model), monkeypatch)
    with caplog.at_level("INFO"):
        found = [slopes.take(name, directions) for name in contrasts]
    tokens = sum(len(example.input_ids) for pile in piles for example in pile.examples)
    assert counter.tokens <= 3 * tokens
    assert counter.tokens >= 1.7 * tokens  # what there is is used; prompts are read once
    everything = number == 1
    assert (found[0].num_plus == size) == everything
    assert all(each.num_plus == each.num_minus == found[0].num_plus for each in found)
    said = f"from all {size} and all {size}" if everything else f"from {found[0].num_plus} of {size} and "
    assert caplog.text.count(said) == number


def test_of_a_slope_below_0_no_alpha_is_said_and_why(monkeypatch, caplog):
    found = Calibration(-30.0, 9.7, (-32.0, -28.0), 1.0, 1.0, 200, 200)
    monkeypatch.setattr("gradsteer.forecast.slopes.CrossFittedSlopes.of", lambda *args, **options: found)
    model = small_llama()
    run = slopes_in_a_run(random_piles(40, prompts=20), {"v": ("plus", "minus")}, module_of(model), monkeypatch)
    halves = (direction_of(model, seed=1), direction_of(model, seed=2))
    with caplog.at_level("INFO"), pytest.warns(UserWarning, match="v: its slope is below 0, .* --steering.kl_budgets"):
        assert run.take("v", halves) is found
    assert "slope <S, V> = -30 +- 9.7" in caplog.text
    assert "lowers the log-odds" not in caplog.text


def test_there_is_a_floor_and_a_count_of_ones_own(monkeypatch):
    piles = random_piles(200, prompts=20)
    half_of = halves_of_prompts(piles)
    assert most_within([tuple(piles)], half_of, budget=1) == FEWEST
    assert most_within([tuple(piles)], half_of, budget=10**9) is None
    few = random_piles(40, prompts=20)
    assert most_within([tuple(few)], halves_of_prompts(few), budget=1) is None  # no pile has more in a half
    model = small_llama()
    contrasts, halves = {"v": ("plus", "minus")}, (direction_of(model, seed=1), direction_of(model, seed=2))
    for asked, taken in ((41, 42), (1000, 200)):
        run = slopes_in_a_run(piles, contrasts, module_of(model, slope_responses=asked), monkeypatch)
        with pytest.warns(UserWarning, match="two standard errors of 0; use larger piles") as said:
            found = run.take("v", halves)
        assert (found.num_plus, found.num_minus) == (taken, taken)
        assert ("take it from more of their responses: --model.slope_responses" in str(said[0].message)) == (
            asked < 200
        )


def test_the_count_is_kept_with_the_slope(tmp_path):
    model, piles = small_llama(), random_piles(60, prompts=12)
    found = slopes_of(model, piles, most=9).of(*piles, (direction_of(model, seed=1), direction_of(model, seed=2)))
    vector = SteeringVector({"w": torch.ones(2)})
    found.write(vector)
    assert Calibration.read(SteeringVector.read_header(vector.save(tmp_path / "v.safetensors"))) == found
