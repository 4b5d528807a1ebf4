"""A stand-in for a device without float64, such as a Mac's: tensors that live on the CPU and say that they do not.

What is moved to the device, or made on it, is an `OnDevice`; so is all that comes of it, until it is moved to the CPU.
A float64 there is refused, in MPS's words.
"""

import contextlib

import torch
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("mps", 0)
REFUSED = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64"
_DOUBLE = (torch.float64, torch.complex128)
_TO_CPU = {"cpu", "numpy", "tolist", "item", "__float__", "__int__", "__bool__", "__index__", "__repr__", "__format__"}


class OnDevice(torch.Tensor):
    """A tensor on the stand-in device."""

    @classmethod
    def __torch_function__(cls, function, kinds, args=(), kwargs=None):
        return _call(function, args, kwargs or {})


def plain(tensor):
    """The CPU tensor behind one of the device."""
    if not isinstance(tensor, OnDevice):
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(torch.Tensor)


def on_device(tensor):
    if not isinstance(tensor, torch.Tensor) or isinstance(tensor, OnDevice):
        return tensor
    if tensor.dtype in _DOUBLE:
        raise TypeError(REFUSED)
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(OnDevice)


def _is_here(value):
    with contextlib.suppress(RuntimeError, TypeError):
        return value is not None and torch.device(value).type == DEVICE.type
    return False


def _call(function, args, kwargs):
    name = getattr(function, "__name__", "")
    flat, _ = tree_flatten((args, kwargs))
    here = [value for value in flat if isinstance(value, OnDevice)]
    owner = resolve_name(function) or ""
    if owner.endswith("Tensor.device.__get__"):
        return DEVICE if here else _run(function, args, kwargs)
    if owner.endswith(("Tensor.is_cpu.__get__", "Tensor.is_mps.__get__")):
        return ("is_mps" in owner) == bool(here)
    if function is torch.device or name == "_parse_to":
        return _run(function, args, kwargs)
    asked = [value for value in flat if isinstance(value, torch.device | str) and not isinstance(value, bool)]
    devices = [value for value in asked if isinstance(value, torch.device)]
    devices += [kwargs["device"]] if isinstance(kwargs.get("device"), str) else []
    devices += [args[1]] if name == "to" and len(args) > 1 and isinstance(args[1], str) else []
    if name == "to" and len(args) > 1 and isinstance(args[1], torch.Tensor):
        devices += [DEVICE if isinstance(args[1], OnDevice) else torch.device("cpu")]
    to_here, to_cpu = any(map(_is_here, devices)), any(not _is_here(each) for each in devices)
    args, kwargs = tree_map(lambda each: torch.device("cpu") if _is_device(each) else each, (args, kwargs))
    if name in _TO_CPU or (name == "to" and to_cpu) or (name == "type" and not here):
        return _run(function, *tree_map(plain, (args, kwargs)))
    result = _run(function, args, kwargs)
    if not here and not to_here:
        return result
    return tree_map(on_device, result)


def _is_device(value):
    return isinstance(value, torch.device | str) and value != "" and _is_here(value)


def _run(function, args, kwargs):
    with torch._C.DisableTorchFunctionSubclass():
        return function(*args, **kwargs)


class _Mode(TorchFunctionMode):
    def __torch_function__(self, function, kinds, args=(), kwargs=None):
        return _call(function, args, kwargs or {})


@contextlib.contextmanager
def stand_in_device(monkeypatch):
    """Inside, ``--trainer.accelerator mps`` is the stand-in device."""
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    monkeypatch.setattr(MPSAccelerator, "parse_devices", staticmethod(lambda devices: [0]))
    monkeypatch.setattr(MPSAccelerator, "auto_device_count", staticmethod(lambda: 1))
    monkeypatch.setattr(MPSAccelerator, "get_parallel_devices", staticmethod(lambda devices: [DEVICE]))
    # weights are read in threads that no mode reaches; they are moved to the device afterwards
    monkeypatch.setattr(
        SingleDeviceStrategy, "tensor_init_context", lambda self, empty_init=None: contextlib.nullcontext()
    )
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: None)
    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with _Mode():
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swap)
