"""Refusing, before anything is sampled, steps that are lost to rounding."""

from lightning.pytorch.utilities import rank_zero_warn

from gradsteer.steering.condition_plan import Plan, Recipe
from gradsteer.steering.condition_weights import ConditionWeights
from gradsteer.steering.conditions import Condition
from gradsteer.steering.step_measurement import AppliedStep

_WHOLE = 0.99  # warn if less than this fraction of a step survives


def check_steps(
    plan: Plan, weights: ConditionWeights, *, half: bool, min_retained: float
) -> list[tuple[Condition, Recipe, AppliedStep]]:
    """Tries out the steps: all of them for weights in half precision, otherwise only those of vectors from files.

    Args:
        plan: the plan, with all alphas known.
        weights: sets each condition's weights.
        half: whether the weights are in half precision.
        min_retained: a step of which a smaller fraction survives is refused.

    Returns:
        For weights in half precision, the conditions that take a step, and their steps as measured.

    Raises:
        ValueError: a vector does not fit the model, or too little of a step survives; names the condition.
    """
    taken = []
    for condition, recipe in plan:
        if half:
            with weights.of(condition, recipe) as step:
                if weights.rounding is not None:  # an adapter in float32 beside a base in half precision is not rounded
                    _check_retained(condition, step, min_retained)
            if step is not None and recipe is not None:
                taken.append((condition, recipe, step))
        elif recipe is not None and recipe.file is not None:
            try:
                with weights.at(weights.direction(recipe), 0.0):
                    pass
            except ValueError as error:
                raise ValueError(f"condition {condition.name!r} ({recipe.file}): {error}") from error
    return taken


def _check_retained(condition: Condition, step: AppliedStep | None, min_retained: float) -> None:
    """Warns if part of a step is lost; refuses it if too little survives."""
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
