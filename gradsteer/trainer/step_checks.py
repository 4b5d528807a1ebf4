"""Refusing, before anything is sampled, steps that the weights cannot take."""

from lightning.pytorch.utilities import rank_zero_warn

from gradsteer.steering.condition_plan import Plan
from gradsteer.steering.condition_weights import ConditionWeights
from gradsteer.steering.conditions import Condition
from gradsteer.steering.step_measurement import AppliedStep

_WHOLE = 0.99  # of a step: less is worth a warning


def check_steps(plan: Plan, weights: ConditionWeights, *, half: bool, min_retained: float) -> None:
    """Takes the steps of all conditions on trial where weights are in half precision, else those of vectors from files.

    Args:
        plan: whose alphas are known.
        weights: gives the model each condition's.
        half: the weights are in half precision.
        min_retained: share of a step below which it is refused.

    Raises:
        ValueError: a file's vector does not belong here, or the weights take too little of a step; names the condition.
    """
    for condition, recipe in plan:
        if half:
            with weights.of(condition, recipe) as step:
                _check_retained(condition, step, min_retained)
        elif recipe is not None and recipe.file is not None:
            try:
                with weights.at(weights.direction(recipe), 0.0):
                    pass
            except ValueError as error:
                raise ValueError(f"condition {condition.name!r} ({recipe.file}): {error}") from error


def _check_retained(condition: Condition, step: AppliedStep | None, min_retained: float) -> None:
    """Warns of a step that the weights took in part, refuses one that they hardly took."""
    if step is None or step.retained_fraction is None or step.changed_fraction is None:
        return
    if step.retained_fraction >= _WHOLE:
        return
    text = (
        f"condition {condition.name!r}: the weights take {100 * step.retained_fraction:.1f}% of the step, in "
        f"{100 * step.changed_fraction:.1f}% of their entries; float32 weights (--model.dtype float32) take all of it, "
        "stochastic rounding (--steering.rounding stochastic) all of it on average"
    )
    if step.retained_fraction < min_retained:
        raise ValueError(f"{text}; --steering.min_retained {min_retained:g} refuses that")
    rank_zero_warn(text)
