"""What a contender is: a way to the mean gradient, with its own data format and settings to choose from."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.setting import Sequence, Setting

Gradient = dict[str, Tensor]


class Contender:
    """One way to the mean over responses of each response's summed gradient.

    Attributes:
        title: in the table.
    """

    title: ClassVar[str]
    model: nn.Module

    def __init__(self, setting: Setting, choice: Any = None) -> None:
        self.setting, self.choice = setting, choice
        self.prepare()

    @classmethod
    def choices(cls) -> list[Any]:
        """Settings of its own to try for its best; the best is found in a process of its own."""
        return [None]

    def prepare(self) -> None:
        """Loads the model; outside of all measurements."""
        self.model = load_model(self.setting)

    def stage(self, rows: list[Sequence]) -> Any:
        """Turns sequences into its own data format, outside of all measurements."""
        return rows

    def run(self, staged: Any) -> Gradient | None:
        """The measured work, from sequences to the mean gradient by parameter name; None where it claims no mean."""
        raise NotImplementedError

    def tokens(self, rows: list[Sequence]) -> int:
        """How many tokens a run goes through, without padding."""
        return sum(len(row.input_ids) for row in rows)

    @property
    def note(self) -> str:
        """What the table says of the choice."""
        return "" if self.choice is None else str(self.choice)


def load_model(setting: Setting, dtype: torch.dtype | None = None, **options: Any) -> Any:
    """The run's model in eval mode, on its device."""
    from transformers import AutoModelForCausalLM

    dtype = dtype or getattr(torch, setting.dtype)
    return AutoModelForCausalLM.from_pretrained(setting.model, dtype=dtype, **options).eval().to(setting.device)


def taken_gradients(model: nn.Module, factor: float = 1.0) -> Gradient:
    """The accumulated .grad of all parameters times a factor, taken off the model."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[name] = parameter.grad.mul_(factor) if factor != 1.0 else parameter.grad
        parameter.grad = None
    return found
