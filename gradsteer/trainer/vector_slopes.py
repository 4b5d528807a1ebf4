"""Calibration: a vector's slope, the change in its piles' log-odds per unit of alpha."""

from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from gradsteer.attribution.pile_partition import halves_of_prompts
from gradsteer.data.piles import Pile
from gradsteer.forecast.calibration import Calibration
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.forecast.slopes import cross_fitted_slope
from gradsteer.generation.sampling import num_known_ids
from gradsteer.models.train_mode import evaluating
from gradsteer.progress import progress
from gradsteer.trainer.session import data_of, shows_progress
from gradsteer.trainer.tensorboard import log_metrics
from gradsteer.vectors.parameter_vectors import SteeringVector


def calibrate(
    trainer: L.Trainer,
    pl_module: Any,
    name: str,
    piles: tuple[str, str],
    halves: tuple[SteeringVector, SteeringVector],
) -> Calibration | None:
    """Estimates a vector's slope, logs and prints it. Collective: every process must call it.

    Args:
        trainer: the Trainer whose datamodule holds the piles.
        pl_module: the module that holds the model, at its own weights.
        name: the vector's name.
        piles: names of its PLUS and MINUS piles.
        halves: the vectors of the two halves of the prompts.

    Returns:
        The calibration; None, with a warning, if the responses were sampled from other weights, because the score
        function is then not the model's.
    """
    data = data_of(trainer)
    by_name: dict[str, Pile] = {pile.name: pile for pile in data.piles}
    plus, minus = (by_name[pile] for pile in piles)
    others = (plus.sampled_from | minus.sampled_from) - {pl_module.fingerprint}
    if others:
        rank_zero_warn(
            f"vector {name}: no slope is taken: responses of its piles were sampled from weights with fingerprint "
            f"{min(others)}, the model has {pl_module.fingerprint}"
        )
        return None

    def make_scorer(examples: Any, temperature: float, top_p: float) -> ResponseScorer:
        return ResponseScorer(
            pl_module.model,
            examples,
            temperature=temperature,
            top_p=top_p,
            token_budget=data.budget(),
            pad_token_id=int(pl_module.tokenizer.pad_token_id),
            num_known=num_known_ids(pl_module.tokenizer),
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )

    shown = shows_progress(trainer)
    with evaluating(pl_module.model), progress(f"slope of {name}", unit="batch", shown=shown) as tick:
        half_of = halves_of_prompts(data.piles)
        found = cross_fitted_slope(pl_module.model, plus, minus, half_of, halves, make_scorer, tick=tick)
    measured = {"slope": found.slope, "slope_error": found.standard_error}
    log_metrics(trainer, {f"vector/{name}/{key}": value for key, value in measured.items()}, step=0)
    first, second = found.halves
    rank_zero_info(
        f"vector {name}: slope <S, V> = {found.slope:.4g} +- {found.standard_error:.2g} (halves {first:.4g} and "
        f"{second:.4g}), scored at temperature {found.temperature:g}: alpha {1 / found.slope:+.4g} lowers the "
        f"log-odds of {piles[0]} against {piles[1]} by one nat"
        if found.slope
        else f"vector {name}: its slope is 0"
    )
    if abs(found.slope) <= 2 * found.standard_error:
        rank_zero_warn(f"vector {name}: its slope is within two standard errors of 0; use larger piles")
    return found
