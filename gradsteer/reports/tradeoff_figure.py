"""Drawing what steering costs: the target's rate against perplexity, divergence, loops, refusals and length.

Knows of report rows; knows nothing of models.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradsteer.reports.figures import PALETTE, plain
from gradsteer.reports.label_placement import freest_side
from gradsteer.reports.results import is_robust
from gradsteer.reports.tradeoffs import COSTS, Tradeoff, cost_of, tradeoffs
from gradsteer.steering.conditions import alpha_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Row = Mapping[str, Any]
_COLUMNS = 5
_INK, _GREY = "#222222", "#8C8C8C"
_MINUS, _PLUS = PALETTE[0], PALETTE[1]  # raises, reduces
_MARKERS = ("s", "D", "^", "v", "p", "<", ">", "H", "d")
_OTHERS = (PALETTE[2], PALETTE[3], PALETTE[4], PALETTE[5])
_PANEL = (172.0, 150.0)  # its size in points, but for what the layout takes
_ALIGN = {-1: ("right", "top"), 0: ("center", "center"), 1: ("left", "bottom")}
_FROM_NOUGHT = ("degenerate", "repetition", "unfinished")

Families = Mapping[str, tuple[str, str]]  # what a control or baseline is one of -> marker, colour
Place = tuple[float, float, float, float]  # cost, rate and the ends of its interval in per cent


def tradeoff_figure(rows: Sequence[Row], title: str) -> "Figure | None":
    """The target's rate against each cost, a row of panels for each vector and set of transforms.

    One curve leads through both signs of alpha and the anchor; the largest dose of each sign is labelled. Controls
    and baselines are single markers, the base is a star. Bars are the rates' 95% intervals. A dose is hollow where
    what it did to the rate hangs on how replies without a verdict are counted: as where the replies became loops.

    Args:
        rows: conditions as results.json holds them.
        title: shown above the panels.

    Returns:
        None where no steered vector's behavior is known, or no cost was measured.
    """
    from matplotlib.figure import Figure

    drawn = [each for each in tradeoffs(rows) if each.costs]
    if not drawn:
        return None
    most = max(len(each.costs) for each in drawn)
    columns = -(-most // -(-most // _COLUMNS))  # as even as it goes
    lines = [-(-len(each.costs) // columns) for each in drawn]
    heights = [0.75 + 2.75 * number for number in lines]
    figure = Figure(figsize=(max(7.0, 0.4 + 2.9 * columns), 1.0 + sum(heights)), layout="constrained")
    blocks = figure.subfigures(len(drawn), 1, height_ratios=heights, squeeze=False).flat
    families = _families(drawn)
    entries: dict[str, Any] = dict.fromkeys(("anchor", "positive alpha", "negative alpha", "base"))
    for block, each, number in zip(blocks, drawn, lines, strict=True):
        entries.update(_block(block, each, number, columns, families))
    entries = {label: handle for label, handle in entries.items() if handle is not None}
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower left", ncols=min(len(entries), 2 * columns),
        frameon=False, fontsize=8, handletextpad=0.3, columnspacing=1.4,
    )  # fmt: skip
    fragile = any(not is_robust(row, each.target) for each in drawn for row in each.curve)
    figure.suptitle(
        f"{title}\none curve a vector: positive alpha (blue) reduces its behavior,\nnegative (orange) raises it; "
        f"bars: 95% intervals of the rate{'; hollow: hangs on replies without a verdict' if fragile else ''}",
        x=0.01, ha="left", fontsize=10,
    )  # fmt: skip
    return plain(figure)


def _block(block: "SubFigure", each: Tradeoff, lines: int, columns: int, families: Families) -> dict[str, Any]:
    """Draws one vector's panels; what its legend says."""
    grid = list(block.subplots(lines, columns, squeeze=False, sharey=True).flat)
    for index, (axes, key) in enumerate(zip(grid, each.costs, strict=False)):
        _panel(axes, each, key, families)
        axes.tick_params(labelleft=index % columns == 0)
        if index % columns == 0:
            axes.set_ylabel(f"{each.target} (% of responses)")
    for axes in grid[len(each.costs) :]:
        axes.set_visible(False)
    name = each.name if each.name == each.target else f"{each.name} (of {each.target})"
    block.suptitle(name, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return {
        label: handle
        for axes in grid[: len(each.costs)]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }


def _panel(axes: "Axes", each: Tradeoff, key: str, families: Families) -> None:
    points = [(row, place) for row in each.curve if (place := _place(row, each.target, key))]
    axes.plot([at[0] for _, at in points], [at[1] for _, at in points], color=_GREY, linewidth=1.2, zorder=1)
    if each.base and (place := _place(each.base, each.target, key)):
        _mark(axes, place, "*", _INK, "base", size=11, hollow=True)
    seen = set()
    for row in each.others:
        if place := _place(row, each.target, key):
            family = _family(row)
            marker, color = families[family]
            _mark(axes, place, marker, color, None if family in seen else family, size=7, hollow=True)
            seen.add(family)
    for row, place in points:
        if row["kind"] == "anchor":
            _mark(axes, place, "D", _INK, "anchor", size=5.5)
            continue
        color, sign = (_PLUS, "positive alpha") if row["alpha"] > 0 else (_MINUS, "negative alpha")
        hollow = not is_robust(row, each.target)
        _mark(axes, place, "o", color, None if hollow or sign in seen else sign, size=5.5, hollow=hollow)
        if hollow:
            continue
        seen.add(sign)
    places = [place for row in each.rows if (place := _place(row, each.target, key))]
    if places:
        axes.set_xlim(*_limits([place[0] for place in places], key))
    axes.set_ylim(-6, 106)
    axes.set_yticks(range(0, 101, 20))
    _label_largest(axes, points, places)
    axes.set_xlabel(COSTS[key].label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.locator_params(axis="x", nbins=5)
    axes.spines[["top", "right"]].set_visible(False)


def _mark(
    axes: "Axes", place: Place, marker: str, color: str, label: str | None, *, size: float, hollow: bool = False
) -> None:
    x, y, low, high = place
    axes.errorbar(
        x, y, yerr=[[y - low], [high - y]], fmt=marker, color=color, markersize=size, elinewidth=1, capsize=0,
        markerfacecolor="white" if hollow else color, markeredgewidth=1.3 if hollow else 0.8, label=label,
        zorder=2 if hollow else 3,  # a hollow one shows around what lies on it
    )  # fmt: skip


def _label_largest(axes: "Axes", points: Sequence[tuple[Row, Place]], places: Sequence[Place]) -> None:
    """Writes the alpha beside the largest dose of each sign, where it hides nothing."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()

    def drawn(x: float, y: float) -> tuple[float, float]:
        return (x - left) / (right - left) * _PANEL[0], (y - bottom) / (top - bottom) * _PANEL[1]

    marks = [drawn(place[0], y) for place in places for y in place[1:]]
    line = [drawn(*place[:2]) for _, place in points]
    for row, place in (points[0], points[-1]) if len(points) > 1 else points:
        if row["kind"] == "anchor":
            continue
        text = alpha_text(row["alpha"])
        x, y = freest_side(drawn(*place[:2]), (4.6 * len(text), 7.5), marks, line, _PANEL)
        gap = 7 if 0 in (x, y) else 3.5
        axes.annotate(
            text, place[:2], xytext=(gap * x, gap * y), textcoords="offset points", ha=_ALIGN[x][0], va=_ALIGN[y][1],
            fontsize=7.5, color=_PLUS if row["alpha"] > 0 else _MINUS,
        )  # fmt: skip


def _limits(values: Sequence[float], key: str) -> tuple[float, float]:
    """Room at both sides for the labels; a share of nothing but zeros is not drawn as if it varied."""
    low, high = min(values), max(values)
    if key in _FROM_NOUGHT:
        low, high = 0.0, max(high, 1.0)
    room = 0.22 * (high - low) or 0.1 * abs(high) or 0.1
    # none of the costs can be negative: no tick should say so
    least = -0.05 * (high - low) if high > low else 0.0
    return max(low - room, least), high + room


def _place(row: Row, target: str, key: str) -> Place | None:
    """Where a condition stands in a panel; None where its cost or its rate was not measured."""
    rate, cost = row["behaviors"].get(target), cost_of(row, key)
    if cost is None or not rate or rate["rate"] is None:
        return None
    return cost, 100 * rate["rate"], 100 * rate["ci_low"], 100 * rate["ci_high"]


def _family(row: Row) -> str:
    """What a control or baseline is one of: ``random-1 of bridge alpha=+0.24`` -> ``random``."""
    name = row["name"]
    if row["vector"] is not None:
        name = re.split(rf" of {re.escape(row['vector'])}(?=[| ]|$)", name)[0]
    return re.sub(r"-\d+$", "", name) if row["kind"] == "control" else name


def _families(drawn: Sequence[Tradeoff]) -> Families:
    """Marker and colour of every family, the same in all panels."""
    names = list(dict.fromkeys(_family(row) for each in drawn for row in each.others))
    return {name: (_MARKERS[i % len(_MARKERS)], _OTHERS[i % len(_OTHERS)]) for i, name in enumerate(names)}
