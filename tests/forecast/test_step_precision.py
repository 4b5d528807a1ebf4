"""What a step does in half precision beside float32: the regression in closed form, tokens' scores by hand."""

import math
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from tiny_models import ragged_examples, tiny_llama

from gradsteer.data.chat import EncodedExample
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.forecast.step_precision import (
    StepPrecision,
    compare_changes,
    compare_steps,
    first_tokens,
    float32_twin,
    token_log_probs,
)
from gradsteer.steering.weight_steering import holding, steered
from gradsteer.vectors.controls import random_like
from gradsteer.vectors.parameter_vectors import SteeringVector


def test_the_regression_is_that_of_numpy():
    generator = np.random.default_rng(0)
    exact, owners = generator.normal(size=60), np.repeat(np.arange(6), 10)
    own = 0.9 * exact + 0.1 * generator.normal(size=60)
    found = compare_changes(own, exact, owners)
    slope = np.linalg.lstsq(exact[:, None], own, rcond=None)[0][0]
    assert found.slope == pytest.approx(slope)
    assert found.correlation == pytest.approx(np.corrcoef(own, exact)[0, 1])
    assert found.change == pytest.approx(math.sqrt(np.mean(exact**2)))
    assert (found.num_responses, found.num_tokens) == (6, 60)
    # a ratio's linearised variance over clusters, by hand
    left = [sum(exact[owners == r] * (own[owners == r] - slope * exact[owners == r])) for r in range(6)]
    assert found.slope_error == pytest.approx(math.sqrt(6 / 5 * sum(x**2 for x in left)) / sum(exact**2))


def test_the_error_of_the_slope_is_its_spread_over_samples_of_responses():
    generator, slopes, errors = np.random.default_rng(1), [], []
    for _ in range(400):
        exact, owners = generator.normal(size=320), np.repeat(np.arange(32), 10)
        own = exact * (1 + 0.2 * generator.normal(size=32)[owners])  # a response's tokens err alike
        found = compare_changes(own, exact, owners)
        slopes.append(found.slope)
        errors.append(found.slope_error)
    assert np.mean(errors) == pytest.approx(np.std(slopes), rel=0.1)


@pytest.mark.parametrize(
    ("slope", "correlation", "survives"),
    [(1.0, 0.99, True), (0.95, 0.95, True), (0.949, 0.99, False), (1.051, 0.99, False), (1.0, 0.949, False),
     (None, None, False)],
)  # fmt: skip
def test_a_step_survives_within_the_limits(slope, correlation, survives):
    assert StepPrecision(slope, 0.01, correlation, 0.1, 32, 320).survives is survives


def test_what_cannot_be_compared_is_none_and_does_not_survive():
    owners = np.array([0, 0, 1])
    for own, exact in ((np.ones(3), np.zeros(3)), (np.array([1, np.nan, 0]), np.ones(3))):
        found = compare_changes(own, exact, owners)
        assert (found.slope, found.correlation, found.survives) == (None, None, False)
        assert "log p does not change, or is not finite, over 3 tokens of 2 responses" in str(found)
    lost = compare_changes(np.zeros(3), np.array([1.0, -1.0, 0.5]), owners)
    assert (lost.slope, lost.correlation) == (0.0, 0.0)  # the weights took nothing of the step
    assert compare_changes(np.ones(2), np.array([1.0, 1.5]), np.zeros(2, dtype=int)).slope_error is None


def test_tokens_are_scored_one_by_one_and_sum_to_whole_responses():
    model, examples = tiny_llama(), ragged_examples(9)
    found = token_log_probs(model, examples, temperature=0.7)
    expected = []
    for example in examples:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([example.input_ids])).logits[0] / 0.7
        steps = logits.log_softmax(-1)
        expected += [float(steps[t - 1, label]) for t, label in enumerate(example.labels) if label != -100 and t]
    assert found == pytest.approx(np.array(expected), abs=1e-9)
    owners = np.repeat(np.arange(9), [example.num_target_tokens for example in examples])
    sums = np.bincount(owners, weights=found)
    assert sums == pytest.approx(ResponseScorer(model, examples, temperature=0.7).log_probs(), abs=1e-9)


def test_the_twin_has_the_same_weights_in_float32_and_the_model_keeps_its_own():
    model = tiny_llama(dtype=torch.bfloat16)
    before = dict(model.named_parameters())
    twin = float32_twin(model)
    for name, parameter in model.named_parameters():
        assert parameter is before[name]
        assert torch.equal(twin.get_parameter(name), parameter.float())
        assert twin.get_parameter(name).dtype == torch.float32
    assert twin.get_output_embeddings().weight is twin.get_input_embeddings().weight


def test_examples_end_at_their_last_wanted_token():
    example = EncodedExample([1, 2, 3, 4, 5], [-100, -100, 3, 4, 5])
    assert first_tokens([example, EncodedExample([1, 2], [-100, -100])], 2) == [
        EncodedExample([1, 2, 3, 4], [-100, -100, 3, 4])
    ]
    assert first_tokens([example], 9) == [example]


def compared(relative, **options):
    """A random step of this size, relative to the weights, of a tiny model in bfloat16."""
    model = tiny_llama(dtype=torch.bfloat16, initializer_range=0.3)
    twin = float32_twin(model)
    vector = random_like(SteeringVector({n: p.detach().float() for n, p in model.named_parameters()}), seed=0)

    def steps(of, **more):
        return [partial(steered, of, vector, relative, allow_other_model=True, **more)]

    with holding(model):
        [found] = compare_steps(
            (model, steps(model, **options)), (twin, steps(twin)), ragged_examples(10), temperature=1.0
        )
    return found


def test_large_steps_survive_rounding_and_small_ones_do_not():
    assert compared(0.3).survives
    lost = compared(1e-4)
    assert not lost.survives
    assert lost.slope < 0.5
    assert compared(1e-4, rounding="stochastic").slope != lost.slope


def test_two_models_in_one_precision_change_alike():
    model = tiny_llama(dtype=torch.float32)
    vector = random_like(SteeringVector({n: p.detach() for n, p in model.named_parameters()}), seed=0)
    pair = [(each, [partial(steered, each, vector, 0.01), nullcontext]) for each in (model, float32_twin(model))]
    moved, still = compare_steps(*pair, ragged_examples(6), temperature=1.0)
    assert moved.slope == pytest.approx(1, abs=1e-3)
    assert moved.correlation == pytest.approx(1, abs=1e-5)
    assert still.slope is None
