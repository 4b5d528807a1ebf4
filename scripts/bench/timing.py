"""Timing a piece of work, on the wall and on the processor."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


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
