"""Scoring responses in a run: its model and tokenizer, the batches shared out over its processes."""

from collections.abc import Sequence
from typing import Any

import lightning as L

from gradsteer.data.chat import EncodedExample
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.generation.sampling import num_known_ids


def response_scorer(
    trainer: L.Trainer,
    pl_module: Any,
    examples: Sequence[EncodedExample],
    temperature: float,
    top_p: float,
    token_budget: int | None,
) -> ResponseScorer:
    """A scorer of responses on the module's model, at whatever weights it has when it scores; see `ResponseScorer`."""
    return ResponseScorer(
        pl_module.model,
        examples,
        temperature=temperature,
        top_p=top_p,
        token_budget=token_budget,
        pad_token_id=int(pl_module.tokenizer.pad_token_id),
        num_known=num_known_ids(pl_module.tokenizer),
        rank=trainer.global_rank,
        world_size=trainer.world_size,
    )
