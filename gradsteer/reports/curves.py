"""Figures of forecasts: rates against alpha, and predicted against realised."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradsteer.reports.figures import PALETTE, plain
from gradsteer.reports.predictions import cells, predicted_shift

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
_GREY = "#B0B0B0"
_COLUMNS = 3


def forecast_figure(rows: Sequence[Row], title: str) -> "Figure | None":
    """Forecast rates of every behavior against alpha, a panel for each vector and set of transforms.

    Points are importance-weighted rates with their 95% intervals, dashes the linear form; grey where the effective
    sample size is too small, and there the interval is the linear form's.

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
    figure = Figure(figsize=(1.0 + 4.3 * columns, 0.8 + 3.1 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    behaviors = list(dict.fromkeys(name for row in rows for name in row["behaviors"]))
    for axes, (key, members) in zip(grid.flat, panels.items(), strict=False):
        points = sorted([*members, *anchor], key=lambda row: row["alpha"])
        for index, behavior in enumerate(behaviors):
            _curve(axes, points, behavior, PALETTE[index % len(PALETTE)])
        axes.set_title(" | ".join(key), loc="left", fontsize=9)
        axes.axvline(0, color=_GREY, linewidth=0.8, zorder=0)
        axes.set_ylim(0, 100)
        axes.set_xlabel("alpha")
        axes.set_ylabel("responses (%)")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    grid.flat[0].legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"{title}\nnothing sampled: points by importance weights, dashes by the linear form; grey: too few weights, by "
        "the linear form",
        x=0.01,
        ha="left",
        fontsize=10,
    )
    return plain(figure)


def _curve(axes: "Axes", rows: Sequence[Row], behavior: str, color: str) -> None:
    known = [row for row in rows if behavior in row["predicted"]["rates"]]
    for row in known:
        rate = row["predicted"]["rates"][behavior]
        reliable = row["predicted"]["reliable"]
        middle = 100 * rate["rate"]
        errors = [[middle - 100 * rate["ci_low"]], [100 * rate["ci_high"] - middle]]
        axes.errorbar(
            row["alpha"], middle, yerr=errors, fmt="o", markersize=4, capsize=2, elinewidth=1,
            color=color if reliable else _GREY,
        )  # fmt: skip
    good = [row for row in known if row["predicted"]["reliable"]]
    importance = [100 * row["predicted"]["rates"][behavior]["importance"] for row in good]
    axes.plot([row["alpha"] for row in good], importance, color=color, linewidth=1, label=behavior)
    linear = [
        (row["alpha"], 100 * value)
        for row in known
        if (value := row["predicted"]["rates"][behavior]["linear"]) is not None
    ]
    if linear:
        axes.plot(*zip(*linear, strict=True), color=color, linewidth=1, linestyle="--", alpha=0.6)


def agreement_figure(rows: Sequence[Row], title: str) -> "Figure | None":
    """Predicted against realised: rates, and shifts of log-odds; None where nothing was predicted."""
    from matplotlib.figure import Figure

    rates = cells(rows)
    shifts = [
        (row, shift, row["realised"])
        for row in rows
        if row["kind"] == "steered" and row["realised"] and row["realised"]["log_odds_shift"] is not None
        if (shift := predicted_shift(row)) is not None
    ]
    if not rates and not shifts:
        return None
    number = bool(rates) + bool(shifts)
    figure = Figure(figsize=(0.6 + 4.4 * number, 4.6), layout="constrained")
    panels = list(figure.subplots(1, number, squeeze=False).flat)
    if rates:
        _rates_panel(panels[0], rates)
    if shifts:
        _shifts_panel(panels[-1], shifts)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return plain(figure)


def _rates_panel(axes: "Axes", rates: Sequence[tuple[Row, str, Mapping[str, Any], Mapping[str, Any]]]) -> None:
    behaviors = list(dict.fromkeys(behavior for _, behavior, _, _ in rates))
    axes.plot([0, 100], [0, 100], color=_GREY, linewidth=0.8)
    axes.fill_between([0, 100], [-5, 95], [5, 105], color=_GREY, alpha=0.25, linewidth=0, label="within 5 points")
    for index, behavior in enumerate(behaviors):
        labelled = False
        for row, name, forecast, measured in rates:
            if name != behavior:
                continue
            x, y = 100 * forecast["rate"], 100 * measured["rate"]
            reliable = row["predicted"]["reliable"]
            axes.errorbar(
                x, y, xerr=[[x - 100 * forecast["ci_low"]], [100 * forecast["ci_high"] - x]],
                yerr=[[y - 100 * measured["ci_low"]], [100 * measured["ci_high"] - y]], fmt="o", markersize=3.5,
                elinewidth=0.7, color=PALETTE[index % len(PALETTE)] if reliable else _GREY,
                label=behavior if reliable and not labelled else None,
            )  # fmt: skip
            labelled = labelled or reliable
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_xlabel("forecast rate (%), nothing sampled")
    axes.set_ylabel("realised rate (%)")
    axes.set_title("rates; grey: effective sample size too small", loc="left", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _shifts_panel(axes: "Axes", shifts: Sequence[tuple[Row, float, Mapping[str, Any]]]) -> None:
    vectors = list(dict.fromkeys(str(row["vector"]) for row, _, _ in shifts))
    reach = max(max(abs(shift), abs(realised["log_odds_shift"])) for _, shift, realised in shifts) * 1.15
    axes.plot([-reach, reach], [-reach, reach], color=_GREY, linewidth=0.8)
    for index, vector in enumerate(vectors):
        mine = [(shift, realised) for row, shift, realised in shifts if row["vector"] == vector]
        middles = [realised["log_odds_shift"] for _, realised in mine]
        errors = [
            [m - realised["ci_low"] for m, (_, realised) in zip(middles, mine, strict=True)],
            [realised["ci_high"] - m for m, (_, realised) in zip(middles, mine, strict=True)],
        ]
        axes.errorbar(
            [shift for shift, _ in mine], middles, yerr=errors, fmt="o", markersize=4, elinewidth=1, capsize=2,
            color=PALETTE[index % len(PALETTE)], label=vector,
        )  # fmt: skip
    axes.set_xlabel("predicted shift of log-odds (nats)")
    axes.set_ylabel("realised shift (nats)")
    axes.set_title("log-odds of the vector's behavior", loc="left", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
