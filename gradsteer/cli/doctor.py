"""``gradsteer doctor``: what a machine has and how fast it is, to choose options by and to paste into a bug report.

Of keys it says only whether they are set.
"""

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradsteer.provenance import git_sha
from gradsteer.version import __version__

_PACKAGES = (
    "torch", "lightning", "transformers", "tokenizers", "safetensors", "jsonargparse", "numpy", "scipy",
    "scikit-learn", "regex", "datasets", "pyarrow", "huggingface_hub", "matplotlib", "tensorboard", "filelock",
)  # fmt: skip
_OPTIONAL = {
    "openai": "judges over the network",
    "peft": "adapters, read, trained and exported",
    "gguf": "GGUF files",
    "sentencepiece": "some tokenizers",
    "tiktoken": "some tokenizers",
    "flash_attn": "--model.attn_implementation flash_attention_2",
    "accelerate": "some of transformers' loading",
}
_KEYS = ("HF_TOKEN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "OPENROUTER_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY")
_VARIABLES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_OFFLINE", "SLURM_JOB_ID")
_SIZE = 1024  # of the matrices that are multiplied
_SECONDS = 0.2


def main(args: Sequence[str]) -> int:
    """Prints the report.

    Args:
        args: the options.
    """
    options = options_parser().parse_args(list(args))
    for title, rows in report(Path(options.output_dir).expanduser(), seconds=options.seconds):
        print(f"{title}:")
        for name, said in rows.items():
            print(f"  {name:<22} {said}")
    return 0


def report(output_dir: Path, *, seconds: float = _SECONDS) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The report's parts, each with what is said by name.

    Args:
        output_dir: on whose disk the room is looked up.
        seconds: spent on each dtype's speed.
    """
    yield "versions", _versions()
    yield "optional packages", {name: f"{_version(name)} ({use})" for name, use in _OPTIONAL.items()}
    yield "devices", _devices()
    yield "threads", _threads()
    yield f"speed, products of {_SIZE} x {_SIZE} matrices", _speeds(seconds)
    yield "room", _room(output_dir)
    yield "keys", {name: "set" if os.environ.get(name) else "not set" for name in _KEYS}
    yield "variables", {name: os.environ.get(name, "not set") for name in _VARIABLES}


def _versions() -> dict[str, str]:
    own = {
        "gradsteer": f"{__version__} {git_sha()}".rstrip(),
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "encoding": f"{sys.stdout.encoding} on the terminal, {sys.getfilesystemencoding()} in file names",
    }
    return {**own, **{name: _version(name) for name in _PACKAGES}}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> dict[str, str]:
    import torch

    from gradsteer.models.memory import available_bytes, size

    def free(device: torch.device) -> str:
        known = available_bytes(device, held=0)
        return "free memory not known" if known is None else f"{size(known)} free"

    found = {"cpu": f"{platform.processor() or platform.machine()}, {free(torch.device('cpu'))}"}
    for index in range(torch.cuda.device_count()):
        found[f"cuda:{index}"] = f"{torch.cuda.get_device_name(index)}, {free(torch.device('cuda', index))}"
    if torch.backends.mps.is_available():
        found["mps"] = "sums that need float64 are made on the CPU"
    return found


def _threads() -> dict[str, str]:
    import torch

    from gradsteer.models.threads import advice_on_threads, free_cores

    found = {
        "cores": f"{os.cpu_count()}, of which {free_cores():g} may be used",
        "threads": str(torch.get_num_threads()),
    }
    if hasattr(os, "getloadavg"):
        found["busy"] = f"{os.getloadavg()[0]:.1f} processes in the last minute"
    return {**found, "advice": advice_on_threads() or "none"}


def _speeds(seconds: float) -> dict[str, str]:
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    devices = [torch.device("cpu"), *([accelerator] if accelerator is not None else [])]
    found = {}
    for device in devices:
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            name = str(dtype).removeprefix("torch.")
            try:
                found[f"{device.type} {name}"] = f"{_flops(device, dtype, seconds) / 1e9:,.3g} GFLOP/s"
            except (TypeError, RuntimeError) as error:  # a device without the dtype
                found[f"{device.type} {name}"] = f"not to be had ({str(error).splitlines()[0]})"
    return found


def _flops(device: Any, dtype: Any, seconds: float) -> float:
    """Operations a second in products of matrices."""
    import torch

    matrix = torch.ones(_SIZE, _SIZE, device=device, dtype=dtype)
    float(matrix.mm(matrix)[0, 0])  # the first one prepares
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        float(matrix.mm(matrix)[0, 0])  # which waits for it
        count += 1
    return 2 * _SIZE**3 * count / spent


def _room(output_dir: Path) -> dict[str, str]:
    from gradsteer.models.memory import size

    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    found = {}
    for name, path in (("output directory", output_dir), ("hub cache", cache)):
        there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
        found[name] = f"{path}: {size(shutil.disk_usage(there).free)} free"
    return found


def options_parser() -> Any:
    """The parser of all options."""
    from gradsteer.options import OptionsParser

    parser = OptionsParser(
        prog="gradsteer doctor",
        description="Says what this machine has: versions, optional packages, devices, threads and whether they help, "
        "the speed of each dtype, room on disk, and which keys are set (never their values). Paste it into a bug "
        "report.",
    )
    parser.add_argument("--output_dir", type=str, default="lightning_logs", help="on whose disk to look up the room.")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="spent on measuring each dtype's speed.")
    return parser
