"""What contenders share: loading the model, padding, batches of like length, timing one run."""

import time
from collections.abc import Callable
from collections.abc import Sequence as Row
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.setting import IGNORE_INDEX, Sequence, Setting

Gradient = dict[str, Tensor]


def load_model(setting: Setting, dtype: torch.dtype | None = None, **options: Any) -> Any:
    """The run's model in eval mode, on its device."""
    from transformers import AutoModelForCausalLM

    dtype = dtype or getattr(torch, setting.dtype)
    return AutoModelForCausalLM.from_pretrained(setting.model, dtype=dtype, **options).eval().to(setting.device)


def padded(batch: Row[Sequence], device: str) -> dict[str, Tensor]:
    """input_ids, attention_mask and labels, padded on the right to the longest."""
    width = max(len(row.input_ids) for row in batch)

    def filled(values: list[int], fill: int) -> list[int]:
        return values + [fill] * (width - len(values))

    tensors = {
        "input_ids": [filled(row.input_ids, 0) for row in batch],
        "attention_mask": [filled([1] * len(row.input_ids), 0) for row in batch],
        "labels": [filled(row.labels, IGNORE_INDEX) for row in batch],
    }
    return {key: torch.tensor(value, device=device) for key, value in tensors.items()}


def batches_of(rows: Row[Sequence], size: int, *, by_length: bool = False) -> list[list[Sequence]]:
    """Batches of so many sequences, in their order or longest first."""
    rows = sorted(rows, key=lambda row: -len(row.input_ids)) if by_length else list(rows)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@dataclass(frozen=True)
class Took:
    """Seconds of a piece of work, by the clock on the wall and of the processor."""

    wall: float
    cpu: float

    def by(self, clock: str) -> float:
        """One of the two."""
        return {"wall": self.wall, "cpu": self.cpu}[clock]


def measured(work: Callable[[], object], device: str) -> Took:
    """Times the work, with the device's queue empty before and after."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    started = time.perf_counter(), time.process_time()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return Took(time.perf_counter() - started[0], time.process_time() - started[1])


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


def taken_gradients(model: nn.Module, factor: float = 1.0) -> Gradient:
    """The accumulated .grad of all parameters times a factor, taken off the model."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[name] = parameter.grad.mul_(factor) if factor != 1.0 else parameter.grad
        parameter.grad = None
    return found
