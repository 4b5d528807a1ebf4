"""Counting a condition's judged responses: after judging, and again after incoherent ones are marked."""

import math

import lightning as L

from gradsteer.evaluation.counting import count_responses, excess_of_unscored
from gradsteer.trainer.session import needed, session_of
from gradsteer.trainer.tensorboard import log_metrics


def count_condition(trainer: L.Trainer, number: int, *, again: bool = False) -> str | None:
    """Computes a condition's rates and metrics from the session's responses.

    Args:
        trainer: the Trainer that holds the session.
        number: the condition's place in the plan, which is also the loggers' step.
        again: the condition was counted and logged before; logs only what has changed.

    Returns:
        The reason to stop the run if too many verdicts are missing, else None.
    """
    session = session_of(trainer)
    judging, result = needed(session.judging), session.result(number)
    before = result.scalars()
    sets = needed(session.responses).sets(result.condition.slug)
    result.counts = count_responses(sets, judging.judge.behaviors, judging.errors)
    if again:
        now = result.scalars()
        changed = {name: value for name, value in now.items() if before.get(name) != value}
        # a value that can no longer be computed is overwritten with NaN
        log_metrics(trainer, changed | dict.fromkeys(before.keys() - now.keys(), math.nan), step=number)
    return excess_of_unscored(result.condition.name, result.counts, sets, judging.max_unscored)
