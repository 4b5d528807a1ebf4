"""Packs: several sequences laid end to end in one row, with their losses and no padding.

Logits are computed only where a label counts, and the head and its cross-entropy in chunks, so that a large vocabulary
never has all of its logits at once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gradsteer.data.chat import IGNORE_INDEX, EncodedExample, weights_of
from gradsteer.models.losses import Reference, position_losses
from gradsteer.models.segment_attention import NAME, segment_attention, segments


@dataclass(frozen=True)
class Pack:
    """Sequences end to end.

    Attributes:
        input_ids: (1, tokens).
        position_ids: (1, tokens), from 0 in every segment.
        targets: (labelled,) the tokens to predict.
        predictors: (labelled,) the positions whose logits predict them.
        owners: (labelled,) the segment of each.
        lengths: tokens of every segment.
        shared: tokens that each segment leaves out, as it shares them with the last whole segment before it; see
            `gradsteer.models.shared_prompts`. Empty where all are whole.
        weights: (labelled,) float32, what each loss is multiplied by where losses are weighted; None for 1.
    """

    input_ids: Tensor
    position_ids: Tensor
    targets: Tensor
    predictors: Tensor
    owners: Tensor
    lengths: tuple[int, ...]
    shared: tuple[int, ...] = ()
    weights: Tensor | None = None

    @classmethod
    def of(cls, examples: Sequence[EncodedExample], device: torch.device | str = "cpu") -> Self:
        """Packs examples in their order; a first token is never a target, so no segment predicts another's."""
        ids = torch.tensor([token for example in examples for token in example.input_ids])
        labels = torch.tensor([label for example in examples for label in example.labels])
        lengths = tuple(len(example.input_ids) for example in examples)
        positions = torch.cat([torch.arange(length) for length in lengths])
        owners = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        labelled = ((labels != IGNORE_INDEX) & (positions > 0)).nonzero()[:, 0]
        tensors = (ids[None], positions[None], labels[labelled], labelled - 1, owners[labelled])
        input_ids, position_ids, targets, predictors, owners = (tensor.to(device) for tensor in tensors)
        weights: Tensor | None = None
        if any(example.weights is not None for example in examples):
            every = torch.tensor([weight for example in examples for weight in weights_of(example)])
            weights = every[labelled].to(device)
        return cls(input_ids, position_ids, targets, predictors, owners, lengths, weights=weights)

    def part(self, start: int, stop: int) -> Self:
        """A pack of some of the segments, from start up to stop; the first is whole, whatever it shares here."""
        starts = [0, *accumulate(self.lengths)]
        first, last = starts[start], starts[stop]
        mine = (self.owners >= start) & (self.owners < stop)
        lengths, shared = list(self.lengths[start:stop]), list(self.shared[start:stop])
        prompt = slice(0, 0)
        if any(shared[:1]):
            whole = starts[max(place for place in range(start) if not self.shared[place])]
            prompt = slice(whole, whole + shared[0])
            lengths[0], shared[0] = lengths[0] + shared[0], 0
        size = prompt.stop - prompt.start
        predictors = self.predictors[mine]
        before = predictors < first  # in the prompt
        return type(self)(
            torch.cat([self.input_ids[:, prompt], self.input_ids[:, first:last]], dim=1),
            torch.cat([self.position_ids[:, prompt], self.position_ids[:, first:last]], dim=1),
            self.targets[mine],
            torch.where(before, predictors - prompt.start, predictors - first + size),
            self.owners[mine] - start,
            tuple(lengths),
            tuple(shared),
            None if self.weights is None else self.weights[mine],
        )

    @property
    def seen(self) -> Tensor:
        """(segments, tokens) bool, on the CPU: the tokens that each segment attends to, at most."""
        segment = torch.repeat_interleave(torch.arange(len(self.lengths)), torch.tensor(self.lengths))
        seen = segment == torch.arange(len(self.lengths))[:, None]
        starts = [0, *accumulate(self.lengths)]
        whole = 0
        for number, shared in enumerate(self.shared):
            whole = whole if shared else starts[number]
            seen[number, whole : whole + shared] = True
        return seen


def plan_packs(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Fills packs of at most a number of tokens: first-fit decreasing, deterministic.

    Args:
        lengths: tokens of each sequence.
        token_budget: the most tokens in a pack; a longer sequence has a pack of its own.

    Returns:
        The indices into `lengths`, each once; the fullest packs first.

    Raises:
        ValueError: the budget is not positive.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget is {token_budget}; accepted: at least 1")
    packs: list[list[int]] = []
    size = 1 << max(0, len(lengths) - 1).bit_length()
    room = [token_budget] * (2 * size)  # a tree: leaf `size + p` is pack p's, an inner node the most below it
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        # a sequence that is too long goes to the first pack that is still empty
        node, length = 1, min(lengths[index], token_budget)
        while node < size:
            node = 2 * node if room[2 * node] >= length else 2 * node + 1
        if node - size == len(packs):
            packs.append([])
        packs[node - size].append(index)
        room[node] -= lengths[index]
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return [packs[number] for number in sorted(range(len(packs)), key=lambda number: (room[size + number], number))]


@contextmanager
def attending(model: Any, pack: Pack) -> Iterator[None]:
    """Within the block, forward and backward, the model attends within the pack's segments.

    The backward pass belongs in it: gradient checkpointing runs the forward pass again there.
    """
    with segment_attention(model), segments(pack.lengths, pack.shared):
        yield


def pack_losses(
    model: Any,
    pack: Pack,
    *,
    head_chunk: int | None = None,
    reference: Reference | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Summed loss of every segment of a pack, inside `attending` (held by an assert).

    Args:
        model: a causal LM whose forward takes ``position_ids`` and ``logits_to_keep``.
        pack: on the model's device.
        head_chunk: with it, the head and its loss run on so many positions at a time, and again in the backward
            pass: less memory for a large vocabulary.
        reference: take the divergence from it instead of the cross-entropy; inside `attending` as well.
        temperature: divides the logits; see `gradsteer.models.losses.cross_entropy`.

    Returns:
        (segments,) nats, differentiable.
    """
    losses = pack_token_losses(model, pack, head_chunk=head_chunk, reference=reference, temperature=temperature)
    sums = torch.zeros(len(pack.lengths), dtype=losses.dtype, device=losses.device)
    return sums.index_add(0, pack.owners, losses)


def pack_token_losses(
    model: Any,
    pack: Pack,
    *,
    head_chunk: int | None = None,
    reference: Reference | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """The loss of every labelled token of a pack; see `pack_losses`.

    Returns:
        (labelled,) nats, differentiable; ``pack.owners`` says whose each is.
    """
    models = [model] if reference is None else [model, reference.model]
    for each in models:
        assert each.config._attn_implementation == NAME, "outside of `attending` the segments would see each other"
    if head_chunk is None or len(pack.targets) <= head_chunk:
        # the model first, as in chunks: where weights are split, processes meet in the order of their forward passes
        logits, compared = pack_logits(model, pack), None
        if reference is not None:
            with torch.no_grad():
                compared = pack_logits(reference.model, pack)
        return position_losses(logits, pack.targets, compared, reference, temperature)
    return _chunked(model, pack, head_chunk, reference, temperature)


def _chunked(model: Any, pack: Pack, head_chunk: int, reference: Reference | None, temperature: float) -> Tensor:
    """(labelled,): the head and the loss on so many positions at a time."""

    def forward(**inputs: Any) -> Tensor:
        hidden = _hidden(model, pack, **inputs)
        compared: Sequence[Tensor | None] = [None] * -(-len(hidden) // head_chunk)
        if reference is not None:
            # its root's weights, the head among them, stay whole after a forward pass without gradients
            with torch.no_grad(), _forward_as(reference.model, partial(_hidden, reference.model, pack)):
                compared = reference.model(**inputs).split(head_chunk)
        said = reference, temperature
        parts = zip(hidden.split(head_chunk), pack.targets.split(head_chunk), compared, strict=True)
        return torch.cat([checkpoint(_head_losses, model, *each, *said, use_reentrant=False) for each in parts])

    # where the weights are split over processes they are whole within the model's own forward only
    with _forward_as(model, forward):
        losses: Tensor = model(input_ids=pack.input_ids, position_ids=pack.position_ids)
    return losses


@contextmanager
def _forward_as(model: Any, function: Callable[..., Tensor]) -> Iterator[None]:
    """Within the block a call of the model, with its hooks, runs another function."""
    before = vars(model).get("forward")
    model.forward = function
    try:
        yield
    finally:
        del model.forward
        if before is not None:
            model.forward = before


def pack_logits(model: Any, pack: Pack) -> Tensor:
    """The logits that predict each labelled token of a pack, inside `attending`: (labelled, vocabulary)."""
    output = model(
        input_ids=pack.input_ids, position_ids=pack.position_ids, use_cache=False, logits_to_keep=pack.predictors
    )
    logits: Tensor = output.logits[0]
    return logits


def pack_hidden(model: Any, pack: Pack) -> Tensor:
    """The hidden states that predict each labelled token of a pack, inside `attending`: (labelled, hidden size)."""
    with _forward_as(model, partial(_hidden, model, pack)):
        states: Tensor = model(input_ids=pack.input_ids, position_ids=pack.position_ids)
    return states


def _hidden(model: Any, pack: Pack, **inputs: Any) -> Tensor:
    """(labelled, hidden size): what the head is applied to."""
    output = model.base_model(**inputs, use_cache=False)
    hidden: Tensor = output.last_hidden_state[0]
    return hidden[pack.predictors]


def _head_losses(
    model: Any,
    hidden: Tensor,
    targets: Tensor,
    reference_hidden: Tensor | None,
    reference: Reference | None,
    temperature: float,
) -> Tensor:
    compared = None
    if reference is not None and reference_hidden is not None:
        with torch.no_grad():
            compared = _head(reference.model, reference_hidden)
    return position_losses(_head(model, hidden), targets, compared, reference, temperature)


def _head(model: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = model.get_output_embeddings()(hidden)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)
