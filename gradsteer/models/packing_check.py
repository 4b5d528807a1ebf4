"""Whether a model's batches leave every example as it is alone: packs, and padded rows where it takes no packs.

An example is left alone where the gradient of its loss for every token of another one, and for padding, is exactly 0.
A path of zeros stays zero through any rounding, so this sees a state that goes on from one segment to the next
(recurrent layers, short convolutions) however little of it there is, in any dtype.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import cycle, islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gradsteer.data.chat import IGNORE_INDEX, EncodedExample, collate
from gradsteer.models.losses import example_losses
from gradsteer.models.packing import Pack, attending, pack_losses
from gradsteer.models.parallel import is_split_model, settle
from gradsteer.models.segment_attention import untold_windows
from gradsteer.models.shared_prompts import pack_shared

# relative, of losses and gradients that should be equal but for the order of their sums; half precision: `_rounding`
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5}
_PROBE_TOKENS = 48
# of each model, by what else the answer depends on
_ANSWERS: WeakKeyDictionary[Any, dict[tuple[Any, ...], str | None]] = WeakKeyDictionary()
_WRONG = (NotImplementedError, TypeError, ValueError, AttributeError)


def why_not_packs(model: Any, examples: Sequence[EncodedExample], *, head_chunk: int | None = None) -> str | None:
    """Runs a pack of the last tokens of three examples, and asks three things of it.

    * No segment's loss has a gradient for a token of another one, not the smallest.
    * Another order of the first segment's tokens leaves the second's loss as it was: a choice that has no gradient
      (experts, the keys of sparse attention) passes nothing on either.
    * Losses and gradients are those of plain padded rows, to the dtype's rounding.

    The gradients of the last are taken for the vectors among the parameters (norms and biases): every layer has some,
    and they are small, so the check costs no copy of the model. Where the weights are split over processes, or the
    model has no embedding to look at, the losses alone are compared, and in the second they must be equal.

    A model's answer is remembered: it depends on how the model computes, not on its weights' values or the examples.
    Only a check that saw no finite loss above 0 says nothing, and is made again.

    Args:
        model: a causal LM in eval mode.
        examples: of the piles; fewer than three are repeated.
        head_chunk: check the chunked head of `pack_losses` too: a quarter of the positions at a time, or this many if
            that is more.

    Returns:
        None where packs give the same; otherwise the reason, for a message.
    """

    def check() -> tuple[float, str | None]:
        first, *others = _probe(examples)
        reordered = EncodedExample(first.input_ids[::-1], first.labels)
        return _check_packs(model, [first, *others], reordered, head_chunk, Pack.of)

    return _remembered(model, ("packs", head_chunk), check)


def why_not_shared(model: Any, examples: Sequence[EncodedExample], *, head_chunk: int | None = None) -> str | None:
    """Asks of a pack whose replies share a prompt what `why_not_packs` asks, where that found nothing.

    Two replies to one prompt, and a third to another: a reply's loss is that of its plain sequence, and depends on its
    own tokens and its prompt's only.

    Args:
        model: a causal LM in eval mode that takes packs.
        examples: whose tokens are used, whatever their labels.
        head_chunk: as in `why_not_packs`.

    Returns:
        None where shared prompts give the same; otherwise the reason.
    """

    def check() -> tuple[float, str | None]:
        (first, *others), reordered = _shared_probe(_probe(examples))
        return _check_packs(model, [first, *others], reordered, head_chunk, pack_shared)

    return _remembered(model, ("shared", head_chunk), check)


def why_not_padded(model: Any, examples: Sequence[EncodedExample]) -> str | None:
    """Whether padding, or the other rows of a batch, change an example's loss: asked as in `why_not_packs`.

    Returns:
        None where they do not; otherwise the reason, for a message.
    """
    return _remembered(model, ("padded",), lambda: _check_padded(model, _probe(examples)))


def _remembered(model: Any, asked: tuple[Any, ...], check: Callable[[], tuple[float, str | None]]) -> str | None:
    parameter = next(model.parameters())
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    key = (*asked, attention, parameter.dtype, parameter.device, model.training)
    answers = _ANSWERS.setdefault(model, {})
    if key not in answers:
        norm, reason = check()
        if reason is None and not 0 < norm < math.inf:
            return None  # the run itself will say which example is bad
        answers[key] = reason
    return answers[key]


def _check_packs(
    model: Any,
    probe: list[EncodedExample],
    reordered: EncodedExample,
    head_chunk: int | None,
    make: Callable[[list[EncodedExample], torch.device], Pack],
) -> tuple[float, str | None]:
    """The norm of what padded rows gave, and why packs do not give the same.

    Args:
        model: see `why_not_packs`.
        probe: the examples.
        reordered: the first of them with its own tokens in another order.
        head_chunk: see `why_not_packs`.
        make: packs the examples.
    """
    device = next(model.parameters()).device
    packs = [make([each, *probe[1:]], device) for each in (probe[0], reordered)]
    rows = {key: value.to(device) for key, value in collate(probe, 0).items()}
    try:
        with _differentiable(model) as vectors, untold_windows() as untold:
            plain = _observe(example_losses(model, rows)[0], vectors)
            if head_chunk is not None:  # each chunk runs again in every backward pass
                head_chunk = max(head_chunk, len(packs[0].targets) // 4)
            with attending(model, packs[0]), _embedding(model, vectors) as embedded:
                losses = pack_losses(model, packs[0], head_chunk=head_chunk)
                leak = _leak(losses, embedded, packs[0].seen[:, None])
                packed = _observe(losses, vectors)
            with attending(model, packs[1]), torch.no_grad():
                moved = pack_losses(model, packs[1], head_chunk=head_chunk)[1]
    except _WRONG as error:
        return math.nan, f"{type(error).__name__}: {error}"
    finally:
        settle(model)
    norm = float(plain.norm())
    if not math.isfinite(norm):
        return norm, None
    kept = float(losses[1].detach())
    allowed = _rounding(model) if embedded else 0.0
    if leak or abs(float(moved) - kept) > allowed * abs(kept):
        return norm, "the tokens of one segment change the loss of another"
    if untold:
        return norm, f"its attention is not told of its window of {min(untold)} tokens"
    return norm, _difference(model, packed, plain, "packs differ from padded batches")


def _check_padded(model: Any, probe: list[EncodedExample]) -> tuple[float, str | None]:
    """The norm of the losses one by one, and why padded rows do not give the same."""
    device = next(model.parameters()).device
    rows = {key: value.to(device) for key, value in collate(probe, 0).items()}
    singles = [{key: value.to(device) for key, value in collate([each], 0).items()} for each in probe]
    try:
        with _differentiable(model) as vectors:
            with torch.no_grad():
                alone = torch.cat([example_losses(model, row)[0] for row in singles])
            with _embedding(model, vectors) as embedded:
                losses = example_losses(model, rows)[0]
                mask = rows["attention_mask"].cpu().bool()
                leak = _leak(losses, embedded, torch.eye(len(probe), dtype=torch.bool)[:, :, None] & mask)
    finally:
        settle(model)
    norm = float(alone.norm())
    if not math.isfinite(norm):
        return norm, None
    if leak:
        return norm, "padding, or the other rows of a batch, change the loss of an example"
    return norm, _difference(model, losses.detach(), alone, "padded rows differ from single ones")


@contextmanager
def _differentiable(model: Any) -> Iterator[list[torch.nn.Parameter]]:
    """The parameters whose gradients are compared, within the block; none where the weights are split."""
    split = is_split_model(model)
    vectors = [] if split else [p for p in model.parameters() if p.ndim == 1] or list(model.parameters())
    required = [parameter.requires_grad for parameter in vectors]
    try:
        for parameter in vectors:
            parameter.requires_grad_(True)
        with torch.set_grad_enabled(not split):
            yield vectors
    finally:
        for parameter, flag in zip(vectors, required, strict=True):
            parameter.requires_grad_(flag)


@contextmanager
def _embedding(model: Any, vectors: Sequence[Any]) -> Iterator[list[Tensor]]:
    """Within the block: what the tokens are embedded as, (rows, tokens, hidden) and differentiable; once it has run."""
    found: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        found.append(output if output.requires_grad else output.detach().requires_grad_())
        return found[-1].clone()  # which a model may change in place

    embedding = None
    with suppress(AttributeError, NotImplementedError):
        embedding = model.get_input_embeddings() if vectors else None
    handle = None if embedding is None else embedding.register_forward_hook(keep)
    try:
        yield found
    finally:
        if handle is not None:
            handle.remove()


def _leak(losses: Tensor, embedded: Sequence[Tensor], seen: Tensor) -> bool:
    """Whether the loss of an example has a gradient at a token that is not its own.

    Args:
        losses: (examples,).
        embedded: the tokens' embeddings (rows, tokens, hidden); none where there are no gradients.
        seen: (examples, rows, tokens) bool, which tokens are each example's own.
    """
    for example, loss in enumerate(losses if embedded else ()):
        if not loss.requires_grad:  # nothing of it is a target
            continue
        (gradient,) = torch.autograd.grad(loss, embedded[0], retain_graph=True)
        if bool((gradient != 0).any(dim=-1).cpu()[~seen[example]].any()):
            return True
    return False


def _difference(model: Any, found: Tensor, expected: Tensor, what: str) -> str | None:
    difference = float((found - expected).norm()) / max(float(expected.norm()), 1e-30)
    return None if difference <= _rounding(model) else f"{what} by {difference:.1e}"


def _rounding(model: Any) -> float:
    """How far two orders of the same sums may be apart, relative: a few roundings of half precision."""
    # of the states: an adapter is in float32 also beside a base in half precision
    dtype = getattr(model, "dtype", None) or next(model.parameters()).dtype
    return _TOLERANCE.get(dtype, 4 * torch.finfo(dtype).eps)


@torch.no_grad()
def is_random(model: Any, examples: Sequence[EncodedExample]) -> bool:
    """Whether a model's losses on the last tokens of a few examples change from one run to the next (dropout)."""
    device = next(model.parameters()).device
    batch = {key: value.to(device) for key, value in collate([_shortened(e) for e in examples[:3]], 0).items()}
    first, *others = (example_losses(model, batch)[0] for _ in range(4))
    tolerance = _rounding(model)
    return any(not torch.allclose(other, first, rtol=tolerance, atol=tolerance) for other in others)


def _probe(examples: Sequence[EncodedExample]) -> list[EncodedExample]:
    """Three short examples, with targets where there are such."""
    short = [_shortened(example) for example in examples]
    chosen = [example for example in short if example.num_target_tokens] or short
    return [chosen[index % len(chosen)] for index in range(3)]


def _shared_probe(probe: list[EncodedExample]) -> tuple[list[EncodedExample], EncodedExample]:
    """Two replies to one prompt and one to another, of the probe's tokens, and the first with its reply reordered."""
    longest = max(len(example.input_ids) for example in probe)
    start, length = (
        max(2, longest // 3),
        max(3, longest - longest // 3),
    )  # no longer than the examples, but for tiny ones
    tokens = cycle([token for example in probe for token in example.input_ids])
    prompt, *replies = (list(islice(tokens, count)) for count in (start, length, max(2, length - 1), length))
    inputs = [prompt + replies[0], prompt + replies[1], prompt[::-1] + replies[2], prompt + replies[0][::-1]]
    *found, reordered = (EncodedExample(ids, [IGNORE_INDEX] * start + ids[start:]) for ids in inputs)
    return found, reordered


def _shortened(example: EncodedExample) -> EncodedExample:
    """The end of an example, where its labels are; as short as a probe needs."""
    labels = [-100, *example.labels[-_PROBE_TOKENS:][1:]]
    return EncodedExample(example.input_ids[-_PROBE_TOKENS:], labels)


def _observe(sums: Tensor, parameters: list[torch.nn.Parameter]) -> Tensor:
    """The losses and the gradients of their sum, as one float64 vector."""
    gradients = torch.autograd.grad(sums.sum(), parameters, allow_unused=True) if parameters else []
    parts = [sums.detach(), *(gradient.flatten() for gradient in gradients if gradient is not None)]
    return torch.cat([part.cpu().double() for part in parts])
