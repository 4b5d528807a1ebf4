#!/usr/bin/env python
"""Seconds of applying a steering vector and of restoring the weights, against `Tensor.copy_` of the same bytes.

The four rows are taken by turns in every round, in alternating order, so that what slows the machine down slows all of
them; ratios are taken round by round. The clock is the wall's: what is measured is memory traffic.

    python scripts/bench_application.py                             # 50M float32 weights, a few seconds
    python scripts/bench_application.py --dtype bfloat16 --threads 2
    python scripts/bench_application.py --device cuda --elements 1000000000

Applying within `holding` reads the originals and V and writes the weights: 3 streams where the copy has 2.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.steering.weight_steering import holding, steered
from gradsteer.vectors.parameter_vectors import SteeringVector

TENSORS = 8
GOAL = 2.0


def main() -> int:
    """Runs the bench; 0 where it ran, whatever it found."""
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    model, vector, target = _setting(arguments)
    nbytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    print(
        f"{TENSORS} tensors, {nbytes / 1e6:.0f} MB of {arguments.dtype} on {arguments.device}, {arguments.threads} "
        f"thread{'s' * (arguments.threads > 1)}, V in {arguments.vector_dtype}; wall clock, median [min .. max] of "
        f"{arguments.rounds} rounds\n"
    )
    seconds = Rounds(model, vector, target, arguments.device).run(arguments.rounds)
    copies = seconds["Tensor.copy_"]
    print(f"| {'':32} | {'ms':>24} | {'ratio to copy_':>20} | {'GB/s':>5} |")
    print(f"|-{'-' * 32}-|-{'-' * 23}:|-{'-' * 19}:|-{'-' * 4}:|")
    for title, taken in seconds.items():
        ratios = [ours / copy for ours, copy in zip(taken, copies, strict=True)]
        rate = nbytes / statistics.median(taken) / 1e9
        print(f"| {title:32} | {_spread(taken, 1e3, 1):>24} | {_spread(ratios, 1, 2):>20} | {rate:>5.1f} |")
    print(f"\nGB/s: bytes of the weights by the time. Goal: applying and restoring within {GOAL:g} of a copy each.")
    for title in ("apply, within holding", "restore, within holding"):
        ratio = statistics.median(ours / copy for ours, copy in zip(seconds[title], copies, strict=True))
        print(f"{title}: {ratio:.2f}, {'met' if ratio <= GOAL else 'MISSED'}")
    return 0


class Rounds:
    """The rows of the table and their seconds, round by round."""

    def __init__(self, model: nn.Module, vector: SteeringVector, target: list[torch.Tensor], device: str) -> None:
        self.model, self.vector, self.target, self.device = model, vector, target, device
        self.seconds: dict[str, list[float]] = {
            "Tensor.copy_": [],
            "apply, within holding": [],
            "restore, within holding": [],
            "apply + restore, without holding": [],
        }

    def run(self, number: int) -> dict[str, list[float]]:
        """Takes some rounds after one that does not count."""
        measurements: list[Callable[[], None]] = [self._copy, self._held, self._cold]
        for index in range(number + 1):
            for measure in measurements if index % 2 else reversed(measurements):
                measure()
        return {title: taken[1:] for title, taken in self.seconds.items()}

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _copy(self) -> None:
        parameters = [parameter.detach() for parameter in self.model.parameters()]
        begun = self._now()
        for into, parameter in zip(self.target, parameters, strict=True):
            into.copy_(parameter)
        self.seconds["Tensor.copy_"].append(self._now() - begun)

    def _held(self) -> None:
        with holding(self.model):
            for counts in (False, True):  # the pages of a new copy are touched once before it counts
                begun = self._now()
                with steered(self.model, self.vector, 1e-3):
                    applied = self._now()
                restored = self._now()
                if counts:
                    # leaving begins where entering ended
                    self.seconds["apply, within holding"].append(applied - begun)
                    self.seconds["restore, within holding"].append(restored - applied)

    def _cold(self) -> None:
        begun = self._now()
        with steered(self.model, self.vector, 1e-3):
            pass
        self.seconds["apply + restore, without holding"].append(self._now() - begun)


def _setting(arguments: argparse.Namespace) -> tuple[nn.Module, SteeringVector, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Module()
    for index in range(TENSORS):
        weight = torch.randn(arguments.elements // TENSORS, generator=generator)
        weight = weight.to(arguments.device, getattr(torch, arguments.dtype))
        model.register_parameter(f"weight_{index}", nn.Parameter(weight))
    vector = SteeringVector(
        {
            name: torch.randn(parameter.shape, generator=generator).to(
                arguments.device, getattr(torch, arguments.vector_dtype)
            )
            for name, parameter in model.named_parameters()
        },
        {"model_fingerprint": model_fingerprint(model)},
    )
    target = [torch.empty_like(parameter).zero_() for parameter in model.parameters()]
    return model, vector, target


def _parse() -> argparse.Namespace:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--elements", type=int, default=50_000_000, help="weights of the model, beyond the caches")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16", "float16"])
    parser.add_argument("--vector-dtype", default="float32", choices=["float32", "float64", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    if arguments.elements < TENSORS or arguments.rounds < 1:
        parser.error(f"--elements takes {TENSORS} or more, --rounds 1 or more")
    return arguments


def _spread(values: list[float], factor: float, digits: int) -> str:
    low, middle, high = (factor * value for value in (min(values), statistics.median(values), max(values)))
    return f"{middle:.{digits}f} [{low:.{digits}f} .. {high:.{digits}f}]"


if __name__ == "__main__":
    sys.exit(main())
