"""Train and eval mode of a model: gradient checkpointing asks for the one, dropout and sampling for the other."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def checkpoint_activations(model: Any) -> None:
    """Turns gradient checkpointing on; it takes effect in train mode only.

    Raises:
        ValueError: the architecture has none.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ValueError(f"{type(model).__name__} has no gradient checkpointing")
    options = {"use_reentrant": False}  # the reentrant kind gives no gradients where the first block's input needs none
    if hasattr(model, "activation_checkpointing_enable"):  # its name in later releases of transformers 5
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def train_without_dropout(model: Any) -> None:
    """Puts a model in train mode, which gradient checkpointing asks for, if no dropout is active there.

    Raises:
        ValueError: dropout is active in train mode: the gradient would be random.
    """
    active = [name for name, module in model.named_modules() if _dropout(module) > 0]
    if active:
        raise ValueError(
            f"--model.gradient_checkpointing needs train mode, and {type(model).__name__} has dropout there "
            f"(such as {active[0]!r}): the gradient would be random; set the dropouts of its config to 0"
        )
    model.train()


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every submodule is back in its own mode, which may differ between them."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _dropout(module: torch.nn.Module) -> float:
    """The probability with which a module of a transformer drops something in train mode."""
    if isinstance(module, torch.nn.Dropout):
        return module.p
    found = getattr(module, "attention_dropout", 0.0)  # attention reads it from an attribute of its own
    return float(found) if isinstance(found, int | float) else 0.0
