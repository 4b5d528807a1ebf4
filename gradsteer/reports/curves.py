"""Figures of forecasts: rates against alpha, and predicted against realised."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradsteer.reports.cells import is_bound
from gradsteer.reports.figure_style import BAND, GREY, INK, WIDTH, bare, colors_of, legend_below, plain
from gradsteer.reports.nulls import is_null
from gradsteer.reports.predictions import Cell, believed, cells, predicted_shift

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
_GREY = "#B0B0B0"
_COLUMNS = 3


@plain
def forecast_figure(rows: Sequence[Row], title: str) -> "Figure | None":
    """Forecast rates of every behavior against alpha, a panel for each vector and set of transforms.

    Points are importance-weighted rates with their 95% intervals, dashes the linear form; grey where the effective
    sample size is too small, and there the interval is the linear form's. A bar without a point is a bound.

    Args:
        rows: of forecast.json.
        title: shown above the panels.

    Returns:
        None where no condition is steered.
    """
    from matplotlib.figure import Figure

    anchor = [row for row in rows if row["predicted"]["role"] == "anchor"]
    panels: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row["predicted"]["role"] == "steered" and row["model"] == "anchor":
            panels.setdefault((row["vector"], *row["transforms"]), []).append(row)
    if not panels:
        return None
    columns = min(_COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    panel = min(2.6, max(1.7, 12 / lines))  # inches: many panels are lower
    figure = Figure(figsize=(min(WIDTH, 0.8 + 4.2 * columns), 1.0 + panel * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    behaviors = list(dict.fromkeys(name for row in rows for name in row["behaviors"]))
    colors = colors_of(rows)
    for axes, (key, members) in zip(grid.flat, panels.items(), strict=False):
        points = sorted([*members, *anchor], key=lambda row: row["alpha"])
        for behavior in behaviors:
            _curve(axes, points, behavior, colors[behavior])
        axes.set_title(" | ".join(key), loc="left", fontsize=9, fontweight="bold", color=colors.get(key[0], INK))
        axes.axvline(0, color=_GREY, linewidth=0.8, zorder=0)
        axes.set_ylim(0, 100)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=6)
        bare(axes)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel("alpha", fontsize=9)
    figure.supylabel("responses (%)", fontsize=9)
    known = dict(zip(*reversed(grid.flat[0].get_legend_handles_labels()), strict=True))
    figure.legend(known.values(), known.keys(), loc="outside upper right", ncols=4, frameon=False, fontsize=8)
    figure.suptitle(
        f"{title}\npoints: importance weights; dashes: linear form; grey: too few weights, by the linear form",
        x=0.01,
        ha="left",
        fontsize=10,
    )
    return figure


def _curve(axes: "Axes", rows: Sequence[Row], behavior: str, color: str) -> None:
    known = [row for row in rows if behavior in row["predicted"]["rates"]]
    for row in known:
        rate = row["predicted"]["rates"][behavior]
        reliable = believed(row, rate)
        if is_bound(rate):
            axes.vlines(row["alpha"], 100 * rate["ci_low"], 100 * rate["ci_high"], color=_GREY, linewidth=1)
            continue
        middle = 100 * rate["rate"]
        errors = [[middle - 100 * rate["ci_low"]], [100 * rate["ci_high"] - middle]]
        axes.errorbar(
            row["alpha"], middle, yerr=errors, fmt="o", markersize=4, capsize=2, elinewidth=1,
            color=color if reliable else _GREY,
        )  # fmt: skip
    good = [row for row in known if believed(row, row["predicted"]["rates"][behavior])]
    importance = [100 * row["predicted"]["rates"][behavior]["importance"] for row in good]
    axes.plot([row["alpha"] for row in good], importance, color=color, linewidth=1, label=behavior)
    linear = [
        (row["alpha"], 100 * value)
        for row in known
        if (value := row["predicted"]["rates"][behavior]["linear"]) is not None
    ]
    if linear:
        axes.plot(*zip(*linear, strict=True), color=color, linewidth=1, linestyle="--", alpha=0.6)


@plain
def agreement_figure(rows: Sequence[Row], title: str) -> "Figure | None":
    """Predicted against realised: rates, and shifts of log-odds; None where nothing was predicted."""
    from matplotlib.figure import Figure

    rates = [cell for cell in cells(rows) if not is_bound(cell[2])]
    shifts = [
        (row, shift, row["realised"])
        for row in rows
        if row["kind"] == "steered" and row["realised"] and row["realised"]["log_odds_shift"] is not None
        if (shift := predicted_shift(row)) is not None
    ]
    if not rates and not shifts:
        return None
    number = bool(rates) + bool(shifts)
    figure = Figure(figsize=(0.6 + 4.4 * number, 4.9), layout="constrained")
    panels = list(figure.subplots(1, number, squeeze=False).flat)
    colors = colors_of(rows)
    if rates:
        _rates_panel(panels[0], rates, colors)
    if shifts:
        _shifts_panel(panels[-1], shifts, colors)
    for axes in panels:
        axes.tick_params(labelsize=8)
        bare(axes)
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    legend_below(figure, handles)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def _rates_panel(axes: "Axes", rates: Sequence[Cell], colors: Mapping[str, str]) -> None:
    axes.plot([0, 100], [0, 100], color=_GREY, linewidth=0.8, zorder=0)
    axes.fill_between([0, 100], [-5, 95], [5, 105], color=BAND, linewidth=0, label="within 5 points", zorder=0)
    groups: dict[tuple[str, bool, bool], list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    for row, name, forecast, measured in rates:
        groups.setdefault((name, believed(row, forecast), is_null(row)), []).append((forecast, measured))
    for (name, reliable, quiet), pairs in groups.items():
        forecasts, realised = (_with_errors(side) for side in zip(*pairs, strict=True))
        axes.errorbar(
            forecasts[0], realised[0], xerr=forecasts[1], yerr=realised[1], fmt="o",
            markersize=2.5 if quiet else 4.5, elinewidth=0.4 if quiet else 0.8, color=colors[name],
            alpha=0.45 if quiet else 1.0, markerfacecolor=colors[name] if reliable else "white",
            zorder=1 if quiet else 2,
        )  # fmt: skip
    for name in dict.fromkeys(name for _, name, _, _ in rates):
        axes.plot([], [], "o", markersize=4.5, color=colors[name], label=name)
    if any(not believed(row, forecast) for row, _, forecast, _ in rates):
        axes.plot([], [], "o", markersize=4.5, color=GREY, markerfacecolor="white", label="too few effective samples")
    if any(is_null(row) for row, _, _, _ in rates):
        axes.plot([], [], "o", markersize=2.5, color=GREY, label="nulls")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_xlabel("forecast rate (%), nothing sampled", fontsize=9)
    axes.set_ylabel("realised rate (%)", fontsize=9)
    axes.set_title("rates", loc="left", fontsize=9.5, fontweight="bold")


def _with_errors(rates: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[list[float]]]:
    """Rates in per cent, and how far their intervals reach below and above."""
    middles = [100 * rate["rate"] for rate in rates]
    below = [middle - 100 * rate["ci_low"] for middle, rate in zip(middles, rates, strict=True)]
    above = [100 * rate["ci_high"] - middle for middle, rate in zip(middles, rates, strict=True)]
    return middles, [below, above]


def _shifts_panel(
    axes: "Axes", shifts: Sequence[tuple[Row, float, Mapping[str, Any]]], colors: Mapping[str, str]
) -> None:
    reach = max(max(abs(shift), abs(realised["log_odds_shift"])) for _, shift, realised in shifts) * 1.15
    axes.plot([-reach, reach], [-reach, reach], color=_GREY, linewidth=0.8, zorder=0)
    for row, shift, realised in shifts:
        middle = realised["log_odds_shift"]
        axes.errorbar(
            shift, middle, yerr=[[middle - realised["ci_low"]], [realised["ci_high"] - middle]], fmt="o",
            markersize=4.5, elinewidth=1, capsize=2, color=colors[str(row["vector"])],
        )  # fmt: skip
    for vector in dict.fromkeys(str(row["vector"]) for row, _, _ in shifts):
        axes.plot([], [], "o", markersize=4.5, color=colors[vector], label=vector)
    axes.set_xlabel("predicted shift of log-odds (nats)", fontsize=9)
    axes.set_ylabel("realised shift (nats)", fontsize=9)
    axes.set_title("log-odds of the vector's behavior", loc="left", fontsize=9.5, fontweight="bold")
