"""Calibration: vectors' slopes, the change in their piles' log-odds per unit of alpha, within their gradients' time."""

from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from gradsteer.attribution.pile_partition import halves_of_prompts
from gradsteer.data.piles import Pile
from gradsteer.forecast.calibration import Calibration
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.forecast.slope_samples import FORWARD_AND_BACKWARD, most_within
from gradsteer.forecast.slopes import CrossFittedSlopes
from gradsteer.models.train_mode import evaluating
from gradsteer.progress import progress
from gradsteer.trainer.response_scorers import response_scorer
from gradsteer.trainer.session import data_of, shows_progress
from gradsteer.trainer.tensorboard import log_metrics
from gradsteer.vectors.parameter_vectors import SteeringVector


class VectorSlopes:
    """Estimates the slopes of a run's vectors, logs and prints them.

    The forward passes of all of them run at most as many tokens as take the time of the piles' gradients, which is
    what three forward passes take; where that is too little for all responses, each slope takes a sample of them.

    Args:
        trainer: the Trainer whose datamodule holds the piles and says which vectors are calibrated.
        pl_module: the module that holds the model, at its own weights.
        contrasts: names of each vector's PLUS and MINUS piles.
    """

    def __init__(self, trainer: L.Trainer, pl_module: Any, contrasts: dict[str, tuple[str, str]]) -> None:
        data, own = data_of(trainer), pl_module.fingerprint
        self.trainer, self.module, self.contrasts = trainer, pl_module, contrasts
        by_name: dict[str, Pile] = {pile.name: pile for pile in data.piles}
        piles = {name: (by_name[plus], by_name[minus]) for name, (plus, minus) in contrasts.items()}
        # of responses of other weights no slope is taken, because the score function is not the model's
        self._others = {
            name: sorted({each for pile in pair if pile.weights is None for each in pile.sampled_from} - {own})
            for name, pair in piles.items()
        }
        self._piles = {name: piles[name] for name in data.calibrated if not self._others[name]}
        half_of = halves_of_prompts(data.piles)
        most = None if pl_module.slope_responses is None else (pl_module.slope_responses + 1) // 2
        if most is None and self._piles:
            most = most_within(list(self._piles.values()), half_of, budget=self._budget(), passes=self._passes())
        self._slopes = CrossFittedSlopes(pl_module.model, half_of, self._scorer, most=most)

    def _budget(self) -> int:
        """Tokens of forward passes that take as long as the gradients of the piles that were asked for."""
        parts = [part for part in data_of(self.trainer).parts if not (part.squares or part.is_permuted)]
        tokens = sum(len(example.input_ids) for part in parts for example in part.examples)
        return FORWARD_AND_BACKWARD * tokens * int(self.module.num_points)

    def _passes(self) -> int:
        """Two make a difference; where replies were sampled from a nucleus, it is found by one before them."""
        ways = {way for pair in self._piles.values() for pile in pair for way in pile.sampling if way is not None}
        return 3 if any(top_p < 1 for _, top_p in ways) else 2

    def _scorer(self, examples: Any, temperature: float, top_p: float) -> ResponseScorer:
        budget = data_of(self.trainer).budget()
        return response_scorer(self.trainer, self.module, examples, temperature, top_p, budget)

    def take(self, name: str, halves: tuple[SteeringVector, SteeringVector]) -> Calibration | None:
        """Estimates a vector's slope. Collective: every process must call it.

        Args:
            name: the vector's name.
            halves: the vectors of the two halves of the prompts.

        Returns:
            The calibration; None, with a warning, if the responses were sampled from other weights.
        """
        if others := self._others[name]:
            rank_zero_warn(
                f"vector {name}: no slope is taken: responses of its piles were sampled from other weights "
                f"({others[0]}), the model has fingerprint {self.module.fingerprint}"
            )
            return None
        plus, minus = self._piles[name]
        shown = shows_progress(self.trainer)
        with evaluating(self.module.model), progress(f"slope of {name}", unit="batch", shown=shown) as tick:
            found = self._slopes.of(plus, minus, halves, tick=tick)
        measured = {"slope": found.slope, "slope_error": found.standard_error}
        log_metrics(self.trainer, {f"vector/{name}/{key}": value for key, value in measured.items()}, step=0)
        first, second = found.halves
        sizes = len(plus.examples), len(minus.examples)
        taken = " and ".join(
            f"{num} of {size}" if num < size else f"all {size}"
            for num, size in zip((found.num_plus, found.num_minus), sizes, strict=True)
        )
        rank_zero_info(
            f"vector {name}: slope <S, V> = {found.slope:.4g} +- {found.standard_error:.2g} (halves {first:.4g} and "
            f"{second:.4g}) from {taken} responses, scored at temperature {found.temperature:g}"
            + (
                f": alpha {1 / found.slope:+.4g} lowers the log-odds of {plus.name} against {minus.name} by one nat"
                if found.slope > 0
                else ""
            )
        )
        if abs(found.slope) <= 2 * found.standard_error:
            partly = (found.num_plus, found.num_minus) != sizes
            rank_zero_warn(
                f"vector {name}: its slope is within two standard errors of 0; use larger piles"
                + (", or take it from more of their responses: --model.slope_responses" if partly else "")
            )
        elif found.slope < 0:
            rank_zero_warn(
                f"vector {name}: its slope is below 0, as if a step that lowers {plus.name} raised it: noise of the "
                "halves, and no dose can be computed from it; use larger piles, or dose by --steering.kl_budgets"
            )
        return found
