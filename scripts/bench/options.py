"""The command line of bench_attribution.py."""

import argparse
import os
import shutil
from pathlib import Path

from bench.setting import SHAPES

CONTENDERS = {
    "ours": "gradsteer, packs of the default size",
    "ours-best": "gradsteer, packs of the fastest size",
    "ours-linear": "gradsteer, for the parameters that bergson covers",
    "floor": "dense batches, every token labelled, plain backward: the bound",
    "loop": "one response at a time",
    "padded8": "random padded batches of 8",
    "padded32": "random padded batches of 32",
    "func": "torch.func: vmap over grad",
    "trainer": "transformers.Trainer with an optimizer that does nothing",
    "bergson": "bergson in memory, at its fastest batch size",
    "bergson-default": "bergson as it comes",
    "kronfluence": "kronfluence's gradient aggregation",
    "opacus": "opacus, per-example gradients",
}
CHOOSING = ("ours-best", "floor", "func", "trainer", "bergson", "kronfluence", "opacus")
PEERS = ("trainer", "bergson", "bergson-default", "kronfluence", "opacus")
STUDIES = ("trainer", "memory", "head")


def parse(description: str) -> argparse.Namespace:
    """The command line, refused before any work where it makes no sense.

    Args:
        description: for --help.
    """
    listed = "\n".join(f"  {name:<16} {text}" for name, text in CONTENDERS.items())
    parser = argparse.ArgumentParser(
        description=description, epilog=f"contenders:\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shape", choices=sorted(SHAPES), default="small", help="tiny; small: 29 M parameters; 1b: Llama-3.2-1B's")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights (default: %(default)s)")
    add("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    add("--threads", type=int, default=1, help="of torch, in every process (default: %(default)s)")
    clock_help = "wall; or cpu: processor seconds, for a machine shared with others (CPU, one thread; default: wall)"
    add("--clock", choices=["wall", "cpu"], default="wall", help=clock_help)
    add("--repeats", type=int, default=5, help="rounds, each on fresh responses (default: %(default)s)")
    add("--responses", type=int, default=None, help="in a round (default: 32; 256 for 1b)")
    add("--minutes", type=float, default=10.0, help="no round is begun that would end later, but two are run")
    add("--contenders", default=",".join(CONTENDERS), help="separated by commas, see below (default: all)")
    add("--studies", default=",".join(STUDIES), help=f"of gradsteer alone: {', '.join(STUDIES)}, or none")
    add("--piles", type=int, default=4, help="for the study of several piles in one run (default: %(default)s)")
    add("--peer-python", default=None, metavar="PYTHON", help="the interpreter that has the other packages")
    add("--output", type=Path, default=None, metavar="FILE", help="also write a .md or a .json file")
    add("--seed", type=int, default=0, help="of weights and responses (default: %(default)s)")
    add("--keep", action="store_true", help="keep the temporary directory, with every process's log")
    found = parser.parse_args()
    found.contenders = _names(parser, "--contenders", found.contenders, tuple(CONTENDERS))
    found.studies = [] if found.studies in ("", "none") else _names(parser, "--studies", found.studies, STUDIES)
    for name in ("threads", "repeats", "minutes"):
        if getattr(found, name) <= 0:
            parser.error(f"--{name} is {getattr(found, name)}; accepted: more than 0")
    found.responses = SHAPES[found.shape].responses if found.responses is None else found.responses
    if found.responses < 8:
        parser.error(f"--responses is {found.responses}; accepted: at least 8")
    if not 2 <= found.piles <= found.responses:
        parser.error(f"--piles is {found.piles}; accepted: from 2 to the responses of a round, {found.responses}")
    if found.device != "cpu" and not found.device.startswith("cuda"):
        parser.error(f"--device is {found.device!r}; accepted: cpu, cuda")
    if found.device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            parser.error(f"--device is {found.device!r}, and torch sees no CUDA device here")
    if found.clock == "cpu" and (found.device != "cpu" or found.threads != 1):
        parser.error("--clock cpu needs --device cpu and --threads 1: it counts the processor's seconds of all threads")
    if found.peer_python is not None:
        path = shutil.which(found.peer_python)
        if path is None:
            parser.error(f"--peer-python: {found.peer_python!r} is not an executable; accepted: a path to a python")
        found.peer_python = os.path.abspath(path)
    if found.output is not None:
        if found.output.suffix not in (".md", ".json"):
            parser.error(f"--output is {str(found.output)!r}; accepted: a name that ends in .md or .json")
        if not found.output.resolve().parent.is_dir():
            parser.error(f"--output: no directory {str(found.output.resolve().parent)!r}")
    return found


def _names(parser: argparse.ArgumentParser, flag: str, text: str, known: tuple[str, ...]) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            parser.error(f"{flag}: unknown {name!r}; accepted: {', '.join(known)}")
    if not names:
        parser.error(f"{flag} is empty; accepted: {', '.join(known)}")
    return [name for name in known if name in names]
