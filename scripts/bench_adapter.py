"""Attribution in an adapter's space beside full weights: tokens a second in turns, and peak memory, a process each.

    python scripts/bench_adapter.py --model DIR --rank 16 --rounds 3

The adapter is a random one on all linear layers: speed and memory do not ask for more. Each round both sum the
gradients of one pack of --budget random tokens, the same for both; the pack before the first is not counted. On a CPU
seconds are the processor's, so that other work on the machine counts for little.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.data.chat import EncodedExample
from gradsteer.models.loading import load_causal_lm
from gradsteer.models.lora import LoraOptions, save_adapter, with_fresh_adapter
from gradsteer.models.packing import Pack


def serve(model: Any, options: argparse.Namespace) -> None:
    """Sums a pack at every line of the input, and prints tokens a second and the peak memory so far."""
    generator = torch.Generator().manual_seed(0)
    lengths = [options.length] * (options.budget // options.length)
    rows = torch.randint(0, model.config.vocab_size, (len(lengths), options.length), generator=generator).tolist()
    device = torch.device(options.device)
    on_gpu, clock = device.type == "cuda", time.perf_counter if device.type == "cuda" else time.process_time
    model.to(device)
    pack = Pack.of([EncodedExample(ids, [-100, *ids[1:]]) for ids in rows], device)
    pile = PileGradient(model, head_chunk=max(64, (1 << 25) // model.config.vocab_size))
    pile.add(pack)
    summed = sum(buffer.numel() * buffer.element_size() for buffer in pile.sums.buffers.values())
    for _ in sys.stdin:
        started = clock()
        pile.add(pack)
        if on_gpu:
            torch.cuda.synchronize()
        rate = sum(lengths) / (clock() - started)
        peak = torch.cuda.max_memory_allocated() if on_gpu else _peak_of_process()
        print(json.dumps({"rate": rate, "peak": peak / 2**20, "sums": summed / 2**20}), flush=True)


def _peak_of_process() -> int:
    """Bytes; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory or hub id of the base")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3, help="packs of each, in turns (%(default)s)")
    parser.add_argument("--budget", type=int, default=1024, help="tokens at once (%(default)s)")
    parser.add_argument("--length", type=int, default=128, help="of a sequence (%(default)s)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--reading", choices=["full", "adapter"], help="serve one alone, in this process")
    parser.add_argument("--adapter", help="directory of the adapter, with --reading adapter")
    options = parser.parse_args()
    if options.reading is not None:
        named = {} if options.reading == "full" else {"adapter_reading": "adapter", "adapter_base": options.model}
        source = options.model if options.reading == "full" else options.adapter
        serve(load_causal_lm(source, dtype=options.dtype, **named), options)
        return
    with tempfile.TemporaryDirectory() as place:
        _write_adapter(options, Path(place))
        line = [sys.executable, __file__, *sys.argv[1:], "--adapter", place, "--reading"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        working = {reading: subprocess.Popen([*line, reading], **pipes) for reading in ("full", "adapter")}
        rows: dict[str, list[dict[str, float]]] = {reading: [] for reading in working}
        for _, (reading, process) in product(range(options.rounds), working.items()):
            process.stdin.write("\n")
            process.stdin.flush()
            rows[reading].append(json.loads(process.stdout.readline()))
        for process in working.values():
            process.communicate()
    print("| | tokens a second | peak MiB | sums MiB |\n| --- | --- | --- | --- |")
    for reading, found in rows.items():
        rate = _spread([each["rate"] for each in found], 0)
        print(f"| {reading} | {rate} | {found[-1]['peak']:,.0f} | {found[-1]['sums']:,.1f} |")
    ratios = [own["rate"] / full["rate"] for own, full in zip(rows["adapter"], rows["full"], strict=True)]
    print(f"\nadapter / full, tokens a second: {_spread(ratios, 2)} of {len(ratios)} rounds")


def _write_adapter(options: argparse.Namespace, place: Path) -> None:
    model, _ = with_fresh_adapter(load_causal_lm(options.model), LoraOptions(options.rank))
    for parameter in model.parameters():
        parameter.data.normal_(std=0.01)
    save_adapter(model, place, base=options.model)


def _spread(values: list[float], digits: int) -> str:
    """The median, and the smallest and largest."""
    return f"{median(values):,.{digits}f} [{min(values):,.{digits}f} .. {max(values):,.{digits}f}]"


if __name__ == "__main__":
    main()
