"""Times the exact percentile of |Delta| against numpy's on the same entries, in one run.

    OMP_NUM_THREADS=1 .venv/bin/python scripts/bench_percentile.py --elements 30000000

The contenders take turns in every round, so that a busy moment falls on all of them, and a ratio is taken within a
round. Every answer is checked: those that are exact must be equal. Linux only: the peak is read from /proc, and counts
the pages of mapped files. Needs twice --elements * 4 bytes in the temporary directory.
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from gradsteer.models.checkpoints import CheckpointWeights, write_safetensors_streamed
from gradsteer.vectors.percentiles import magnitude_percentile
from gradsteer.vectors.weight_diff import WeightDiff

WIDTH, HEIGHT, VOCABULARY = 1024, 4096, 4096
PER_LAYER = 4 * WIDTH**2 + 3 * WIDTH * HEIGHT


def write_checkpoints(root: Path, elements: int, dtype: torch.dtype) -> tuple[Path, Path]:
    """Two directories of a Llama of about so many parameters, written tensor by tensor, and so of any size."""
    layers = max(1, round((elements - VOCABULARY * WIDTH) / PER_LAYER))
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=HEIGHT, num_hidden_layers=layers,
        num_attention_heads=16, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

    def base(name: str) -> Tensor:
        generator = torch.Generator().manual_seed(list(shapes).index(name))
        return (0.02 * torch.randn(shapes[name], generator=generator)).to(dtype).float()

    def anchor(name: str) -> Tensor:
        # of every tensor another size, as after a finetune
        place = list(shapes).index(name)
        step = torch.randn(shapes[name], generator=torch.Generator().manual_seed(10_000 + place))
        return (base(name) + 1e-4 * (1 + place % 7) * step).to(dtype).float()

    for side, read in (("anchor", anchor), ("base", base)):
        config.save_pretrained(root / side)
        write_safetensors_streamed(root / side / "model.safetensors", shapes, read, {"format": "pt"})
    return root / "anchor", root / "base"


def read_all(directory: Path) -> dict[str, Tensor]:
    """All tensors, in memory."""
    return {name: tensor.clone() for name, tensor in CheckpointWeights(directory).items()}


def status(key: str) -> float:
    """A line of this process's /proc status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def peak_above(run: Callable[[], Any]) -> float:
    """How much more memory, in MB, is resident at the highest point of a run than before it."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def shown(values: list[float], unit: str = "") -> str:
    return f"{statistics.median(values):.3g}{unit} [{min(values):.3g}..{max(values):.3g}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=30_000_000, help="entries of Delta, about")
    parser.add_argument("--percentile", type=float, default=97.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--round_to", choices=["float32", "bfloat16"], default="float32", help="weights' precision")
    parser.add_argument("--skip_numpy", action="store_true", help="only ours from files, for sizes that numpy cannot")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    percentile = arguments.percentile
    with tempfile.TemporaryDirectory() as root:
        anchor, base = write_checkpoints(Path(root), arguments.elements, getattr(torch, arguments.round_to))
        diff = WeightDiff.streamed(CheckpointWeights(anchor), CheckpointWeights(base))
        largest = max(tensor.numel() for tensor in diff.outline().values()) * 4 / 2**20
        print(
            f"{diff.numel():,} entries ({diff.numel() * 4 / 2**20:,.0f} MB in float32), largest tensor {largest:.0f} MB"
        )

        def by_numpy(delta: np.ndarray) -> float:
            return float(np.percentile(np.abs(delta), percentile))

        def numpy_from_files() -> float:
            ours, theirs = read_all(anchor), read_all(base)
            delta = np.concatenate([(ours[name] - theirs[name]).double().numpy().ravel() for name in ours])
            return by_numpy(delta)

        contenders: dict[str, Callable[[], float]] = {
            "ours, from files": lambda: magnitude_percentile(lambda: diff.values(), percentile)
        }
        if not arguments.skip_numpy:
            tensors = [tensor.clone() for tensor in diff.values()]
            together = np.concatenate([tensor.numpy().ravel() for tensor in tensors])

            def in_memory() -> Iterator[Tensor]:
                return iter(tensors)

            contenders |= {
                "numpy float64, from files": numpy_from_files,
                "ours, in memory": lambda: magnitude_percentile(in_memory, percentile),
                "numpy float64, in memory": lambda: float(
                    np.percentile(np.abs(together.astype(np.float64)), percentile)
                ),
                "numpy float32, in memory": lambda: float(np.percentile(np.abs(together), percentile)),
            }
        compare(contenders, arguments.rounds)


def compare(contenders: dict[str, Callable[[], float]], rounds: int) -> None:
    """Prints times, peaks and ratios; the first contender is the measure of what is exact."""
    peaks = {name: peak_above(run) for name, run in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    answers = {}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            answers[name] = run()
            seconds[name].append(time.perf_counter() - start)
    exact = answers["ours, from files"]
    for name, times in seconds.items():
        error = abs(answers[name] - exact) / exact
        print(f"{name:26s} {shown(times, ' s'):32s} peak +{peaks[name]:,.0f} MB   differs by {error:.1g}")
        if "float32" not in name and answers[name] != exact:
            raise SystemExit(f"{name} gives {answers[name]!r}, ours {exact!r}: not equal")
    for where in ("from files", "in memory"):
        for other in (name for name in contenders if name.startswith("numpy") and name.endswith(where)):
            ratios = [theirs / ours for theirs, ours in zip(seconds[other], seconds[f"ours, {where}"], strict=True)]
            print(f"time of {other} / ours, {where}: {shown(ratios)}")


if __name__ == "__main__":
    main()
