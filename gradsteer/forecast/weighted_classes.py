"""Classes of responses by their verdicts, and what weights say of them."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from gradsteer.evaluation.verdict_classes import classes_of


def log_odds_shift(weights: np.ndarray, members: Sequence[np.ndarray], at_anchor: np.ndarray | None) -> float | None:
    """Of two classes of weighted responses, from what it is at the anchor; None where a class has no weight."""
    after = [float(weights[each].sum()) for each in members]
    before = [float(each.sum() if at_anchor is None else at_anchor[each].sum()) for each in members]
    if not all((*after, *before)):
        return None
    return math.log(after[0] / after[1]) - math.log(before[0] / before[1])


def weighted_means(weights: np.ndarray, traits: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean of each trait over the responses that have it; without those that none has."""
    found = {}
    for name, values in traits.items():
        known = ~np.isnan(values)
        if known.all():
            found[name] = float((weights * values).sum())
        elif (mass := float(weights[known].sum())) > 0:
            found[name] = float((weights[known] * values[known]).sum()) / mass
    return found


def class_verdicts(verdicts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Class -> (responses,) 1 where a response is of it, 0 where not, NaN where a verdict is unscored."""
    found = {}
    for name, where in classes_of(list(verdicts)).items():
        columns = [verdicts[behavior] == float(wanted) for behavior, wanted in where.items()]
        unscored = np.isnan([verdicts[behavior] for behavior in where]).any(axis=0)
        found[name] = np.where(unscored, np.nan, np.all(columns, axis=0).astype(np.float64))
    return found
