"""Figures of an experiment, drawn with matplotlib's object interface (no global state, no display)."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette: distinguishable with any colour vision
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
_GREY = "#666666"
_PALE = ("control", "baseline")  # kinds of conditions that others are compared with


def rates_figure(rows: Sequence[Mapping[str, Any]], title: str) -> "Figure":
    """Bars of behavior rates by condition with their 95% intervals (the note's figures 1 and 2).

    Args:
        rows: conditions as results.json holds them.
        title: shown above the bars.
    """
    from matplotlib.figure import Figure

    behaviors = list(dict.fromkeys(name for row in rows for name in row["behaviors"]))
    figure = Figure(figsize=(max(6.0, 1.5 + 0.85 * len(rows)), 4.8), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(1, len(behaviors))
    for index, behavior in enumerate(behaviors):
        offset = (index - (len(behaviors) - 1) / 2) * width
        labelled = False
        for position, row in enumerate(rows):
            rate = row["behaviors"].get(behavior)
            if not rate or rate["rate"] is None:
                continue
            percent = 100 * rate["rate"]
            errors = [[percent - 100 * rate["ci_low"]], [100 * rate["ci_high"] - percent]]
            bar = axes.bar(
                position + offset, percent, width, yerr=errors, capsize=2.5, color=PALETTE[index % len(PALETTE)],
                ecolor=_GREY, error_kw={"elinewidth": 1}, label=None if labelled else behavior,
                alpha=0.55 if row["kind"] in _PALE else 1.0,
            )  # fmt: skip
            labelled = True
            axes.bar_label(bar, labels=[f"{math.floor(percent + 0.5)}"], padding=1, fontsize=7.5)
    axes.set_xticks(range(len(rows)), [row["name"].replace(" of ", "\nof ") for row in rows], rotation=35, ha="right")
    axes.tick_params(axis="x", labelsize=8)
    axes.set_ylabel("responses that show the behavior (%)")
    axes.set_ylim(0, 108)
    steered = any(row["kind"] == "steered" for row in rows)
    pale = "; pale: controls and baselines" if any(row["kind"] in _PALE for row in rows) else ""
    convention = f"\npositive alpha reduces the vector's behavior, negative raises it{pale}" if steered else ""
    axes.set_title(title + convention, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    return plain(figure)


def layer_figure(series: Mapping[str, Mapping[str, float]], title: str, *, squared: bool) -> "Figure":
    """Layerwise norms as grouped bars (the note's figures 3 to 5).

    Args:
        series: name -> layer -> sum of squares.
        title: shown above the bars.
        squared: draw the sums of squares; otherwise their square roots (L2 norms).
    """
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(layer for values in series.values() for layer in values))
    figure = Figure(figsize=(max(5.0, 1.5 + 0.45 * len(layers)), 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(1, len(series))
    for index, (name, values) in enumerate(series.items()):
        offset = (index - (len(series) - 1) / 2) * width
        heights = [values.get(layer, 0.0) if squared else values.get(layer, 0.0) ** 0.5 for layer in layers]
        positions = [position + offset for position in range(len(layers))]
        axes.bar(positions, heights, width, label=name, color=PALETTE[index % len(PALETTE)])
    axes.set_xticks(range(len(layers)), layers, rotation=0 if len(layers) < 10 else 90)
    axes.set_xlabel("layer")
    axes.set_ylabel("sum of squares" if squared else "L2 norm")
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return plain(figure)


def plain(figure: "Figure") -> "Figure":
    """Names come from configs: a dollar sign in one is no formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return figure
