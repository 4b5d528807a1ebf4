"""Which parameters of a model a LoRA adapter can hold an edit of, and why not the others.

`peft` adds ``scaling * B A x`` to what a module gives: so a matrix can be held where its module is a plain linear map
or a plain look-up, and where no other module shares it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn


@dataclass(frozen=True)
class Held:
    """A matrix that an adapter can hold.

    Attributes:
        parameter: its name among the model's parameters.
        module: the name of the module that it belongs to.
        kind: how the module uses it: ``x W^T`` (linear), ``x W`` (conv1d, GPT-2's) or rows of it (embedding).
    """

    parameter: str
    module: str
    kind: Literal["linear", "conv1d", "embedding"]

    @property
    def turned(self) -> bool:
        """Whether ``B A`` is the edit's transpose: of what maps from its rows to its columns."""
        return self.kind != "linear"


@dataclass(frozen=True)
class Holding:
    """What of a model an adapter can hold.

    Attributes:
        held: parameter -> how.
        reasons: of every other parameter, why not.
    """

    held: dict[str, Held]
    reasons: dict[str, str]


def holdable(model: nn.Module) -> Holding:
    """Sorts a model's parameters into those that an adapter can hold an edit of and the others."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((name, module))
    held, reasons = {}, {}
    for name, parameter in model.named_parameters():
        modules = owners[id(parameter)]
        module_name, module = modules[0]
        if parameter.ndim < 2:
            reasons[name] = "biases" if name.endswith("bias") else "norms and other vectors"
        elif len(modules) > 1:
            reasons[name] = "tied matrices"  # an adapter would change one of the uses, or each in its own way
        elif (kind := _kind(module)) is None or getattr(module, "weight", None) is not parameter:
            reasons[name] = "matrices of other modules"
        else:
            held[name] = Held(name, module_name, kind)
    return Holding(held, reasons)


def _kind(module: nn.Module) -> Literal["linear", "conv1d", "embedding"] | None:
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, Conv1D):
        return "conv1d"
    # an embedding with a forward of its own may shift the ids (OPT's positions); of a scaled one peft knows the scale
    plain = type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale")
    return "embedding" if isinstance(module, nn.Embedding) and plain else None


def reason_table(reasons: dict[str, str], energies: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Adds up by reason what of a vector an adapter cannot hold.

    Args:
        reasons: parameter -> why not.
        energies: parameter -> sum of squares of the vector's entries.

    Returns:
        reason -> ``num_tensors``, ``energy`` and ``parameters`` (their names).
    """
    table: dict[str, dict[str, Any]] = {}
    for name in _covered(reasons, energies):
        row = table.setdefault(reasons[name], {"num_tensors": 0, "energy": 0.0, "parameters": []})
        row["num_tensors"] += 1
        row["energy"] += energies[name]
        row["parameters"].append(name)
    return table


def _covered(reasons: dict[str, str], energies: dict[str, float]) -> Iterable[str]:
    return (name for name in reasons if name in energies)
