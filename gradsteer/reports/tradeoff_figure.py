"""Drawing what steering costs: the target's rate against perplexity, divergence, loops, refusals and length."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradsteer.reports.cells import is_robust
from gradsteer.reports.figure_style import INK, PALETTE, WIDTH, bare, colors_of, legend_below, plain
from gradsteer.reports.metric_columns import METRIC_COLUMNS, metric_of
from gradsteer.reports.nulls import family_of, is_null
from gradsteer.reports.tradeoffs import Tradeoff, tradeoffs
from gradsteer.steering.conditions import alpha_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Row = Mapping[str, Any]
_COLUMNS = 4
_NULLS = "nulls"
_MARKERS = ("s", "D", "p", "<", ">", "H", "d", "P", "X")
_FROM_NOUGHT = ("degenerate", "repetition", "unfinished", "unanswered")

Look = tuple[str, str]  # marker and colour
Place = tuple[float, float, float, float]  # cost, rate and the ends of its interval in per cent


@plain
def tradeoff_figure(rows: Sequence[Row], title: str) -> "Figure | None":
    """The target's rate against each cost, a block of panels for each vector and set of transforms.

    One curve leads through both signs of alpha and the anchor, in its behavior's colour; the block's title says the
    largest dose of each sign. Nulls are grey, baselines single markers, the base is a star. Bars are the rates' 95%
    intervals. A dose is hollow where what it did to the rate hangs on how replies without a verdict are counted: as
    where the replies became loops. A cost that is 0 under every condition has no panel.

    Args:
        rows: conditions as results.json holds them.
        title: shown above the panels.

    Returns:
        None where no steered vector's behavior is known, or no cost was measured that is not 0 everywhere.
    """
    from matplotlib.figure import Figure

    drawn = [(each, costs) for each in tradeoffs(rows) if (costs := _varying(each))]
    if not drawn:
        return None
    most = max(len(costs) for _, costs in drawn)
    columns = -(-most // -(-most // _COLUMNS))  # as even as it goes
    lines = [-(-len(costs) // columns) for _, costs in drawn]
    panel = min(2.1, max(1.5, 14 / sum(lines)))  # inches: many vectors have lower panels
    heights = [0.35 + panel * number for number in lines]
    figure = Figure(figsize=(min(WIDTH, max(7.0, 0.4 + 2.6 * columns)), 1.1 + sum(heights)), layout="constrained")
    blocks = figure.subfigures(len(drawn), 1, height_ratios=heights, squeeze=False).flat
    looks, colors = _looks([each for each, _ in drawn]), colors_of(rows)
    entries: dict[str, Any] = dict.fromkeys(("anchor", "positive alpha", "negative alpha", "base", _NULLS))
    for block, (each, costs), number in zip(blocks, drawn, lines, strict=True):
        entries.update(_block(block, each, costs, number, columns, looks, colors[each.target]))
    entries = {label: handle for label, handle in entries.items() if handle is not None}
    legend_below(figure, entries)
    fragile = any(not is_robust(row, each.target) for each, _ in drawn for row in each.curve)
    figure.suptitle(
        f"{title}\npositive alpha reduces the behavior, negative raises it; bars: 95% intervals of the rate"
        f"{'; hollow: hangs on replies without a verdict' if fragile else ''}",
        x=0.01, ha="left", fontsize=10,
    )  # fmt: skip
    return figure


def _varying(each: Tradeoff) -> list[str]:
    """The costs that are not 0 under every condition."""
    return [key for key in each.costs if any(metric_of(row, key) for row in each.rows)]


def _block(
    block: "SubFigure", each: Tradeoff, costs: Sequence[str], lines: int, columns: int, looks: Mapping[str, Look],
    color: str,
) -> dict[str, Any]:  # fmt: skip
    """Draws one vector's panels; what its legend says."""
    grid = list(block.subplots(lines, columns, squeeze=False, sharey=True).flat)
    for index, (axes, key) in enumerate(zip(grid, costs, strict=False)):
        _panel(axes, each, key, looks, color)
        axes.tick_params(labelleft=index % columns == 0)
        if index % columns == 0:
            axes.set_ylabel(f"{each.target} (%)", fontsize=9)
    for axes in grid[len(costs) :]:
        axes.set_visible(False)
    name = each.name if each.name == each.target else f"{each.name} (of {each.target})"
    doses = [row["alpha"] for row in each.curve if row["kind"] != "anchor"]
    said = " to ".join(dict.fromkeys(alpha_text(dose) for dose in (min(doses), max(doses))))
    block.suptitle(f"{name}, alpha {said}", x=0.01, ha="left", fontsize=10, fontweight="bold", color=color)
    return {
        label: handle
        for axes in grid[: len(costs)]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }


def _panel(axes: "Axes", each: Tradeoff, key: str, looks: Mapping[str, Look], color: str) -> None:
    points = [(row, place) for row in each.curve if (place := _place(row, each.target, key))]
    axes.plot([at[0] for _, at in points], [at[1] for _, at in points], color=color, linewidth=1.2, zorder=2, alpha=0.6)
    if each.base and (place := _place(each.base, each.target, key)):
        _mark(axes, place, "*", INK, "base", size=10, hollow=True)
    seen = set()
    for row in each.others:
        if place := _place(row, each.target, key):
            family = _family(row)
            marker, shade = looks[family]
            small = family == _NULLS
            label = None if family in seen else family
            _mark(axes, place, marker, shade, label, size=4 if small else 6.5, hollow=not small, behind=small)
            seen.add(family)
    for row, place in points:
        if row["kind"] == "anchor":
            _mark(axes, place, "o", INK, "anchor", size=6)
            continue
        marker, sign = ("v", "positive alpha") if row["alpha"] > 0 else ("^", "negative alpha")
        hollow = not is_robust(row, each.target)
        _mark(axes, place, marker, color, None if hollow or sign in seen else sign, size=6, hollow=hollow)
        if not hollow:
            seen.add(sign)
    places = [place for row in each.rows if (place := _place(row, each.target, key))]
    if places:
        axes.set_xlim(*_limits([place[0] for place in places], key))
    axes.set_ylim(-6, 106)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel(METRIC_COLUMNS[key].label or key, fontsize=8.5)
    axes.tick_params(labelsize=8)
    axes.locator_params(axis="x", nbins=5)
    bare(axes)


def _mark(
    axes: "Axes", place: Place, marker: str, color: str, label: str | None, *, size: float, hollow: bool = False,
    behind: bool = False,
) -> None:  # fmt: skip
    x, y, low, high = place
    axes.errorbar(
        x, y, yerr=[[y - low], [high - y]], fmt=marker, color=color, markersize=size, elinewidth=0.6 if behind else 1,
        capsize=0, markerfacecolor="white" if hollow else color, markeredgewidth=1.2 if hollow else 0.8, label=label,
        zorder=1 if behind else 3 if hollow else 4,
    )  # fmt: skip


def _limits(values: Sequence[float], key: str) -> tuple[float, float]:
    """Room at both sides."""
    low, high = min(values), max(values)
    if key in _FROM_NOUGHT:
        low, high = 0.0, max(high, 1.0)
    room = 0.12 * (high - low) or 0.1 * abs(high) or 0.1
    # none of the costs can be negative: no tick should say so
    least = -0.05 * (high - low) if high > low else 0.0
    return max(low - room, least), high + room


def _place(row: Row, target: str, key: str) -> Place | None:
    """Where a condition stands in a panel; None where its cost or its rate was not measured."""
    rate, cost = row["behaviors"].get(target), metric_of(row, key)
    if cost is None or not rate or rate["rate"] is None:
        return None
    return cost, 100 * rate["rate"], 100 * rate["ci_low"], 100 * rate["ci_high"]


def _family(row: Row) -> str:
    return _NULLS if is_null(row) else family_of(row)


def _looks(drawn: Sequence[Tradeoff]) -> dict[str, Look]:
    """Marker and colour of every control and baseline, the same in all panels."""
    names = dict.fromkeys(_family(row) for each in drawn for row in each.others)
    others = [name for name in names if name != _NULLS]
    shades = PALETTE[2:6]
    looks = {name: (_MARKERS[i % len(_MARKERS)], shades[i % len(shades)]) for i, name in enumerate(others)}
    return {_NULLS: ("o", "#B8B8B8"), **looks}
