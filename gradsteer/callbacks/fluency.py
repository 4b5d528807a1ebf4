"""How likely the base finds what the conditions replied: text that fell apart is text that the base would not write."""

import math
import sys
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from gradsteer.callbacks.tensorboard import log_metrics
from gradsteer.chat import encode_sampled
from gradsteer.conditions import Condition
from gradsteer.response_rows import response_rows
from gradsteer.scoring import ResponseScorer


class BasePerplexity(L.Callback):
    """Takes the perplexity of every condition's responses under the base model, where there is one.

    Args:
        output_dir: the experiment's directory.
        base_perplexity: take it; one forward pass over the responses of each condition, after all are sampled.
    """

    def __init__(self, output_dir: str, base_perplexity: bool = True) -> None:
        self.directory, self.base_perplexity = Path(output_dir) / "responses", base_perplexity

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Scores the conditions' responses, all with the base's weights."""
        steering = trainer.steering  # type: ignore[attr-defined]
        if not self.base_perplexity or steering.base is None:
            return
        conditions: list[Condition] = trainer.conditions  # type: ignore[attr-defined]
        shown = trainer.progress_bar_callback is not None and trainer.is_global_zero and sys.stderr.isatty()
        with (
            steering.at_base(),
            Tqdm(total=len(conditions), desc="responses under the base", leave=False, disable=not shown) as bar,
        ):
            for step, condition in enumerate(conditions):
                value = self._perplexity(trainer, pl_module, condition)
                condition.metrics["base_perplexity"] = value
                if value is not None:
                    log_metrics(trainer, {"metrics/base_perplexity": value}, step=step)
                bar.update()

    def _perplexity(self, trainer: L.Trainer, pl_module: Any, condition: Condition) -> float | None:
        """``exp`` of the mean of ``-log p_base(token)`` over all tokens of all responses, at temperature 1."""
        rows = response_rows(str(self.directory / f"{condition.slug}.jsonl"))
        examples = [
            encode_sampled(row["prompt_token_ids"], row["token_ids"], row["finish_reason"], loss_mask="assistant")
            for _, row in rows or ()
        ]
        if not examples:
            return None
        scorer = ResponseScorer(
            pl_module.model,
            examples,
            pad_token_id=int(pl_module.tokenizer.pad_token_id),
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        mean = -float(scorer.log_probs().sum()) / scorer.num_tokens
        return math.exp(mean) if mean <= 700 else None
