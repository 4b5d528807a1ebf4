"""Saying what an evaluation will take before it takes it."""

from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from gradsteer.conditions import Condition
from gradsteer.judges import Judge

# of English text under common tokenizers
_CHARS_A_TOKEN = 4.0


class DryRunDoneError(Exception):
    """All that was asked for was an estimate."""


class DryRun(L.Callback):
    """Stops before the model is loaded, and says what would be sampled and what judging it would cost at most.

    Args:
        dry_run: whether to (set by the option of this name).
    """

    def __init__(self, dry_run: bool = False) -> None:
        self.dry_run = dry_run

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Prints the estimate and stops; otherwise refuses a judge that cannot be asked, before anything is loaded.

        Raises:
            ValueError: the judge lacks a key, say.
            DryRunDoneError: always, where a dry run was asked for.
        """
        del stage
        judge: Judge = next(c.judge for c in trainer.callbacks if isinstance(getattr(c, "judge", None), Judge))  # type: ignore[attr-defined]
        if not self.dry_run:
            judge.check()
            return
        conditions: list[Condition] = trainer.conditions  # type: ignore[attr-defined]
        rows = [row for batch in trainer.datamodule.batches for row in batch]  # type: ignore[attr-defined]
        judged = [row for row in rows if row["set"] == "evaluation"]
        longest = pl_module.sampling.max_new_tokens
        total = len(rows) * len(conditions)
        lines = [
            f"{len(conditions)} conditions x {len(rows):,} responses = {total:,} responses of at most {longest} "
            f"tokens: at most {total * longest:,} tokens sampled",
        ]
        chars = sum(len(row["prompt"]) for row in judged) / max(1, len(judged))
        cost = judge.estimate(len(judged) * len(conditions), chars, longest * _CHARS_A_TOKEN)
        if cost is None:
            lines.append("judging costs nothing")
        else:
            lines.append(f"judging, at most (responses of full length, none of them in the store): {cost}")
        rank_zero_info("\n".join(lines))
        raise DryRunDoneError
