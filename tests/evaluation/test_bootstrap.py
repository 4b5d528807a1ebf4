"""Draws of prompts, and the percentiles of what was drawn."""

import numpy as np
import pytest

from gradsteer.evaluation.bootstrap import PromptBootstrap, percentile_interval


def test_draws_are_of_prompts():
    prompts = np.array([0, 0, 1, 2, 2, 2])
    bootstrap = PromptBootstrap.draw(prompts, draws=500, seed=3)
    assert (bootstrap.counts.sum(axis=1) == 3).all()
    np.testing.assert_allclose(bootstrap.counts.mean(axis=0), 1, atol=0.15)
    sums = bootstrap.sums(np.arange(6.0))
    np.testing.assert_allclose(sums, bootstrap.counts @ [1.0, 2.0, 12.0])
    again = PromptBootstrap.draw(prompts, draws=500, seed=3)
    np.testing.assert_array_equal(again.counts, bootstrap.counts)
    assert (PromptBootstrap.draw(prompts, draws=500, seed=4).counts != bootstrap.counts).any()
    with pytest.raises(ValueError, match="bootstrap draws is 99; accepted: at least 100"):
        PromptBootstrap.draw(prompts, draws=99, seed=0)


def test_percentiles_leave_out_what_is_not_finite():
    draws = np.concatenate([np.arange(101.0), [np.nan, np.inf]])
    assert percentile_interval(draws) == pytest.approx((2.5, 97.5))
    assert percentile_interval(draws, 0.5) == pytest.approx((25, 75))
    assert np.isnan(percentile_interval(np.array([np.nan]))).all()
