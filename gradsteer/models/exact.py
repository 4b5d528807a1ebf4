"""Where sums in float64 are made: on a tensor's own device, or on the CPU where that has no float64."""

import torch
from torch import Tensor

_WITHOUT = ("mps",)  # Apple's


def exact_device(device: torch.device) -> torch.device:
    """The device on which to make float64 tensors for another one's: itself, or the CPU."""
    return torch.device("cpu") if device.type in _WITHOUT else device


def for_float64(tensor: Tensor) -> Tensor:
    """A tensor where it can be turned into float64: itself, or a copy on the CPU."""
    return tensor.cpu() if tensor.device.type in _WITHOUT else tensor


def doubled(tensor: Tensor) -> Tensor:
    """A tensor in float64, on its own device or, where that has none, on the CPU."""
    return for_float64(tensor).double()
