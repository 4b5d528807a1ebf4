"""What a direction does, to first order, to the log-probabilities of judged responses.

By central differences of forward passes; no gradients. Knows of a model, encoded responses and their temperatures.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from gradsteer.data.batching import plan_batches
from gradsteer.data.chat import EncodedExample, collate
from gradsteer.data.piles import PileFilter, read_pile
from gradsteer.models.losses import token_losses
from gradsteer.records import read_jsonl, resolve_resource
from gradsteer.steering.weight_steering import steered
from gradsteer.vectors.parameter_vectors import ParameterVector

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STEP_NORM = 0.01  # of the differences' weights on either side
_BATCH_TOKENS = 2048  # with a vocabulary of 128 thousand 1 GB of logits


@dataclass(frozen=True)
class Scored:
    """Responses to score.

    Attributes:
        examples: prompt and response as token ids, the response labelled.
        temperatures: at which each was sampled; its logits are divided by it.
    """

    examples: list[EncodedExample]
    temperatures: list[float]


@dataclass(frozen=True)
class Judged:
    """Responses that show a behavior, and responses that do not."""

    behavior: str
    shown: Scored
    absent: Scored


def choose_behavior(path: str, behavior: str | None, vector: ParameterVector) -> str:
    """The behavior whose verdicts are meant; by default the one that the vector's PLUS pile is called after.

    Raises:
        ValueError: there is no such file, it has no verdicts on the behavior, or none is named; lists those it has.
    """
    known: dict[str, None] = {}
    for _, row in read_jsonl(resolve_resource(path)):
        known.update(dict.fromkeys(row.get("verdicts") or {}))
    listed = ", ".join(known) or "none"
    chosen = behavior or vector.metadata.get("plus", "")
    if chosen in known:
        return chosen
    if behavior:
        raise ValueError(f"--behavior is {behavior!r}; --responses {path} has verdicts on: {listed}")
    raise ValueError(f"--responses needs --behavior NAME (the vector does not say which); {path} has: {listed}")


def read_judged(path: str, behavior: str, tokenizer: "PreTrainedTokenizerBase") -> Judged:
    """Reads a responses/NAME.jsonl file.

    A row may have a ``temperature``; without one, and for a greedy row (0), it is 1: the model's own distribution.

    Raises:
        ValueError: a bad line, ids of another tokenizer, or no response on one of the two sides.
    """
    temperatures: dict[str, float] = {}
    for line, row in read_jsonl(resolve_resource(path)):
        found = row.get("temperature") or 1.0
        if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < float("inf"):
            raise ValueError(f"{path}:{line}: temperature is {found!r}; accepted: a positive number")
        temperatures[f"{resolve_resource(path)}:{line}"] = float(found)

    def side(shown: bool) -> Scored:
        pile = read_pile("with" if shown else "without", PileFilter(path, {behavior: shown}), tokenizer)
        return Scored(pile.examples, [temperatures[source] for source in pile.sources])

    return Judged(behavior, side(True), side(False))


@torch.no_grad()
def mean_loss(model: Any, scored: Scored, pad_token_id: int) -> float:
    """Mean over responses of ``-log p(response | prompt)``, in nats, the sum over a response's tokens."""
    device = next(model.parameters()).device
    lengths = [len(example.input_ids) for example in scored.examples]
    total = 0.0
    for indices in plan_batches(lengths, max(1, _BATCH_TOKENS // max(lengths))):
        batch = collate([scored.examples[index] for index in indices], pad_token_id)
        batch = {key: value.to(device) for key, value in batch.items()}
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        temperatures = torch.tensor([scored.temperatures[index] for index in indices], device=device)
        losses = token_losses(logits / temperatures.to(logits)[:, None, None], batch["labels"])
        total += float(losses.double().sum())
    return total / len(scored.examples)


def derivative(model: Any, direction: ParameterVector, judged: Judged, *, epsilon: float, pad_token_id: int) -> float:
    """``<S, direction>``: how fast a step along it makes the behavior's responses less likely than the others.

    S is the gradient of ``mean loss(with the behavior) - mean loss(without)``, and so ``d/da`` of that difference at
    ``theta + a * direction`` is taken by central differences: ``(f(epsilon) - f(-epsilon)) / (2 epsilon)``.

    Returns:
        Nats a unit of a; positive where positive alpha reduces the behavior.
    """
    sides = []
    for signed in (epsilon, -epsilon):
        with steered(model, direction, signed, allow_other_model=True):
            shown, absent = (mean_loss(model, part, pad_token_id) for part in (judged.shown, judged.absent))
        sides.append(shown - absent)
    return (sides[0] - sides[1]) / (2 * epsilon)


def effects(
    model: Any, vector: ParameterVector, parts: Iterable[ParameterVector], judged: Judged, *, pad_token_id: int
) -> tuple[float, list[float | None]]:
    """The share of a vector's first-order effect that parts of it have.

    Args:
        model: the anchor.
        vector: V.
        parts: what is left of V, such as its matrices at some rank; each may be as large as the model, so a generator
            is welcome.
        judged: responses with and without the behavior.
        pad_token_id: of the tokenizer.

    Returns:
        ``<S, V>``, and ``<S, part> / <S, V>`` of every part (None where ``<S, V>`` is 0). A share may be negative or
        larger than 1: what is left out may have worked against the rest.
    """
    epsilon = STEP_NORM / vector.norm()
    whole = derivative(model, vector, judged, epsilon=epsilon, pad_token_id=pad_token_id)
    shares: list[float | None] = []
    for part in parts:
        found = derivative(model, part, judged, epsilon=epsilon, pad_token_id=pad_token_id)
        shares.append(found / whole if whole else None)
    return whole, shares
