"""Attribution in an adapter's space beside full weights: tokens a second and peak memory, one process each.

    python scripts/bench_adapter.py --model DIR --rank 16 --tokens 20000

The adapter is a random one on all linear layers: speed and memory do not ask for more. The packs are of --budget tokens
of random ids, the same for both; the first one is not counted.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.data.chat import EncodedExample
from gradsteer.models.loading import load_causal_lm
from gradsteer.models.lora import LoraOptions, save_adapter, with_fresh_adapter
from gradsteer.models.packing import Pack


def measure(model: Any, options: argparse.Namespace) -> dict[str, float]:
    """Tokens a second and peak memory of summing a pile's gradient."""
    generator = torch.Generator().manual_seed(0)
    lengths = [options.length] * (options.budget // options.length)
    rows = torch.randint(0, model.config.vocab_size, (len(lengths), options.length), generator=generator).tolist()
    device = torch.device(options.device)
    model.to(device)
    pack = Pack.of([EncodedExample(ids, [-100, *ids[1:]]) for ids in rows], device)
    pile = PileGradient(model, head_chunk=max(64, (1 << 25) // model.config.vocab_size))
    pile.add(pack)
    number = max(1, options.tokens // options.budget)
    started = time.perf_counter()
    for _ in range(number):
        pile.add(pack)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else _peak_of_process()
    summed = sum(buffer.numel() * buffer.element_size() for buffer in pile.sums.buffers.values())
    return {"tokens a second": number * sum(lengths) / seconds, "peak MiB": peak / 2**20, "sums MiB": summed / 2**20}


def _peak_of_process() -> int:
    """Bytes; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory or hub id of the base")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=20_000, help="to sum in all (%(default)s)")
    parser.add_argument("--budget", type=int, default=1024, help="tokens at once (%(default)s)")
    parser.add_argument("--length", type=int, default=128, help="of a sequence (%(default)s)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--reading", choices=["full", "adapter"], help="measure one alone, in this process")
    parser.add_argument("--adapter", help="directory of the adapter, with --reading adapter")
    options = parser.parse_args()
    if options.reading == "full":
        print(json.dumps(measure(load_causal_lm(options.model, dtype=options.dtype), options)))
        return
    if options.reading == "adapter":
        model = load_causal_lm(
            options.adapter, dtype=options.dtype, adapter_reading="adapter", adapter_base=options.model
        )
        print(json.dumps(measure(model, options)))
        return
    rows = {}
    with tempfile.TemporaryDirectory() as place:
        model, _ = with_fresh_adapter(load_causal_lm(options.model), LoraOptions(options.rank))
        for parameter in model.parameters():
            parameter.data.normal_(std=0.01)
        save_adapter(model, Path(place), base=options.model)
        del model
        for reading in ("full", "adapter"):
            line = [sys.executable, __file__, *sys.argv[1:], "--reading", reading, "--adapter", place]
            found = subprocess.run(line, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            rows[reading] = json.loads(found)
    print(f"{'':<10}" + "".join(f"{name:>18}" for name in rows["full"]))
    for reading, row in rows.items():
        print(f"{reading:<10}" + "".join(f"{value:>18,.1f}" for value in row.values()))


if __name__ == "__main__":
    main()
