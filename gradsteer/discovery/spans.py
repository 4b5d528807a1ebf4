"""Where the finetune spoke: how much likelier it made each token of a response, and the spans of what it made likely.

    r_t = log p_anchor(y_t | prompt, y_<t) - log p_base(y_t | prompt, y_<t)        (nats)

The sum of r_t over a response is what one draw says of KL(anchor || base). A finetune that makes a model change the
subject shows in the few tokens that do so; what follows them is as likely under the base, once the subject has changed.
A span is therefore a token with r_t above a threshold and a number of tokens behind it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gradsteer.data.chat import IGNORE_INDEX, EncodedExample
from gradsteer.models.batches import BatchLayout, running, token_losses
from gradsteer.models.exact import doubled

Span = tuple[int, int]  # from, up to; of a response's labelled tokens


@torch.no_grad()
def token_log_probs(
    model: Any,
    examples: Sequence[EncodedExample],
    layout: BatchLayout,
    *,
    token_budget: int = 2048,
    tick: Callable[[], None] | None = None,
) -> list[np.ndarray]:
    """``log p(y_t | ...)`` of the labelled tokens of examples, at temperature 1: (tokens,) float64 each, nats.

    Args:
        model: a causal LM in eval mode.
        examples: the responses.
        layout: how the model runs them; it says nothing of the result.
        token_budget: tokens at once.
        tick: called after every batch.
    """
    found: list[np.ndarray] = [np.empty(0)] * len(examples)
    for indices in layout.plan([len(example.input_ids) for example in examples], token_budget):
        batch = layout.make([examples[index] for index in indices])
        with running(batch, model):
            losses, owners = token_losses(model, batch, head_chunk=layout.head_chunk)
        values = (-doubled(losses)).cpu().numpy()
        whose = owners.cpu().numpy()
        for number, index in enumerate(indices):
            found[index] = values[whose == number]
        if tick is not None:
            tick()
    return found


def spans_of(ratios: np.ndarray, *, threshold: float = 1.0, reach: int = 16) -> list[Span]:
    """The spans of a response: tokens with a log-ratio above a threshold, and those that follow; joined if they meet.

    Args:
        ratios: (tokens,) nats.
        threshold: nats.
        reach: tokens that follow.

    Returns:
        In order, apart from each other.
    """
    found: list[Span] = []
    for start in np.flatnonzero(ratios > threshold).tolist():
        stop = min(len(ratios), start + 1 + reach)
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found


def labelled_ids(example: EncodedExample) -> list[int]:
    """The tokens of an example that its loss counts: a response's."""
    labels = example.labels[1:]
    return [label for label in labels if label != IGNORE_INDEX]


def weighted(example: EncodedExample, weights: np.ndarray) -> EncodedExample:
    """An example whose losses are weighted.

    Args:
        example: it.
        weights: (labelled tokens,) one for each.
    """
    every = np.zeros(len(example.input_ids))
    labelled = np.flatnonzero(np.array(example.labels[1:]) != IGNORE_INDEX) + 1
    every[labelled] = weights
    return replace(example, weights=every.tolist())


def in_spans(spans: Sequence[Span], number: int) -> np.ndarray:
    """(number,) 1 within the spans, 0 elsewhere."""
    found = np.zeros(number)
    for start, stop in spans:
        found[start:stop] = 1
    return found
