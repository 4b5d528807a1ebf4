"""Estimating the cost of an evaluation before it runs."""

import contextlib
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from gradsteer.evaluation.refusals import judged_sets
from gradsteer.trainer.session import needed, sampled_rows, session_of

# typical of English text under common tokenizers
_CHARS_A_TOKEN = 4.0


class DryRunDoneError(Exception):
    """Ends a run that was only asked for an estimate."""


def estimate(trainer: L.Trainer, pl_module: Any) -> None:
    """Prints an upper bound on what would be sampled, and an estimate of what judging it would cost.

    Raises:
        DryRunDoneError: always, to end the run.
    """
    session = session_of(trainer)
    evaluation, conditions, rows = needed(session.judging), session.conditions, sampled_rows(trainer)
    judge = evaluation.judge
    judged = [row for row in rows if row["set"] in judged_sets(judge.behaviors)]
    longest = pl_module.sampling.max_new_tokens
    total = len(rows) * len(conditions)
    lines = [
        f"{len(conditions)} conditions x {len(rows):,} responses = {total:,} responses of at most {longest} "
        f"tokens: at most {total * longest:,} tokens sampled",
    ]
    labelled = set(evaluation.labelled.exchanges if evaluation.labelled is not None else ())
    sampled = len(judged) * len(conditions)
    prompt_chars = sum(len(row["prompt"]) for row in judged) * len(conditions)
    prompt_chars += sum(len(each.prompt) for each in labelled)
    response_chars = sampled * longest * _CHARS_A_TOKEN + sum(len(each.response) for each in labelled)
    number = sampled + len(labelled)
    cost = judge.estimate(number, prompt_chars / max(1, number), response_chars / max(1, number))
    if cost is None:
        lines.append("judging costs nothing")
    else:
        also = f", and {len(labelled)} labelled ones" if labelled else ""
        lines.append(
            f"judging, about (responses of full length{also}, none of them in the store, {_CHARS_A_TOKEN:g} "
            f"characters a token, nothing asked again): {cost}"
        )
        # already divided among the processes
        limit = None if judge.max_cost is None else judge.max_cost * trainer.world_size
        if limit is not None and cost.dollars is not None and cost.dollars > limit:
            lines.append(f"that is more than max_cost ${limit:g}: the run would stop on the way")
    rank_zero_info("\n".join(lines))
    trainer.strategy.barrier()  # by now every process has created the directory
    with contextlib.suppress(OSError):  # it holds responses, or another process removed it
        evaluation.directory.rmdir()
    raise DryRunDoneError
