"""Predictions as tables: what is forecast of every condition, and forecast beside what came out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradsteer.reports.cells import BOUND, condition_text, interval_text, is_bound, number_text, rate_text

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, Any]
_METHODS = {
    ("importance", True): "weights",
    ("importance", False): "too few weights",
    ("linear", True): "linear form",
    ("linear", False): "linear form",
    ("bound", False): "bound",
}
_COUNTS = ("num_plus", "num_minus", "num_plus_before", "num_minus_before")
WITHIN = 0.05  # of a rate: what counts as close


@dataclass(frozen=True)
class Agreement:
    """How near forecasts came, over pairs of a condition and a behavior.

    Attributes:
        num_cells: pairs that were forecast and measured.
        num_within: of these, those within 5 points.
        mean_error: mean absolute difference of the rates; None without cells.
        num_intervals: pairs of which both have intervals.
        num_consistent: of these, those that differ by no more than the two intervals let independent rates differ by;
            about 95 of 100 where the intervals are right. Within 5 points says how useful a forecast is, this whether
            it is as sure as it should be, however many responses there are.
        num_bounds: pairs of which the forecast is a bound, which is no nearer to one rate than to another: they are not
            among the others.
        num_held: of these, those whose measured interval meets the bound.
    """

    num_cells: int
    num_within: int
    mean_error: float | None
    num_intervals: int = 0
    num_consistent: int = 0
    num_bounds: int = 0
    num_held: int = 0

    def __str__(self) -> str:
        bounds = f"{self.num_held} of {self.num_bounds} within a bound" if self.num_bounds else ""
        text = self._of_cells()
        return "; ".join(part for part in (text, bounds) if part) or "none"

    def _of_cells(self) -> str:
        if not self.num_cells or self.mean_error is None:
            return ""
        share = f"{self.num_within} of {self.num_cells} ({100 * self.num_within / self.num_cells:.0f}%) within 5 points"
        text = f"{share}, mean error {100 * self.mean_error:.1f} points"
        if not self.num_intervals:
            return text
        share = f"{self.num_consistent} of {self.num_intervals} ({100 * self.num_consistent / self.num_intervals:.0f}%)"
        return f"{text}; {share} as near as their intervals allow"


Cell = tuple[Row, str, Mapping[str, Any], Mapping[str, Any]]  # row, behavior or class, forecast, measured


def cells(rows: Sequence[Row], *, classes: bool = False) -> list[Cell]:
    """Every pair of a condition and a behavior (or class of responses) that was both forecast and measured.

    The anchor is left out: what is forecast of it is what was measured. So are classes of other behaviors: ``only a``
    of two behaviors is not that of three.
    """
    found = []
    for row in rows:
        rates = (row["predicted"] or {}).get("classes" if classes else "rates") or {}
        if row["kind"] == "anchor" or (classes and set(rates) != set(row["classes"])):
            continue
        for name, measured in row["classes" if classes else "behaviors"].items():
            if name in rates and measured["rate"] is not None:
                found.append((row, name, rates[name], measured))
    return found


def agreement(rows: Sequence[Row], *, reliable: bool) -> Agreement:
    """Over the rates of which the weights say enough (`believed`), or over the others.

    Over the classes of responses; where there is but one behavior, over it.
    """
    found = cells(rows, classes=True) or cells(rows)
    every = [(forecast, measured) for row, _, forecast, measured in found if believed(row, forecast) is reliable]
    pairs = [pair for pair in every if not is_bound(pair[0])]
    bounds = [pair for pair in every if is_bound(pair[0])]
    held = sum(b["ci_low"] <= m["ci_high"] and m["ci_low"] <= b["ci_high"] for b, m in bounds)
    errors = [abs(forecast["rate"] - measured["rate"]) for forecast, measured in pairs]
    within = sum(error <= WITHIN for error in errors)
    known = [consistent for pair in pairs if (consistent := _consistent(*pair)) is not None]
    error = sum(errors) / len(errors) if errors else None
    return Agreement(len(errors), within, error, len(known), sum(known), len(bounds), held)


def believed(row: Row, rate: Mapping[str, Any]) -> bool:
    """Whether the importance weights say enough about a forecast rate; earlier files say it of whole conditions."""
    return bool(rate.get("reliable", row["predicted"]["reliable"]))


def _consistent(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool | None:
    """Whether the interval of the difference of two independent rates holds 0; None where one has no interval.

    The interval from those of the rates: the distances to the limits that face each other, squared and added
    (Newcombe 1998, Statistics in Medicine 17:873, method 10, with any intervals).
    """
    if None in (one["ci_low"], one["ci_high"], other["ci_low"], other["ci_high"]):
        return None
    below, above = sorted((one, other), key=lambda rate: float(rate["rate"]))
    reach = math.hypot(below["ci_high"] - below["rate"], above["rate"] - above["ci_low"])
    return bool(above["rate"] - below["rate"] <= reach)


def forecast_table(rows: Sequence[Row], title: str) -> "Table":
    """What is forecast of every condition; dim where the effective sample size is too small."""
    from rich.table import Table
    from rich.text import Text

    behaviors = list(dict.fromkeys(name for row in rows for name in row["behaviors"]))
    table = Table(title=Text(title), title_justify="left")
    table.add_column("condition", no_wrap=True)
    for behavior in behaviors:
        table.add_column(Text(f"{behavior} % [95% interval]"), justify="right", no_wrap=True)
    pooled = any("best_source" in row["predicted"] for row in rows)
    for column in ("effective sample", *["best file alone"] * pooled, "by", "shift", "KL a token", "tokens"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in _as_curves(rows):
        said = row["predicted"]
        shown = "not dim" if not said["reliable"] else ""  # of a rate that is known though most others are not
        table.add_row(
            Text(row["name"]),
            *(
                Text(
                    rate_text(row["behaviors"].get(name)),
                    style=shown if (rate := said["rates"].get(name)) and believed(row, rate) else "",
                )
                for name in behaviors
            ),
            f"{said['effective_sample_size']:.0f} of {said['num_responses']}",
            *([_best_source(said)] if pooled else []),
            _methods(row, behaviors),
            number_text(said["log_odds_shift"] if said["reliable"] else said["linear_log_odds_shift"], "+.2f"),
            number_text(said["kl_per_token"], ".4f"),
            number_text(said["mean_length"], ".1f"),
            style=None if said["reliable"] else "dim",
        )
    if any(is_bound(rate) for row in rows for rate in row["behaviors"].values()):
        table.caption, table.caption_justify = Text(BOUND), "left"
    return table


def _best_source(said: Mapping[str, Any]) -> str:
    """The effective sample size of the best of several files by itself, and its alpha."""
    found = said.get("best_source")
    if found is None:
        return "-"
    return f"{found['effective_sample_size']:.0f} of {found['num_responses']} (alpha {found['alpha']:+.4g})"


def _methods(row: Row, behaviors: Sequence[str]) -> str:
    """What a condition's rates are by."""
    said = row["predicted"]
    rates = [said["rates"][name] for name in behaviors if name in said["rates"]]
    found = [_METHODS[rate.get("method", said["method"]), believed(row, rate)] for rate in rates]
    return ", ".join(dict.fromkeys(found)) or _METHODS[said["method"], said["reliable"]]


def _as_curves(rows: Sequence[Row]) -> list[Row]:
    """The rows in their order, but for each vector's steps, which go from the largest alpha to the smallest."""
    place: dict[tuple[str, ...], int] = {}
    for index, row in enumerate(rows):
        place.setdefault(_curve_of(row), index)
    return sorted(rows, key=lambda row: (place[_curve_of(row)], -(row["alpha"] or 0.0)))


def _curve_of(row: Row) -> tuple[str, ...]:
    if row["predicted"]["role"] != "steered":
        return (row["name"],)
    return ("steps of", str(row["vector"]), row["model"], *row["transforms"])


def predictions_table(rows: Sequence[Row], title: str) -> "Table | None":
    """Asked, predicted and realised, for the conditions of which something was predicted; None where there are none."""
    from rich.table import Table
    from rich.text import Text

    chosen = [row for row in rows if row["predicted"] and row["kind"] != "anchor"]
    if not chosen:
        return None
    behaviors = list(dict.fromkeys(name for row in chosen for name in (row["predicted"].get("rates") or {})))
    table = Table(title=Text(title), title_justify="left")
    table.add_column("condition", no_wrap=True)
    for column in ("alpha", "norm", "shift predicted", "realised [95% interval]"):
        table.add_column(column, justify="right", no_wrap=True)
    for behavior in behaviors:
        table.add_column(Text(f"{behavior} % forecast"), justify="right", no_wrap=True)
        table.add_column("realised", justify="right", no_wrap=True)
    if behaviors:
        table.add_column("effective sample", justify="right", no_wrap=True)
    for row in chosen:
        said = row["predicted"]
        size = said.get("effective_sample_size")
        table.add_row(
            Text(condition_text(row)),
            number_text(row["alpha"], "+.4g"),
            number_text(row["relative_norm"], "+.2g"),
            number_text(predicted_shift(row), "+.2f"),
            shift_text(row["realised"]),
            *(text for name in behaviors for text in _beside(row, name)),
            *([] if not behaviors else ["-" if size is None else f"{size:.0f} of {said['num_responses']}"]),
            style="dim" if said.get("reliable") is False else None,
        )
    return table


def predicted_shift(row: Row) -> float | None:
    """The shift of log-odds that was predicted: of the calibrated slope, or else of the forecast."""
    said = row["predicted"] or {}
    for key in ("calibrated_log_odds_shift", "log_odds_shift" if said.get("reliable") else "linear_log_odds_shift"):
        if said.get(key) is not None:
            return float(said[key])
    return None


def shift_text(realised: Mapping[str, Any] | None) -> str:
    """``-0.72 [-0.95, -0.50]`` in nats, or a dash."""
    return interval_text(realised, "log_odds_shift", "+.2f")


def pooled_slope(rows: Sequence[Row]) -> tuple[float, float, float, int] | None:
    """Realised on predicted shifts of log-odds through the origin, over the steered conditions with a predicted shift.

    Where shifts were asked for, over those conditions alone.

    Returns:
        slope, and a 95% interval from the realised shifts' own intervals (conditions as independent but for the anchor
        that they share, which is counted with each), and the number of conditions; None where there are none.
    """
    asked = [row for row in rows if row["asked"] and row["asked"]["kind"] == "log_odds_shift"]
    pairs = [
        (shift, row["realised"])
        for row in asked or rows
        if row["kind"] == "steered" and row["model"] == "anchor" and row["realised"]
        if (shift := predicted_shift(row)) and row["realised"]["log_odds_shift"] is not None
        if min(row["realised"][key] for key in _COUNTS)  # an empty class has no log-odds
    ]
    if not pairs:
        return None
    squares = sum(shift**2 for shift, _ in pairs)
    slope = sum(shift * realised["log_odds_shift"] for shift, realised in pairs) / squares
    errors = [(realised["ci_high"] - realised["ci_low"]) / (2 * 1.96) for _, realised in pairs]
    error = sum((shift * e) ** 2 for (shift, _), e in zip(pairs, errors, strict=True)) ** 0.5 / squares
    return slope, slope - 1.96 * error, slope + 1.96 * error, len(pairs)


def agreement_lines(rows: Sequence[Row]) -> list[str]:
    """How near forecasts and predicted shifts came, a line for each sort of condition; none without predictions."""
    lines = []
    if cells(rows):
        lines.append("forecast rates beside those realised, of classes of responses where there are several behaviors:")
        for name, members in kinds_of(rows).items():
            good, poor = (agreement(members, reliable=reliable) for reliable in (True, False))
            if good.num_cells:
                lines.append(f"  {name}, effective sample size large enough: {good}")
            if poor.num_cells or poor.num_bounds:
                lines.append(f"  {name}, too small: {poor}")
    return [*lines, *slope_lines(rows)]


def slope_lines(rows: Sequence[Row]) -> list[str]:
    """The pooled slope of shifts as one line; none without predicted shifts."""
    if (pooled := pooled_slope(rows)) is None:
        return []
    slope, low, high, number = pooled
    said = f"{slope:.2f} [{low:.2f}, {high:.2f}], {number} conditions"
    return [f"realised on predicted shifts of log-odds, slope through 0: {said}"]


def kinds_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by what an agreement is counted over: steered, controls, and the others."""
    groups: dict[str, list[Row]] = {"steered": [], "controls": [], "baselines, base": []}
    for row in rows:
        known = {"steered": "steered", "control": "controls"} if row["model"] == "anchor" else {}
        groups[known.get(row["kind"], "baselines, base")].append(row)
    return groups


def _beside(row: Row, behavior: str) -> tuple[str, str]:
    forecast = (row["predicted"].get("rates") or {}).get(behavior)
    return rate_text(forecast), rate_text(row["behaviors"].get(behavior))
