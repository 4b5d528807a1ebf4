"""A vector's cross-fitted slope: how a unit of alpha changes the log-odds of its two piles, from forward passes.

``<S, V> = (<S_1, V_2> + <S_2, V_1>) / 2``: one half of the prompts makes the direction, the other half's responses are
scored along it. ``<V, V>`` on one sample would be biased up by its noise, about twice at piles of 100.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradsteer.attribution.pile_partition import halves_of_prompts
from gradsteer.data.chat import EncodedExample
from gradsteer.data.piles import Pile
from gradsteer.evaluation.importance_sampling import mean_difference
from gradsteer.forecast.calibration import Calibration
from gradsteer.forecast.derivatives import log_prob_derivatives
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.vectors.parameter_vectors import ParameterVector

MIN_RESPONSES = 20

MakeScorer = Callable[[Sequence[EncodedExample], float, float], ResponseScorer]


def why_not_calibrate(piles: Sequence[Pile], *, num_responses: int = MIN_RESPONSES) -> str | None:
    """Why the slope of a vector of these piles cannot be measured; None if it can.

    Args:
        piles: all of them (a prompt's half depends on all), sampled or not.
        num_responses: the fewest that each may hold.
    """
    sampling = {how for pile in piles for how in pile.sampling}
    for pile in piles:
        if not all(pile.sampled):
            return f"pile {pile.name!r} holds texts, not sampled responses with token ids"
        if len(pile.examples) < num_responses:
            return f"pile {pile.name!r} holds {len(pile.examples)} responses; at least {num_responses} are wanted"
    if None in sampling:
        return "the responses do not say at which temperature and top_p they were sampled"
    if len(sampling) > 1:
        return f"the responses were sampled in {len(sampling)} ways: {', '.join(map(str, sorted(sampling, key=str)))}"
    if any(how is not None and how[0] == 0 for how in sampling):
        return "the responses were sampled at temperature 0: greedy replies have no score function"
    return None


def has_both_halves(plus: Pile, minus: Pile, piles: Sequence[Pile]) -> bool:
    """Whether both piles of a vector have responses in both halves of the prompts, and each half two prompts.

    See `halves_of_prompts`; one prompt has no spread, and so no standard error.
    """
    half_of = halves_of_prompts(piles)
    counts = Counter(half_of[prompt] for prompt in {*plus.prompts, *minus.prompts})
    both = all({half_of[prompt] for prompt in pile.prompts} == {1, 2} for pile in (plus, minus))
    return both and min(counts.values()) >= 2


def cross_fitted_slope(
    model: Any,
    plus: Pile,
    minus: Pile,
    half_of: dict[str, int],
    halves: tuple[ParameterVector, ParameterVector],
    make_scorer: MakeScorer,
    *,
    tick: Callable[[], None] | None = None,
) -> Calibration:
    """The slope of a vector and its standard error over prompts; four forward passes over half of both piles.

    Args:
        model: with the weights that the piles' gradients were taken at.
        plus: the PLUS pile.
        minus: the MINUS pile.
        half_of: digest of a prompt -> 1 or 2; see `halves_of_prompts`.
        halves: the vectors of the two halves, made as the whole one.
        make_scorer: scores responses at a temperature and top_p.
        tick: called after every batch.

    Raises:
        ValueError: a half has no response of one of the piles, a half's vector is zero, or the PLUS pile does not say
            how it was sampled.
    """
    how = next((how for how in plus.sampling if how is not None), None)
    if how is None:
        raise ValueError(f"pile {plus.name!r} does not say at which temperature and top_p its responses were sampled")
    temperature, top_p = how
    slopes, errors = [], []
    for half in (1, 2):
        examples: list[EncodedExample] = []
        is_plus: list[bool] = []
        prompts: list[str] = []
        for pile in (plus, minus):
            for response, prompt in zip(pile.responses, pile.prompts, strict=True):
                if half_of[prompt] == half and response is not None:
                    examples.append(response)
                    is_plus.append(pile is plus)
                    prompts.append(prompt)
        scorer = make_scorer(examples, temperature, top_p)
        derivatives, _ = log_prob_derivatives(model, scorer, halves[2 - half], tick=tick)
        members = np.array(is_plus)
        numbers = np.unique(prompts, return_inverse=True)[1]
        slope, error = mean_difference(derivatives, members, ~members, numbers)
        slopes.append(slope)
        errors.append(error)
    return Calibration(
        sum(slopes) / 2,
        math.hypot(*errors) / 2,
        (slopes[0], slopes[1]),
        temperature,
        top_p,
        len(plus.examples),
        len(minus.examples),
        tuple(sorted(plus.judges | minus.judges)),
    )
