"""The figure of behavior rates: bars for what was asked about, grey bands for the nulls behind them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gradsteer.reports.cells import condition_text
from gradsteer.reports.figure_style import (
    BAND,
    GREY,
    INK,
    WIDTH,
    bare,
    colors_of,
    legend_below,
    paler,
    plain,
    shortened,
)
from gradsteer.reports.nulls import Nulls, is_null, nulls_by_vector, range_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
_MODEL = "#6E6E6E"  # base and anchor
_GAP = 0.7  # between groups, in bars
_LONGEST = 36  # characters of a name
_TITLES = 84  # characters above a line of panels


@dataclass
class _Group:
    """Bars that stand together: those of one vector, with its nulls behind them."""

    rows: list[Row] = field(default_factory=list)
    nulls: Nulls | None = None

    @property
    def num_lines(self) -> int:
        return len(self.rows) + (self.nulls is not None)


@plain
def rates_figure(rows: Sequence[Row], title: str) -> "Figure":
    """Behavior rates with their 95% intervals, a panel for each behavior and a bar for each condition.

    Conditions stand by vector. The nulls of a vector have no bars: a grey band behind the vector's conditions goes from
    the lowest of their rates to the highest.

    Args:
        rows: conditions as results.json holds them.
        title: shown above the panels.
    """
    from matplotlib.figure import Figure

    behaviors = list(dict.fromkeys(name for row in rows for name in row["behaviors"]))
    groups = _groups(rows)
    number = sum(group.num_lines for group in groups) + _GAP * (len(groups) - 1)
    many = number > 30
    # many bars leave no room below for another line of panels
    lines = max(1, -(-len(behaviors) // (6 if many else 4)))
    columns = max(1, -(-len(behaviors) // lines))
    height = 1.15 + lines * (0.6 + (0.19 if many else 0.25) * max(number, 2))
    figure = Figure(figsize=(min(WIDTH, 3.0 + 3.2 * columns), height), layout="constrained")
    grid = list(figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flat)
    colors, anchor = colors_of(rows), next((row for row in rows if row["kind"] == "anchor"), None)
    for axes, behavior in zip(grid, behaviors, strict=False):
        before = anchor["behaviors"].get(behavior) if anchor and len(rows) > 1 else None
        if before and before["rate"] is not None:
            axes.axvline(100 * before["rate"], color=INK, linewidth=0.8, linestyle=":", zorder=1)
        _panel(axes, groups, behavior, colors[behavior], size=7 if many else 7.5)
        (name,) = shortened([behavior], _TITLES // columns)
        axes.set_title(name, loc="left", fontsize=9.5, fontweight="bold", color=colors[behavior])
    places, names = _labels(groups)
    grid[0].set_yticks(places, shortened(names, _LONGEST))
    aside = max(0.0, (2 - number) / 2)  # a bar alone is as thin as others
    grid[0].set_ylim(number - 0.4 + aside, -0.6 - aside)
    highest = max((r["ci_high"] for row in rows for r in row["behaviors"].values() if r["rate"] is not None), default=1)
    grid[0].set_xlim(0, min(108.0, 115 * highest + 3))
    for index, axes in enumerate(grid):
        axes.tick_params(axis="y", labelsize=7.5 if many else 8.5, length=0)
        axes.tick_params(axis="x", labelsize=8, labelbottom=index + columns >= len(behaviors))
        bare(axes)
        axes.set_visible(index < len(behaviors))
    _legend(figure, rows)
    asked = {(row.get("asked") or {}).get("kind") for row in rows if row["kind"] == "steered"}
    said = ["positive alpha reduces the vector's behavior, negative raises it"] if asked - {"log_odds_shift"} else []
    said += ["shift: asked of the log-odds of the vector's behavior, nats"] if "log_odds_shift" in asked else []
    convention = "".join(f"\n{line}" for line in said)
    broken = "; ~: a model that broke" if any(row.get("damaged") for row in rows if not is_null(row)) else ""
    figure.suptitle(title + convention + broken, x=0.01, ha="left", fontsize=10)
    return figure


def _groups(rows: Sequence[Row]) -> list[_Group]:
    """Base and anchor, then every vector's conditions with its nulls, then what belongs to no vector."""
    first, last = _Group(), _Group()
    vectors: dict[tuple[str, str], _Group] = {}
    for row in rows:
        if row["vector"] is None:
            (last if row["kind"] == "baseline" else first).rows.append(row)
            continue
        group = vectors.setdefault((row["vector"], row["model"]), _Group())
        if not is_null(row):
            group.rows.append(row)
    for group in vectors.values():
        sets = list(dict.fromkeys(tuple(row["transforms"]) for row in group.rows))
        group.rows.sort(key=lambda row: _place(row, sets))
    for nulls in nulls_by_vector(rows):
        assert nulls.vector is not None
        vectors[nulls.vector, nulls.model].nulls = nulls
    return [group for group in (first, *vectors.values(), last) if group.num_lines]


def _place(row: Row, sets: Sequence[tuple[str, ...]]) -> tuple[bool, int, float]:
    """Sorts by transforms, then from the largest alpha to the smallest; baselines last."""
    if row["kind"] == "baseline":
        return True, 0, 0.0
    return False, sets.index(tuple(row["transforms"])), -(row["alpha"] or 0.0)


def _starts(groups: Sequence[_Group]) -> list[float]:
    """Where the groups' first bars are."""
    starts, at = [], 0.0
    for group in groups:
        starts.append(at)
        at += group.num_lines + _GAP
    return starts


def _labels(groups: Sequence[_Group]) -> tuple[list[float], list[str]]:
    places: list[float] = []
    names: list[str] = []
    for start, group in zip(_starts(groups), groups, strict=True):
        names += [condition_text(row) for row in group.rows] + ([group.nulls.name] if group.nulls else [])
        places += [start + index for index in range(group.num_lines)]
    return places, names


def _panel(axes: "Axes", groups: Sequence[_Group], behavior: str, color: str, *, size: float) -> None:
    for start, group in zip(_starts(groups), groups, strict=True):
        found = group.nulls.rates(behavior) if group.nulls else None
        if found:
            low, high = 100 * found[0], 100 * found[1]
            end = start + group.num_lines - 1
            axes.fill_betweenx([start - 0.5, end + 0.5], low, high, color=BAND, linewidth=0, zorder=0)
            axes.plot([low, high], [end, end], color=GREY, linewidth=2.5, solid_capstyle="butt", zorder=2)
            _number(axes, high, end, range_text(found, ".0f", 100), "#6E6E6E", size)
        for index, row in enumerate(group.rows):
            rate = row["behaviors"].get(behavior)
            if rate and rate["rate"] is not None:
                _bar(axes, start + index, row, rate, behavior, color, size)


def _bar(axes: "Axes", y: float, row: Row, rate: Mapping[str, Any], behavior: str, color: str, size: float) -> None:
    middle, low, high = (100 * rate[key] for key in ("rate", "ci_low", "ci_high"))
    baseline = row["kind"] == "baseline"
    shade = color if row["vector"] is not None or baseline else _MODEL
    if row.get("behavior") not in (None, behavior):
        shade = paler(shade)
    axes.barh(
        y, middle, 0.74, color="white" if baseline else shade, edgecolor=shade, linewidth=0.9 if baseline else 0,
        xerr=[[middle - low], [high - middle]], capsize=2, zorder=2,
        error_kw={"elinewidth": 1, "ecolor": INK, "capthick": 1},
    )  # fmt: skip
    _number(axes, high, y, _whole(middle), INK, size)


def _number(axes: "Axes", right_of: float, y: float, text: str, color: str, size: float) -> None:
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2, foreground="white")]
    axes.text(right_of + 1.5, y, text, va="center", fontsize=size, color=color, path_effects=halo)


def _legend(figure: "Figure", rows: Sequence[Row]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    kinds = {row["kind"] for row in rows}
    other = any(row.get("behavior") and len(row["behaviors"]) > 1 for row in rows)
    shown = [
        ("steered" in kinds, "steered", Patch(color=INK)),
        (other, "with another behavior's vector", Patch(color=paler(INK))),
        ("baseline" in kinds, "baseline", Patch(facecolor="white", edgecolor=INK)),
        (any(map(is_null, rows)), "the vector's nulls, lowest to highest", Patch(color=BAND)),
        ("anchor" in kinds and len(rows) > 1, "anchor", Line2D([], [], color=INK, linewidth=0.8, linestyle=":")),
    ]
    legend_below(figure, {label: handle for there, label, handle in shown if there})


def _whole(percent: float) -> str:
    return str(math.floor(percent + 0.5))
