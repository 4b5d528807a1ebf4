"""What a step does to a model in half precision, beside what the same step does in float32, token by token.

The weights may take a step and the model still not follow it: its activations are rounded as well. So the change of
``log p`` of every token is taken in the model's own precision and, from the same weights, in float32.
"""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from gradsteer.data.chat import IGNORE_INDEX, EncodedExample
from gradsteer.models.batches import BatchLayout, running, token_losses

Tick = Callable[[], None]
Weights = Callable[[], AbstractContextManager[Any]]

SLOPES, LOWEST_CORRELATION = (0.95, 1.05), 0.95
_TOKENS_AT_ONCE = 1024


@dataclass(frozen=True)
class StepPrecision:
    """What became of one step.

    With ``x`` the change of a token's log p in float32 and ``y`` that in the model's own precision:

    Attributes:
        slope: of y on x through 0, ``sum x y / sum x^2``; None where nothing changes or a score is not finite.
        slope_error: its standard error, with responses as clusters; None for a single response.
        correlation: of y and x; None as the slope.
        change: root mean square of x, nats.
        num_responses: that were scored.
        num_tokens: of theirs that were scored.
    """

    slope: float | None
    slope_error: float | None
    correlation: float | None
    change: float | None
    num_responses: int
    num_tokens: int

    @property
    def survives(self) -> bool:
        """Whether the slope is within 0.95 to 1.05 and the correlation is 0.95 or more."""
        if self.slope is None or self.correlation is None:
            return False
        return SLOPES[0] <= self.slope <= SLOPES[1] and self.correlation >= LOWEST_CORRELATION

    def to_dict(self) -> dict[str, float | int | None]:
        """As results.json holds it."""
        return asdict(self)

    def __str__(self) -> str:
        counts = f"{self.num_tokens} tokens of {self.num_responses} responses"
        if self.slope is None or self.correlation is None or self.change is None:
            return f"log p does not change, or is not finite, over {counts}"
        error = "" if self.slope_error is None else f" +- {self.slope_error:.2g}"
        return (
            f"log p a token changes by {self.slope:.3f}{error} times what it does in float32, correlation "
            f"{self.correlation:.3f} ({counts}, {self.change:.2g} nats root mean square)"
        )


def compare_changes(own: np.ndarray, exact: np.ndarray, owners: np.ndarray) -> StepPrecision:
    """The regression of one precision's changes on the other's.

    The standard error is that of a ratio over clusters (Cochran 1977, "Sampling techniques", 6.3).

    Args:
        own: (tokens,) changes of log p in the model's own precision, nats.
        exact: (tokens,) in float32.
        owners: (tokens,) number of each one's response.
    """
    counts = len(np.unique(owners)), len(own)
    if not (np.isfinite(own).all() and np.isfinite(exact).all()) or not exact.any():
        return StepPrecision(None, None, None, None, *counts)
    squares = float(np.square(exact).sum())
    slope = float((own * exact).sum()) / squares
    left = np.bincount(owners, weights=exact * (own - slope * exact))
    error = math.sqrt(counts[0] / (counts[0] - 1) * float(np.square(left).sum())) / squares if counts[0] > 1 else None
    varies = own.std() > 0 and exact.std() > 0
    correlation = float(np.corrcoef(own, exact)[0, 1]) if varies else 0.0
    return StepPrecision(slope, error, correlation, math.sqrt(squares / counts[1]), *counts)


@torch.no_grad()
def token_log_probs(
    model: Any,
    examples: Sequence[EncodedExample],
    *,
    temperature: float,
    pad_token_id: int = 0,
    tick: Tick | None = None,
) -> np.ndarray:
    """``log p(r_t | prompt, r_<t)`` of every labelled token, at the model's present weights.

    Args:
        model: a causal LM in eval mode.
        examples: what is scored.
        temperature: divides the logits.
        pad_token_id: fills padded batches, where the model does not take packs.
        tick: called after each batch.

    Returns:
        (tokens,) float64, nats; an example's tokens follow each other.
    """
    layout = BatchLayout.of(model, examples[:2], pad_token_id=pad_token_id)
    found: list[np.ndarray] = [np.empty(0)] * len(examples)
    for indices in layout.plan([len(example.input_ids) for example in examples], _TOKENS_AT_ONCE):
        batch = layout.make([examples[index] for index in indices])
        with running(batch, model):
            losses, owners = token_losses(model, batch, head_chunk=layout.head_chunk, temperature=temperature)
        values, whose = -losses.cpu().double().numpy(), owners.cpu().numpy()
        for place, index in enumerate(indices):
            found[index] = values[whose == place]
        if tick is not None:
            tick()
    return np.concatenate(found)


def float32_twin(model: Any) -> Any:
    """A copy of a model with the same weights in float32, 4 bytes each; the model stays as it is.

    Tied weights are tied in the copy, too.
    """
    return copy.deepcopy(model).float().requires_grad_(False)


def first_tokens(examples: Sequence[EncodedExample], most: int) -> list[EncodedExample]:
    """The examples up to their labelled token number `most`; those without any are left out."""
    cut = []
    for example in examples:
        labelled = [place for place, label in enumerate(example.labels) if label != IGNORE_INDEX]
        if labelled:
            end = labelled[:most][-1] + 1
            cut.append(EncodedExample(example.input_ids[:end], example.labels[:end]))
    return cut


def compare_steps(
    own: tuple[Any, Sequence[Weights]],
    exact: tuple[Any, Sequence[Weights]],
    examples: Sequence[EncodedExample],
    *,
    temperature: float,
    pad_token_id: int = 0,
    tick: Tick | None = None,
) -> list[StepPrecision]:
    """Compares steps of a model with the same steps of its twin in float32: a forward pass a step and model, and two.

    Args:
        own: the model at its own weights, and for each step what gives it the step's weights.
        exact: likewise for the twin.
        examples: what is scored; see `token_log_probs`.
        temperature: divides the logits.
        pad_token_id: fills padded batches.
        tick: called after each batch.
    """
    owners = np.repeat(np.arange(len(examples)), [example.num_target_tokens for example in examples])
    changes: list[list[np.ndarray]] = []
    for model, steps in (own, exact):
        scores = []
        for weights in (nullcontext, *steps):
            with weights():
                scores.append(
                    token_log_probs(model, examples, temperature=temperature, pad_token_id=pad_token_id, tick=tick)
                )
        changes.append([score - scores[0] for score in scores[1:]])
    return [compare_changes(mine, theirs, owners) for mine, theirs in zip(changes[0], changes[1], strict=True)]
