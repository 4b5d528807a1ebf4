"""The figure of layerwise norms of steering vectors."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gradsteer.reports.figure_style import GREY, PALETTE, WIDTH, bare, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_BARS = 60  # more than these side by side are too thin: a panel for each vector


@plain
def layer_figure(series: Mapping[str, Mapping[str, float]], title: str, *, squared: bool) -> "Figure":
    """Layerwise norms as bars (the note's figures 3 to 5): side by side, or a panel for each where there are many.

    Args:
        series: name -> layer -> sum of squares.
        title: shown above the bars.
        squared: draw the sums of squares; otherwise their square roots (L2 norms).
    """
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(layer for values in series.values() for layer in values))
    together = len(series) * len(layers) <= _MOST_BARS
    lines = 1 if together else len(series)
    size = (min(WIDTH, max(5.0, 1.5 + 0.45 * len(layers))), 3.6 if lines == 1 else 1.0 + 1.35 * lines)
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(lines, 1, squeeze=False, sharex=True).flat)
    width = 0.8 / (max(1, len(series)) if together else 1)
    for index, (name, values) in enumerate(series.items()):
        axes = panels[0 if together else index]
        offset = (index - (len(series) - 1) / 2) * width if together else 0.0
        heights = [values.get(layer, 0.0) if squared else values.get(layer, 0.0) ** 0.5 for layer in layers]
        positions = [position + offset for position in range(len(layers))]
        axes.bar(positions, heights, width, label=name, color=PALETTE[index % len(PALETTE)])
        if not together:
            axes.set_title(name, loc="left", fontsize=8.5)
    for axes in panels:
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        bare(axes)
    panels[-1].set_xticks(range(len(layers)), layers, rotation=0 if len(layers) < 10 else 90)
    if len(layers) > 40:
        panels[-1].tick_params(axis="x", labelsize=7)
    panels[-1].set_xlabel("layer", fontsize=9)
    figure.supylabel("sum of squares" if squared else "L2 norm", fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    if together and series:
        figure.legend(loc="outside upper right", ncols=min(6, len(series)), frameon=False, fontsize=8)
    return figure
