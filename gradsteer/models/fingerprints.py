"""A digest of a model's weights, so that a vector is only applied to the model that it was made on."""

import hashlib
from collections.abc import Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gradsteer.models.parallel import settle, shard, whole

_State = tuple[tuple[int, int], ...]
_ROUNDED: "WeakKeyDictionary[nn.Module, tuple[str, str]]" = WeakKeyDictionary()
_BASES: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()
_KNOWN: "WeakKeyDictionary[nn.Module, tuple[_State, str]]" = WeakKeyDictionary()


def weights_digest(weights: dict[str, Tensor]) -> str:
    """Hex digest of names, shapes and values, whatever precision holds them.

    Weights that are split over processes give the digest of the whole ones (collective).
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = _exact_float32(whole(weights[name].detach()))
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _exact_float32(tensor: Tensor) -> Tensor:
    """On the CPU in float32, or in float64 where float32 does not hold the values."""
    if tensor.dtype != torch.float64:
        return tensor.to("cpu", torch.float32)
    tensor = tensor.cpu()
    single = tensor.float()
    return single if torch.equal(single.double(), tensor) else tensor


def rounded_from(model: nn.Module, original: str) -> None:
    """Notes that a model's present weights are rounded from those of another fingerprint, which it then goes by.

    So a vector made in half precision belongs to the same model as one made in float32.
    """
    _ROUNDED[model] = (_digest(model), original)


def stands_on(model: nn.Module, base: str, exact: Mapping[str, Tensor]) -> None:
    """Notes that a model's parameters are steps from weights of another fingerprint, which its own then covers.

    Args:
        model: at its own weights.
        base: the other fingerprint.
        exact: what some parameters were rounded from, if they were.
    """
    _BASES[model] = base
    if exact:
        rounded_from(model, _digest(model, exact))


def _digest(model: nn.Module, exact: Mapping[str, Tensor] | None = None) -> str:
    own = weights_digest({**dict(model.named_parameters()), **(exact or {})})
    base = _BASES.get(model)
    return own if base is None else hashlib.sha256(f"{base} {own}".encode()).hexdigest()[:32]


def model_fingerprint(model: nn.Module) -> str:
    """`weights_digest` of the model's parameters, taken once as long as nobody writes to them.

    A write is noticed by the tensors' version counters; `restored` tells that weights written since are again,
    byte for byte, what they were.
    """
    settle(model)
    state = _state(model)
    known = _KNOWN.get(model)
    if known is None or known[0] != state:
        digest = _digest(model)
        rounded, original = _ROUNDED.get(model, ("", ""))
        _KNOWN[model] = (state, original if digest == rounded else digest)
    return _KNOWN[model][1]


def changed(model: nn.Module) -> None:
    """Notes that the weights are others now, where a library has written to them past their version counters."""
    _KNOWN.pop(model, None)
    _ROUNDED.pop(model, None)


def restored(model: nn.Module, fingerprint: str, versions: Mapping[str, tuple[int, int]], names: set[str]) -> None:
    """Notes that the weights are byte for byte those of `fingerprint` again, as leaving a steered model says.

    Args:
        model: whose weights were put back.
        fingerprint: what they were before.
        versions: as `weight_versions` gave them before.
        names: the parameters that were put back; if any other was written to meanwhile, nothing is noted.
    """
    now = weight_versions(model)
    if all(now[name] == versions[name] for name in versions if name not in names):
        _KNOWN[model] = (_state(model), fingerprint)


def weight_versions(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Where each parameter lies and how often it was written to."""
    # inference tensors keep no version counter; they are then digested once per storage
    held = {name: shard(parameter.detach()) for name, parameter in model.named_parameters()}
    return {n: (p.data_ptr(), -1 if p.is_inference() else p._version) for n, p in held.items()}


def _state(model: nn.Module) -> _State:
    return tuple(weight_versions(model).values())
