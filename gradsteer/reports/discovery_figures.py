"""The map of responses coloured by group, and where in the weights each group lives."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradsteer.reports.figure_style import GREY, PALETTE, WIDTH, bare, plain, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@plain
def map_figure(
    points: np.ndarray, labels: Sequence[int], names: Sequence[str], is_anchor: Sequence[bool], title: str
) -> "Figure":
    """Responses in two dimensions.

    Args:
        points: (responses, 2).
        labels: the group of each; -1 for none, in grey.
        names: of the groups.
        is_anchor: whether each is the anchor's, a dot; the base's are crosses.
        title: shown above.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(min(WIDTH, 7.4), 4.6), layout="constrained")
    axes = figure.subplots()
    numbers, own = np.asarray(labels), np.asarray(is_anchor, dtype=bool)
    for number in [-1, *range(len(names))]:
        colour = GREY if number < 0 else PALETTE[number % len(PALETTE)]
        for side, marker in ((True, "o"), (False, "x")):
            chosen = (numbers == number) & (own == side)
            if chosen.any():
                who = "" if side else ", base"
                label = f"{'no group' if number < 0 else names[number]}{who} ({int(chosen.sum())})"
                across, up = points[chosen].T
                axes.scatter(across, up, s=14, marker=marker, color=colour, alpha=0.6, linewidths=0.7, label=label)
    bare(axes)
    axes.set_xlabel("first principal component of the features", fontsize=9)
    axes.set_ylabel("second", fontsize=9)
    axes.tick_params(labelsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


@plain
def layers_figure(shares: Mapping[str, Mapping[str, float]], title: str) -> "Figure":
    """Groups by layers: the share of each layer in how the group's sketches differ from the rest.

    Args:
        shares: group -> layer -> share, summing to 1.
        title: shown above.
    """
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(layer for values in shares.values() for layer in values))
    values = np.array([[found.get(layer, 0.0) for layer in layers] for found in shares.values()])
    size = (min(WIDTH, max(5.0, 2.5 + 0.5 * len(layers))), 1.3 + 0.4 * len(shares))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", cmap="Blues", vmin=0)
    axes.set_xticks(range(len(layers)), layers, fontsize=8, rotation=0 if len(layers) < 10 else 90)
    axes.set_yticks(range(len(shares)), shortened(shares, 24), fontsize=8)
    if len(layers) <= 12:
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                ink = "white" if value > 0.6 * values.max() else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
    figure.colorbar(image, ax=axes, label="share", shrink=0.9)
    axes.set_xlabel("layer", fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def discovery_figures(record: Mapping[str, Any]) -> "Iterator[tuple[str, Figure]]":
    """The pictures of a discovery.json, each after the name of its file."""
    names, at = [each["name"] for each in record["groups"]], record["map"]
    if at["points"]:
        yield (
            "discovery-map",
            map_figure(np.array(at["points"]), at["labels"], names, at["is_anchor"], "responses by group"),
        )
    if record["layers"]:
        yield "discovery-layers", layers_figure(record["layers"], "where each group lives: groups by layers")
