"""Whether a model takes packs: a check on a few short examples that packing changes nothing."""

import math
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gradsteer.data.chat import EncodedExample, collate
from gradsteer.models.losses import example_losses
from gradsteer.models.packing import Pack, attending, pack_losses
from gradsteer.models.parallel import is_split_model, settle

# relative; wrong attention or a wrong head is off by far more than rounding
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_HALF_TOLERANCE = 5e-2
_PROBE_TOKENS = 48
# of each model, by what else the answer depends on
_ANSWERS: WeakKeyDictionary[Any, dict[tuple[Any, ...], str | None]] = WeakKeyDictionary()


def why_not_packs(model: Any, examples: Sequence[EncodedExample], *, head_chunk: int | None = None) -> str | None:
    """Compares packs with plain padded batches on the last tokens of a few examples: losses and gradients.

    The gradients are taken for the vectors among the parameters (norms and biases): every layer has some, and they are
    small, so the check costs no copy of the model. Where the weights are split over processes the losses alone are
    compared, by all processes alike.

    A model's answer is remembered: it depends on how the model computes, not on its weights' values or the examples.
    Only a check that saw no finite loss above 0 says nothing, and is made again.

    Args:
        model: a causal LM in eval mode.
        examples: of the piles; up to three are used, and one twice where there is but one: leaks need two.
        head_chunk: check the chunked head of `pack_losses` too.

    Returns:
        None where packs give the same; otherwise the reason, for a message.
    """
    parameter = next(model.parameters())
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    key = (attention, head_chunk, parameter.dtype, parameter.device, model.training)
    answers = _ANSWERS.setdefault(model, {})
    if key not in answers:
        plain_norm, reason = _compare(model, examples, head_chunk)
        if not (reason is not None or 0 < plain_norm < math.inf):
            return None  # the run itself will say which example is bad
        answers[key] = reason
    return answers[key]


def _compare(model: Any, examples: Sequence[EncodedExample], head_chunk: int | None) -> tuple[float, str | None]:
    """The norm of what padded batches gave, and why packs do not give the same."""
    short = [_shortened(example) for example in (examples if len(examples) > 1 else [*examples, *examples])[:3]]
    device = next(model.parameters()).device
    split = is_split_model(model)
    vectors = [] if split else [p for p in model.parameters() if p.ndim == 1] or list(model.parameters())
    required = [parameter.requires_grad for parameter in vectors]
    try:
        for parameter in vectors:
            parameter.requires_grad_(True)
        with torch.set_grad_enabled(not split):
            batch = {key: value.to(device) for key, value in collate(short, 0).items()}
            plain = _observe(example_losses(model, batch)[0], vectors)
            pack = Pack.of(short, device)
            with attending(model, pack):
                packed = _observe(pack_losses(model, pack, head_chunk=head_chunk), vectors)
    except (NotImplementedError, TypeError, ValueError, AttributeError) as error:
        return math.nan, f"{type(error).__name__}: {error}"
    finally:
        for parameter, flag in zip(vectors, required, strict=True):
            parameter.requires_grad_(flag)
        settle(model)
    norm = float(plain.norm())
    if not math.isfinite(norm):
        return norm, None
    difference = float((packed - plain).norm()) / max(norm, 1e-30)
    tolerance = _TOLERANCE.get(next(model.parameters()).dtype, _HALF_TOLERANCE)
    return norm, None if difference <= tolerance else f"packs differ from padded batches by {difference:.1e}"


@torch.no_grad()
def is_random(model: Any, examples: Sequence[EncodedExample]) -> bool:
    """Whether a model's losses on the last tokens of a few examples change from one run to the next (dropout)."""
    device = next(model.parameters()).device
    batch = {key: value.to(device) for key, value in collate([_shortened(e) for e in examples[:3]], 0).items()}
    first, *others = (example_losses(model, batch)[0] for _ in range(4))
    tolerance = _TOLERANCE.get(next(model.parameters()).dtype, _HALF_TOLERANCE)
    return any(not torch.allclose(other, first, rtol=tolerance, atol=tolerance) for other in others)


def _shortened(example: EncodedExample) -> EncodedExample:
    """The end of an example, where its labels are; as short as a probe needs."""
    labels = [-100, *example.labels[-_PROBE_TOKENS:][1:]]
    return EncodedExample(example.input_ids[-_PROBE_TOKENS:], labels)


def _observe(sums: Tensor, parameters: list[torch.nn.Parameter]) -> Tensor:
    """The losses and the gradients of their sum, as one float64 vector."""
    gradients = torch.autograd.grad(sums.sum(), parameters, allow_unused=True) if parameters else []
    parts = [sums.detach(), *(gradient.flatten() for gradient in gradients if gradient is not None)]
    return torch.cat([part.double().cpu() for part in parts])
