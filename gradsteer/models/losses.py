"""Masked token losses, cross-entropy or divergence from a reference model, as sums and counts.

Means are taken by the callers, once, from sums and counts: a mean of batch means is wrong when batches differ in
tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradsteer.data.chat import IGNORE_INDEX

KLDirection = Literal["forward", "reverse"]


@dataclass(frozen=True)
class Reference:
    """A model to whose next-token distributions another one's are compared.

    Attributes:
        model: a causal LM of the same vocabulary, in eval mode; takes no gradient.
        direction: "forward" is KL(reference || model), "reverse" is KL(model || reference).
    """

    model: Any
    direction: KLDirection = "forward"

    def __post_init__(self) -> None:
        if self.direction not in get_args(KLDirection):
            raise ValueError(f"direction is {self.direction!r}; accepted: {', '.join(get_args(KLDirection))}")


def cross_entropy(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """``l_t = -log p(r_t | p, r_<t)`` in nats, in float32 (float64 for float64 logits).

    Args:
        logits: (positions, vocabulary).
        targets: (positions,) token ids.
        temperature: divides the logits: p is then what is sampled from at that temperature.

    Returns:
        (positions,), differentiable.
    """
    scaled = precise(logits) if temperature == 1 else precise(logits) / temperature
    return functional.cross_entropy(scaled, targets, reduction="none")


def kl_divergence(logits: Tensor, reference_logits: Tensor, direction: KLDirection, temperature: float = 1.0) -> Tensor:
    """Divergence between two next-token distributions, in nats.

    * forward: ``l_t = sum_v p_ref(v) [log p_ref(v) - log p(v)]``;
    * reverse: ``l_t = sum_v p(v) [log p(v) - log p_ref(v)]``.

    Args:
        logits: (positions, vocabulary) of the model.
        reference_logits: (positions, vocabulary) of the reference.
        direction: see `Reference`.
        temperature: divides the logits of both.

    Returns:
        (positions,), differentiable.
    """
    ours, theirs = ((precise(part) / temperature).log_softmax(dim=-1) for part in (logits, reference_logits))
    base, other = (theirs, ours) if direction == "forward" else (ours, theirs)
    return functional.kl_div(other, base, reduction="none", log_target=True).sum(dim=-1)


def position_losses(
    logits: Tensor, targets: Tensor, compared: Tensor | None, reference: Reference | None, temperature: float = 1.0
) -> Tensor:
    """(positions,): the cross-entropy of the targets, or the divergence from a reference's logits where given."""
    if reference is None or compared is None:
        return cross_entropy(logits, targets, temperature)
    return kl_divergence(logits, compared, reference.direction, temperature)


def precise(logits: Tensor) -> Tensor:
    """Logits in float32, or in float64 where they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def example_losses(
    model: nn.Module, batch: Mapping[str, Any], *, reference: Reference | None = None
) -> tuple[Tensor, Tensor]:
    """Summed loss and number of labelled tokens of each example.

    Padding never changes the result: padded keys are masked from attention and padded labels are ``-100``.

    Args:
        model: a causal LM whose forward takes ``input_ids``, ``attention_mask`` and ``use_cache``, and gives
            ``.logits``.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, each (batch, tokens), padded on the right.
        reference: take the divergence from it instead of the cross-entropy.

    Returns:
        sums: (batch,) in nats, differentiable; counts: (batch,) int64.
    """
    logits, targets, owners = padded_logits(model, batch)
    compared = None
    if reference is not None:
        with torch.no_grad():
            compared = padded_logits(reference.model, batch)[0]
    losses = position_losses(logits, targets, compared, reference)
    num_examples = len(batch["labels"])
    sums = torch.zeros(num_examples, dtype=losses.dtype, device=losses.device).index_add(0, owners, losses)
    return sums, torch.bincount(owners, minlength=num_examples)


def padded_logits(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The logits that predict each labelled token of a padded batch.

    The head runs at these positions alone, so that logits of the others take neither time nor memory. Where a model
    does not call its output embeddings on one hidden state a token, the head runs everywhere.

    Args:
        model: see `example_losses`.
        batch: see `example_losses`. The labels are aligned with the input ids: the logits at position ``t - 1`` predict
            the label at ``t``.

    Returns:
        logits: (labelled, vocabulary), differentiable; targets: (labelled,) token ids; owners: (labelled,) the example
        of each.
    """
    labels = batch["labels"]
    counted = labels[:, 1:] != IGNORE_INDEX

    def keep_labelled(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        hidden, *others = inputs
        return (hidden[:, :-1][counted][None], *others) if hidden.shape[:2] == labels.shape else None

    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[operator]
    handle = None if head is None else head.register_forward_pre_hook(keep_labelled)
    try:
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
        logits: Tensor = model(**inputs).logits
    finally:
        if handle is not None:
            handle.remove()
    # with the hook there is one row, and it is shorter than a row of the batch was if that had one row
    kept = logits[:, :-1][counted] if logits.shape[:2] == labels.shape else logits[0]
    return kept, labels[:, 1:][counted], counted.nonzero()[:, 0]
