"""A model whose parameters are an adapter's own tensors: gradients, vectors and steps live there, the base is frozen.

A LoRA matrix adds ``scaling * B A`` to a weight. A step (dA, dB) makes it ``scaling * (B + alpha dB)(A + alpha dA)``,
so that the weight moves by ``scaling * (alpha (dB A + B dA) + alpha^2 dB dA)``: the first term is linear in alpha.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradsteer.models.adapter_weights import NAME, is_adapters
from gradsteer.models.fingerprints import stands_on

_WHOLE = f".modules_to_save.{NAME}."  # in the name of a whole module of the adapter's own


class _AdapterSpace:
    """Mixed into a transformers model's class: its parameters are the adapter's, whoever asks for them."""

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """The adapter's tensors by name."""
        everything = super().named_parameters(prefix, recurse, remove_duplicate)  # type: ignore[misc]
        return ((name, parameter) for name, parameter in everything if is_adapters(name))

    @property
    def dtype(self) -> torch.dtype:
        """Of the states that run through the model, as the base has them."""
        own = (w.dtype for n, w in all_weights(self).items() if w.is_floating_point() and not is_adapters(n))
        return next(own)


def in_adapter_space(wrapped: Any, base_fingerprint: str, tensors: Mapping[str, Tensor] | None = None) -> Any:
    """Makes an adapter's tensors the only parameters of the model that it is attached to; the base is frozen.

    Args:
        wrapped: see `gradsteer.models.adapter_weights.attach`.
        base_fingerprint: of the base; the model's covers it, the adapter's tensors and their scalings.
        tensors: of the adapter's file, where it has one: whole modules take their base's dtype, which may round them.
    """
    model = wrapped.get_base_model().requires_grad_(False)
    model.__class__ = type(type(model).__name__, (_AdapterSpace, type(model)), {"__module__": type(model).__module__})
    whole = [name for name, _ in model.named_parameters() if _WHOLE in name and tensors is not None]
    exact = {name: (tensors or {})[f"base_model.model.{name.replace(_WHOLE, '.')}"] for name in whole}
    scalings = sorted((pair.weight, pair.scaling) for pair in pairs(model))
    stands_on(model, f"{base_fingerprint} {scalings}", exact)
    return model


def is_in_adapter_space(model: nn.Module) -> bool:
    """Whether a model's parameters are an adapter's alone."""
    return isinstance(model, _AdapterSpace)


def all_weights(model: Any) -> dict[str, Tensor]:
    """Every weight of a model by name, tied ones once, frozen ones too."""
    return {name: parameter.detach() for name, parameter in nn.Module.named_parameters(model)}


def dequantized_bytes(model: nn.Module) -> int:
    """Bytes of the largest weight of a quantised base in full, which each of its layers makes for a moment."""
    states = [getattr(p, "quant_state", None) for _, p in nn.Module.named_parameters(model)]
    return max((state.shape.numel() * state.dtype.itemsize for state in states if state is not None), default=0)


class Pair(NamedTuple):
    """The two matrices of one LoRA step.

    Attributes:
        weight: the name of the weight that it adds to.
        a: the name of the parameter A.
        b: of B.
        scaling: of the product.
        num_experts: weights that are stacked in one tensor, each with matrices of its own.
    """

    weight: str
    a: str
    b: str
    scaling: float
    num_experts: int

    def left(self, b: Tensor) -> Tensor:
        """(experts, out, rank) of a tensor of B's shape, float64."""
        exact = b.double()
        return exact.reshape(len(b), -1, self.num_experts).permute(2, 0, 1)

    def right(self, a: Tensor) -> Tensor:
        """(experts, rank, in) of a tensor of A's shape, float64."""
        return a.double().reshape(self.num_experts, -1, a.shape[-1])


def pairs(model: nn.Module) -> list[Pair]:
    """The LoRA steps of a model in adapter space."""
    from peft.tuners.lora import LoraLayer

    found = []
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer) or NAME not in module.scaling:
            continue
        weight = f"{name}.{getattr(module, 'parameter_name', 'weight')}"
        embeds = NAME in module.lora_embedding_A
        a, b = (f"lora_embedding_{x}.{NAME}" if embeds else f"lora_{x}.{NAME}.weight" for x in "AB")
        experts = int(getattr(module, "num_experts", 1))
        found.append(Pair(weight, f"{name}.{a}", f"{name}.{b}", float(module.scaling[NAME]), experts))
    return found


def base_in_adapter_space(model: nn.Module) -> dict[str, Tensor]:
    """The base as a point of an adapter's space: B is 0, A stays, and whole modules are the base's own.

    The straight line from there to the adapter scales the merged difference.
    """
    products = {pair.b for pair in pairs(model)}

    def at_base(name: str, own: Tensor) -> Tensor:
        if name in products:
            return torch.zeros_like(own)
        return model.get_parameter(name.replace(_WHOLE, ".original_module.")).detach().to(own.dtype)

    return {name: at_base(name, parameter.detach()) for name, parameter in model.named_parameters()}
