"""Derivatives of responses' log-probabilities along a direction in weight space, by forward passes alone."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.steering.rounding import HALF_PRECISIONS
from gradsteer.steering.weight_steering import Rounding, steered
from gradsteer.vectors.parameter_vectors import ParameterVector

# smallest, largest and wished-for change in nats of a whole response: well above the rounding of forward passes, and
# small enough for what central differences leave in, the third order, to be a few thousandths at most
_FULL_PRECISION = 0.002, 0.03, 0.01
# forward passes in half precision are rounded by far more
_HALF_PRECISION = 0.15, 0.5, 0.3
_MOST_TRIALS = 8


class StepNotFoundError(ValueError):
    """No step along a vector changes the responses' log-probabilities by a usable amount."""


def log_prob_derivatives(
    model: Any,
    scorer: ResponseScorer,
    vector: ParameterVector,
    *,
    changes: tuple[float, float, float] | None = None,
    sensitivity: float | None = None,
    tick: Callable[[], None] | None = None,
) -> tuple[np.ndarray, int]:
    """``d(-log p(r)) / d alpha`` at alpha = 0 for ``theta + alpha V``, response by response: central differences.

    The step is chosen so that the responses' log-probabilities change by about 0.01 nats (root mean square): well above
    the rounding of a forward pass, well within the linear range. Where weights are in half precision it is 0.3 nats,
    and the steps are rounded stochastically: to nearest they lose whatever is under half a unit in the last place, and
    slopes come out too small. An adapter's matrices are in float32 and take any step as it is; beside a base in half
    precision the passes are rounded all the same, so that the changes are 0.3 nats there, too.

    Args:
        model: the scorer's model, at the weights where the derivative is taken.
        scorer: of the responses.
        vector: the direction V; whether it belongs to the model is the caller's to check.
        changes: smallest, largest and wished-for change of the responses, nats, instead.
        sensitivity: see `sensitivity`, of a few of the responses or along a vector like this one: the first step is
            then chosen by it, and as a rule no other one is tried.
        tick: called after every batch.

    Returns:
        (responses,) nats a unit of alpha, and the number of forward passes.

    Raises:
        ValueError: the vector is zero, or no step gives changes of a usable size.
    """
    norm = vector.norm()
    if norm == 0:
        raise ValueError("the vector is zero: it has no direction")
    dtypes = [parameter.dtype for name, parameter in model.named_parameters() if name in vector]
    rounding: Rounding = "stochastic" if any(dtype in HALF_PRECISIONS for dtype in dtypes) else "nearest"
    coarse = rounding == "stochastic" or getattr(model, "dtype", None) in HALF_PRECISIONS
    smallest, largest, aim = changes or (_HALF_PRECISION if coarse else _FULL_PRECISION)
    nuclei = scorer.nuclei() if scorer.top_p < 1 else None
    step, passes = aim / sensitivity / norm if sensitivity else 0.01 / norm, 0 if nuclei is None else 1
    for _ in range(_MOST_TRIALS):
        scores = []
        for seed, sign in enumerate((1, -1)):
            with steered(model, vector, sign * step, allow_other_model=True, rounding=rounding, seed=seed):
                scores.append(scorer.log_probs(nuclei=nuclei, tick=tick))
            passes += 1
        differences = scores[1] - scores[0]
        size = float(np.sqrt(np.mean(np.square(differences)))) / 2
        if smallest <= size <= largest:
            return differences / (2 * step), passes
        if not np.isfinite(size):
            step /= 100
        else:
            step *= min(100.0, max(0.01, aim / size)) if size > 0 else 100.0
    raise StepNotFoundError(
        f"the log-probabilities change by {size:.1e} nats at +-{step:.1e} V, and no other step came near {aim}: the "
        "vector does not move the model, or the scores are not finite"
    )


def sensitivity(derivatives: np.ndarray, vector: ParameterVector) -> float:
    """Root mean square of responses' derivatives, nats for a step of norm 1 along the vector.

    Args:
        derivatives: (responses,) along the vector, nats a unit of alpha.
        vector: that they were taken along.
    """
    return float(np.sqrt(np.mean(np.square(derivatives)))) / vector.norm()
