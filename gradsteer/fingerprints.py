"""A digest of a model's weights, so that a vector is only applied to the model that it was made on."""

import hashlib
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_State = tuple[tuple[int, int], ...]
_KNOWN: "WeakKeyDictionary[nn.Module, tuple[_State, str]]" = WeakKeyDictionary()


def weights_digest(weights: dict[str, Tensor]) -> str:
    """Hex digest of names, shapes and values; the values upcast to float32 (exact for bf16 and fp16)."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        upcast = tensor.to("cpu", torch.float64 if tensor.dtype == torch.float64 else torch.float32)
        digest.update(upcast.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def model_fingerprint(model: nn.Module) -> str:
    """`weights_digest` of the model's parameters, taken once as long as nobody writes to them.

    A write is noticed by the tensors' version counters; `restored` tells that weights written since are again,
    byte for byte, what they were.
    """
    state = _state(model)
    known = _KNOWN.get(model)
    if known is None or known[0] != state:
        _KNOWN[model] = (state, weights_digest(dict(model.named_parameters())))
    return _KNOWN[model][1]


def restored(model: nn.Module, fingerprint: str) -> None:
    """Notes that the weights are byte for byte those of `fingerprint` again (said by `gradsteer.steering`)."""
    _KNOWN[model] = (_state(model), fingerprint)


def _state(model: nn.Module) -> _State:
    # inference tensors keep no version counter; they are then digested once per storage
    return tuple((p.data_ptr(), -1 if p.is_inference() else p._version) for p in model.parameters())
