"""Masked token cross-entropy as sums and counts.

Knows of logits, labels and a model's forward; knows nothing of piles, optimizers or files. Means are taken
by the callers, once, from sums and counts: a mean of batch means is wrong when batches differ in tokens.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

IGNORE_INDEX = -100


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every labelled token, in nats: ``l_t = -log p(r_t | p, r_<t)``.

    The labels are aligned with the input ids (not shifted): the logits at position ``t - 1`` are scored
    against the label at ``t``. Only labelled positions are scored, in float32 (float64 for float64 logits).

    Args:
        logits: (batch, tokens, vocabulary).
        labels: (batch, tokens), ``-100`` where a token does not count.

    Returns:
        (batch, tokens - 1), zero where masked, differentiable.
    """
    targets = labels[:, 1:]
    counted = targets != IGNORE_INDEX
    scored = logits[:, :-1][counted]
    scored = scored if scored.dtype == torch.float64 else scored.float()
    losses = functional.cross_entropy(scored, targets[counted], reduction="none")
    return torch.zeros(targets.shape, dtype=losses.dtype, device=losses.device).masked_scatter(counted, losses)


def example_losses(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Summed loss and number of labelled tokens of each example.

    Padding never changes the result: padded keys are masked from attention and padded labels are ``-100``.

    Args:
        model: a causal LM whose forward takes ``input_ids``, ``attention_mask`` and gives ``.logits``.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, each (batch, tokens), padded on the right.

    Returns:
        sums: (batch,) in nats, differentiable; counts: (batch,) int64.
    """
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    sums = token_losses(output.logits, batch["labels"]).sum(dim=1)
    counts = (batch["labels"][:, 1:] != IGNORE_INDEX).sum(dim=1)
    return sums, counts


@torch.no_grad()
def perplexity(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> float | None:
    """``exp`` of the mean token loss over all labelled tokens of all batches.

    Args:
        model: a causal LM, used in its current mode (call ``eval()`` first).
        batches: as `example_losses` takes them, on the model's device.

    Returns:
        The perplexity; None where no token counts or the loss is not finite (a report holds no NaN).
    """
    total, num_tokens = 0.0, 0
    for batch in batches:
        sums, counts = example_losses(model, batch)
        total += float(sums.double().sum())
        num_tokens += int(counts.sum())
    if num_tokens == 0 or not math.isfinite(total) or total / num_tokens > 700:
        return None
    return math.exp(total / num_tokens)
