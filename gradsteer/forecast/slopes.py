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
from gradsteer.forecast.derivatives import log_prob_derivatives, sensitivity
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.forecast.slope_samples import SEARCHED, responses_in, spread
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


class CrossFittedSlopes:
    """Takes the slopes of vectors one after another, each with its standard error over prompts.

    A step that a few responses ask for is tried first on all of them; along the next vector, the step that was right
    along the one before. As a rule that is two forward passes over half of both piles along each half's vector.

    Args:
        model: with the weights that the piles' gradients were taken at.
        half_of: digest of a prompt -> 1 or 2; see `halves_of_prompts`.
        make_scorer: scores responses at a temperature and top_p.
        most: take so many responses of each pile in each half, spread over the prompts; all by default.
    """

    def __init__(
        self, model: Any, half_of: dict[str, int], make_scorer: MakeScorer, *, most: int | None = None
    ) -> None:
        self.model, self.half_of, self.make_scorer, self.most = model, half_of, make_scorer, most
        self._sensitivity: float | None = None

    def of(
        self,
        plus: Pile,
        minus: Pile,
        halves: tuple[ParameterVector, ParameterVector],
        *,
        tick: Callable[[], None] | None = None,
    ) -> Calibration:
        """The slope of a vector.

        Args:
            plus: the PLUS pile.
            minus: the MINUS pile.
            halves: the vectors of the two halves, made as the whole one.
            tick: called after every batch.

        Raises:
            ValueError: a half has no response of one of the piles, a half's vector is zero, or the PLUS pile does not
                say how it was sampled.
        """
        how = next((how for how in plus.sampling if how is not None), None)
        if how is None:
            raise ValueError(
                f"pile {plus.name!r} does not say at which temperature and top_p its responses were sampled"
            )
        slopes, errors, counts = [], [], np.zeros(2, dtype=int)
        for half in (1, 2):
            sides = [responses_in(pile, half, self.half_of, self.most) for pile in (plus, minus)]
            members = np.repeat([True, False], [len(side) for side in sides])
            numbers = np.unique([prompt for side in sides for _, prompt, _ in side], return_inverse=True)[1]
            weights = np.array([weight for side in sides for *_, weight in side])
            derivatives = self._derivatives(sides, halves[2 - half], how, tick)
            slope, error = mean_difference(derivatives, members, ~members, numbers, weights)
            slopes.append(slope)
            errors.append(error)
            counts += len(sides[0]), len(sides[1])
        return Calibration(
            sum(slopes) / 2,
            math.hypot(*errors) / 2,
            (slopes[0], slopes[1]),
            *how,
            int(counts[0]),
            int(counts[1]),
            tuple(sorted(plus.judges | minus.judges)),
        )

    def _derivatives(
        self,
        sides: Sequence[Sequence[tuple[EncodedExample, str, float]]],
        vector: ParameterVector,
        how: tuple[float, float],
        tick: Callable[[], None] | None,
    ) -> np.ndarray:
        """(responses,) of the PLUS and then the MINUS responses along a vector, nats a unit of alpha."""
        if self._sensitivity is None:
            few = [side[index][0] for side in sides for index in spread([prompt for _, prompt, _ in side])[:SEARCHED]]
            found, _ = log_prob_derivatives(self.model, self.make_scorer(few, *how), vector, tick=tick)
            self._sensitivity = sensitivity(found, vector)
        scorer = self.make_scorer([response for side in sides for response, *_ in side], *how)
        found, _ = log_prob_derivatives(self.model, scorer, vector, sensitivity=self._sensitivity, tick=tick)
        self._sensitivity = sensitivity(found, vector)
        return found
