#!/usr/bin/env python
"""Where a finetune is in the weights: how large |Delta| is and how it is spread, beside vectors and pile gradients.

    .venv/bin/python scripts/structure.py --base lightning_logs/demo/base --anchors lightning_logs/demo/anchor \
        --vectors lightning_logs/demo/vectors/bridge.safetensors lightning_logs/demo/gradients/bridge.safetensors

Prints three tables in Markdown: the sizes of |Delta| (of all weights and by kind), its histogram by powers of ten, and
each layer's share of the squared norm of every Delta, vector and gradient. Everything is exact: all entries are sorted.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gradsteer.models.checkpoints import CheckpointWeights
from gradsteer.models.layers import layer_order
from gradsteer.models.parameter_selection import kind_of
from gradsteer.progress import progress
from gradsteer.vectors.parameter_vectors import ParameterVector
from gradsteer.vectors.weight_diff import WeightDiff

PERCENTILES = (50, 90, 97, 99, 99.9, 100)
DECADES = range(-8, 1)  # of |Delta|


def row(cells: Iterable[object]) -> str:
    """A line of a table in Markdown."""
    return "| " + " | ".join(map(str, cells)) + " |"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    return "\n".join([row(head), row(["---"] * len(head)), *map(row, rows)])


class Entries:
    """Of some entries of Delta: their magnitudes, and which of them bfloat16 would not show.

    Args:
        pairs: (anchor, base) of each tensor.
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        parts = [(anchor.float() - base.float()).abs().flatten() for anchor, base in pairs]
        self.sizes = np.sort(torch.cat(parts).numpy())
        self.same_in_half = sum(int((anchor.bfloat16() == base.bfloat16()).sum()) for anchor, base in pairs)

    def cells(self) -> list[str]:
        """Number, shares unchanged in the stored precision and in bfloat16, percentiles, share of the largest 1%."""
        squares = np.square(self.sizes, dtype=np.float64)
        largest = squares[int(0.99 * len(squares)) :].sum() / max(squares.sum(), 1e-300)
        unchanged = np.searchsorted(self.sizes, 0, side="right") / len(self.sizes)
        sizes = (f"{np.percentile(self.sizes, each, method='lower'):.2g}" for each in PERCENTILES)
        share = self.same_in_half / len(self.sizes)
        return [f"{len(self.sizes):,}", f"{unchanged:.1%}", f"{share:.1%}", *sizes, f"{largest:.0%}"]

    def decades(self) -> list[str]:
        """Shares of the entries below 1e-8, between the powers of ten, and above 1."""
        edges = np.searchsorted(self.sizes, [10.0**each for each in DECADES])
        counts = np.diff([0, *edges, len(self.sizes)])
        return [f"{count / len(self.sizes):.1%}" for count in counts]


def sizes_of(name: str, anchor: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> tuple[list[list[str]], list[str]]:
    """Rows of the tables of sizes (all, then each kind), and one of the histogram."""
    by_kind: dict[str, list[tuple[Tensor, Tensor]]] = {}
    with progress("|Delta|", len(anchor), unit="tensor") as tick:
        for each in anchor:
            by_kind.setdefault(kind_of(each), []).append((anchor[each], base[each]))
            tick(1, each)
    everything = Entries([pair for pairs in by_kind.values() for pair in pairs])
    rows = [[name, "all", *everything.cells()]]
    rows += [[name, kind, *Entries(pairs).cells()] for kind, pairs in by_kind.items()]
    return rows, [name, *everything.decades()]


def main() -> None:
    """Reads the models and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="directory of the model before the finetune")
    parser.add_argument("--anchors", type=Path, nargs="+", required=True, help="directories of the models after it")
    parser.add_argument("--vectors", type=Path, nargs="*", default=[], help="files of attribute: vectors, gradients")
    options = parser.parse_args()
    base = CheckpointWeights(str(options.base))
    sizes, decades, shares = [], [], {}
    for place in options.anchors:
        anchor, name = CheckpointWeights(str(place)), f"Delta of {place.parent.name}/{place.name}"
        rows, histogram = sizes_of(name, anchor, base)
        sizes, decades = [*sizes, *rows], [*decades, histogram]
        shares[name] = WeightDiff.streamed(anchor, base)
    shares |= {f"{file.parent.name}/{file.stem}": ParameterVector.load(file) for file in options.vectors}
    head = ["Delta", "weights", "number", "unchanged", "same in bfloat16"]
    print(table([*head, *(f"{each:g}%" for each in PERCENTILES), "norm² in the largest 1%"], sizes), "\n")
    edges = [f"1e{each}" for each in DECADES]
    print(table(["Delta", f"< {edges[0]}", *(f"to {each}" for each in edges[1:]), f"> {edges[-1]}"], decades), "\n")
    squares = {name: vector.layer_sum_squares() for name, vector in shares.items()}
    layers = layer_order({layer for each in squares.values() for layer in each})
    totals = {name: sum(each.values()) for name, each in squares.items()}
    rows = [[layer, *(f"{squares[name].get(layer, 0) / totals[name]:.2%}" for name in squares)] for layer in layers]
    print(table(["share of norm²", *squares], [*rows, ["norm", *(f"{total**0.5:.4g}" for total in totals.values())]]))


if __name__ == "__main__":
    main()
