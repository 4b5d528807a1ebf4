"""``gradsteer inspect``: says what a file of gradients, a vector, a diff or a second moment, or a LoRA adapter is."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradsteer.models.adapter_loading import ADAPTER_FINGERPRINT
from gradsteer.models.parameter_selection import kind_of
from gradsteer.vectors.metadata import num_prompts_text
from gradsteer.vectors.parameter_vectors import ParameterVector

if TYPE_CHECKING:
    from rich.table import Table

    from gradsteer.models.adapters import Adapter

_BAR = 24
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ACCEPTED = "a .safetensors file of gradsteer, or the directory or hub id of a LoRA adapter"
# said in their own place
_ELSEWHERE = ("prompt_digests", "prompt_digests_incomplete", "split_half_cosine_by_layer")


def main(args: Sequence[str]) -> int:
    """Prints what files are, from the command line.

    Args:
        args: the options.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not one of ours.
    """
    from rich.console import Console

    options = options_parser().parse_args(list(args))
    console = Console()
    for file in map(os.path.expanduser, options.files):
        adapter = None if os.path.isfile(file) else _adapter(file)
        summary = summarize(file) if adapter is None else summarize_adapter(adapter)
        if options.json:
            print(json.dumps(summary))
            continue
        # text from a file is printed as it is: no markup is read in it
        print(f"{file}: {summary['kind']} over {summary['num_parameters']} parameters, norm {summary['norm']:.6g}")
        for key, value in summary["metadata"].items():
            print(f"  {key:<22} {value if isinstance(value, str) else json.dumps(value)}")
        console.print(norm_table("layer", summary["norm_by_layer"], summary["split_half_cosine_by_layer"]))
        console.print(norm_table("kind", summary["norm_by_kind"], {}))
    return 0


def summarize(path: str) -> dict[str, Any]:
    """What a file is, as plain values.

    Returns:
        ``kind``, ``num_parameters``, ``num_entries``, ``norm``, ``norm_by_layer``, ``norm_by_kind``,
        ``split_half_cosine_by_layer`` (empty where the file does not say), ``metadata`` (of the prompts their number).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not one of ours.
    """
    from safetensors import safe_open

    vector = ParameterVector.load(path)
    with safe_open(path, framework="pt") as opened:
        kind = opened.metadata()["kind"]
    metadata = {key: value for key, value in sorted(vector.metadata.items()) if key not in _ELSEWHERE and value}
    metadata["num_prompts"] = num_prompts_text(vector.metadata) or "not said"
    return {**_norms(kind, vector), "metadata": metadata}


def summarize_adapter(adapter: "Adapter") -> dict[str, Any]:
    """What a LoRA adapter is, as plain values: as `summarize`, from its files alone; the norms are of its own tensors.

    ``metadata`` has its base, rank, alpha, scaling and targets, and what `fit` recorded of the base's weights.

    Raises:
        ValueError: its weights are missing, pickled or not readable.
    """
    from gradsteer.models.base_record import recorded_base, recorded_fingerprint

    base = recorded_base(adapter.name) if os.path.isdir(adapter.name) else adapter.said_base
    said = {"base": base or "not said", "revision": adapter.said_revision, **adapter.shown()}
    said |= {"base_fingerprint": recorded_fingerprint(adapter.directory), ADAPTER_FINGERPRINT: adapter.fingerprint}
    metadata = {key: value for key, value in said.items() if value is not None}
    return {**_norms("LoRA adapter", ParameterVector(adapter.tensors())), "metadata": metadata}


def _adapter(name: str) -> "Adapter | None":
    """The adapter in a directory or hub repository; None where there is neither such a directory nor repository.

    Raises:
        ValueError: a directory without one, or one that is no plain LoRA.
    """
    from gradsteer.models.adapters import read_adapter

    on_hub = _HUB_ID.fullmatch(name) and not name.endswith(".safetensors")
    if not os.path.isdir(name) and not on_hub:
        return None
    adapter = read_adapter(name)
    if adapter is None:
        raise ValueError(f"{name!r} holds no LoRA adapter (adapter_config.json); accepted: {_ACCEPTED}")
    return adapter


def _norms(kind: str, vector: ParameterVector) -> dict[str, Any]:
    by_kind: dict[str, float] = {}
    for name, square in vector.sum_squares().items():
        by_kind[kind_of(name)] = by_kind.get(kind_of(name), 0.0) + square
    return {
        "kind": kind,
        "num_parameters": len(vector),
        "num_entries": vector.numel(),
        "norm": vector.norm(),
        "norm_by_layer": {layer: square**0.5 for layer, square in vector.layer_sum_squares().items()},
        "norm_by_kind": {name: square**0.5 for name, square in by_kind.items()},
        "split_half_cosine_by_layer": json.loads(vector.metadata.get("split_half_cosine_by_layer", "{}")),
    }


def norm_table(what: str, norms: Mapping[str, float], cosines: Mapping[str, float]) -> "Table":
    """A table of norms with bars, the largest one full; shares are of the sum of squares."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(what, "norm", "share", "", *(["split-half cosine"] if cosines else []), box=None, pad_edge=False)
    largest, total = max(norms.values(), default=0.0), sum(norm**2 for norm in norms.values())
    for name, norm in norms.items():
        bar = "█" * round(_BAR * norm / largest) if largest else ""
        share = f"{100 * norm**2 / total:.1f} %" if total else ""
        cosine = [f"{cosines[name]:+.2f}" if name in cosines else ""] if cosines else []
        table.add_row(escape(name), f"{norm:.4g}", share, bar, *cosine)
    return table


def options_parser() -> Any:
    """The parser of all options."""
    from gradsteer.options import OptionsParser

    parser = OptionsParser(
        prog="gradsteer inspect",
        description="Says what a .safetensors file of gradsteer is: its kind, piles and counts, the model that it was "
        "made on, norms by layer and by kind of parameter, and how well its halves agree. Of a LoRA adapter: its base, "
        "rank, scaling and targets, and the norms of its own tensors.",
    )
    parser.add_argument(
        "files", type=str, nargs="+",
        help="gradients/, vectors/ or second_moments/ files, or directories or hub ids of LoRA adapters.",
    )  # fmt: skip
    parser.add_argument("--json", type=bool, default=False, help="print one JSON object per file instead.")
    return parser
