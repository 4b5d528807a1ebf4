"""Estimates of a rare rate from equal numbers of replies, drawn from pools many times, prompts with replacement."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradsteer.evaluation.bootstrap import PromptBootstrap
from gradsteer.evaluation.importance_sampling import (
    effective_sample_size,
    hangs_on_one,
    normalised_weights,
    weighted_rate,
)
from gradsteer.evaluation.mixtures import mixture_log_density
from gradsteer.evaluation.statistics import rate_with_interval
from rare.pools import Pools


@dataclass
class Found:
    """What an estimator said in every draw.

    Attributes:
        rates: (draws,).
        lows: (draws,) 95% interval.
        highs: (draws,).
        sizes: (draws,) effective sample size; NaN where there is none.
        bounds: (draws,) bool: the estimate hangs on one reply, and only the interval would be printed.
    """

    rates: np.ndarray
    lows: np.ndarray
    highs: np.ndarray
    sizes: np.ndarray
    bounds: np.ndarray

    @classmethod
    def of(cls, lines: Sequence[tuple[float, float, float, float, bool]]) -> "Found":
        """From a tuple of these for each draw."""
        columns = [np.array(column) for column in zip(*lines, strict=True)]
        return cls(*columns[:4], columns[4].astype(bool))


def chosen(generator: np.random.Generator, num_prompts: int, pool: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts drawn with replacement, and different replies to each: (prompts, 1) and (prompts, each) numbers."""
    prompts = generator.integers(num_prompts, size=num_prompts)
    return prompts[:, None], generator.permuted(np.tile(np.arange(pool), (num_prompts, 1)), axis=1)[:, :each]


def naive(rates_of_prompts: np.ndarray, each: int, draws: int, seed: int) -> Found:
    """Sampled at the target: so many new replies to each prompt, at the rates that brute force found.

    Args:
        rates_of_prompts: (prompts,).
        each: replies to a prompt.
        draws: how often.
        seed: of the draws.
    """
    generator, num, lines = np.random.default_rng(seed), len(rates_of_prompts), []
    clusters = [str(i) for i in range(num) for _ in range(each)]
    for _ in range(draws):
        positives = generator.binomial(each, rates_of_prompts[generator.integers(num, size=num)])
        values = (np.arange(each)[None] < positives[:, None]).reshape(-1)
        rate = rate_with_interval(values.tolist(), clusters)
        lines.append((rate.rate, rate.ci_low, rate.ci_high, np.nan, False))
    return Found.of(lines)


def weighed(pools: Pools, sources: Sequence[int], each: int, draws: int, seed: int, *, back: bool = False) -> Found:
    """Ours: replies from one or several steps, weighed to the target as one sample of their mixture.

    Args:
        pools: to draw from.
        sources: numbers of steps; as many replies from each.
        each: replies to a prompt, over all sources.
        draws: how often.
        seed: of the draws.
        back: the one source is the step back instead.
    """
    generator, lines = np.random.default_rng(seed), []
    names = ["back"] if back else [str(source) for source in sources]
    columns = [0] if back else list(sources)
    num, pool = pools.shows[names[0]].shape
    if each % len(names):
        raise ValueError(f"{each} replies to a prompt cannot come from {len(names)} sources alike")
    share = each // len(names)
    numbers = np.tile(np.repeat(np.arange(num), share), len(names))
    bootstrap = PromptBootstrap.draw(numbers, draws=200, seed=seed)
    for _ in range(draws):
        prompts, _ = chosen(generator, num, pool, share)
        places = [chosen(generator, num, pool, share)[1] for _ in names]
        pairs = list(zip(names, places, strict=True))
        shows = np.concatenate([pools.shows[name][prompts, place].reshape(-1) for name, place in pairs])
        scores = np.concatenate(
            [pools.log_probs[name][prompts, place].reshape(num * share, -1) for name, place in pairs]
        )
        mixture = mixture_log_density(scores[:, columns], [num * share] * len(names))
        weights, values = normalised_weights(scores[:, -1] - mixture), shows.astype(np.float64)
        found = weighted_rate(weights, values, bootstrap)
        assert found is not None
        lines.append((*found, effective_sample_size(weights), hangs_on_one(weights, values)))
    return Found.of(lines)
