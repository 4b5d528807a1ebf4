"""Counting a condition's judged responses, when they were judged and again after some of them were marked."""

import math

import lightning as L

from gradsteer.evaluation.counting import count_responses, excess_of_unscored
from gradsteer.trainer.session import session_of
from gradsteer.trainer.tensorboard import log_metrics


def count_condition(trainer: L.Trainer, number: int, *, again: bool = False) -> str | None:
    """Counts a condition's rates and metrics from the session's responses.

    Args:
        trainer: of the session.
        number: of the condition in the plan, which is the loggers' step.
        again: it was counted and logged before: what has changed is logged.

    Returns:
        Why the run cannot go on: too many verdicts are missing; None where it can.
    """
    session = session_of(trainer)
    assert session.judging is not None
    assert session.responses is not None
    judging, result = session.judging, session.result(number)
    before = result.scalars()
    sets = session.responses.sets(result.condition.slug)
    result.counts = count_responses(sets, judging.judge.behaviors, judging.errors)
    if again:
        now = result.scalars()
        changed = {name: value for name, value in now.items() if before.get(name) != value}
        # where nothing is left to count, what was logged before must not stand
        log_metrics(trainer, changed | dict.fromkeys(before.keys() - now.keys(), math.nan), step=number)
    return excess_of_unscored(result.condition.name, result.counts, sets, judging.max_unscored)
