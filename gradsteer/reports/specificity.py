"""Specificity as it is shown: the behaviors-by-directions matrix as a table, and its headline."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradsteer.reports.cells import (
    broken_text,
    condition_text,
    interval_text,
    is_selective,
    number_text,
    selectivity_text,
)
from gradsteer.steering.conditions import alpha_text

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

Row = Mapping[str, Any]
_FEW = 10
_COUNTS = ("num_shown", "num_neither", "num_shown_before", "num_neither_before")
_ORDER = ("steered", "baseline", "control", "base")


def specificity_table(rows: Sequence[Row], title: str = "specificity") -> "Table | None":
    """Every condition's shift of every behavior's log-odds against NEITHER, in nats, with its 95% interval.

    Steered conditions first, baselines and controls below. A condition's own behavior is marked with an asterisk, a
    shift that stands on fewer than 10 replies in one of its counts with a question mark.

    Args:
        rows: conditions as results.json holds them.
        title: shown above the table.

    Returns:
        None where no specificity was measured.
    """
    from rich.table import Table
    from rich.text import Text

    groups = measured_groups(rows)
    if not groups:
        return None
    behaviors = behaviors_of(row for group in groups for row in group)
    caption = "nats against neither; *: the condition's own behavior; ?: fewer than 10 replies in a count"
    if not all(_is_robust(row) for group in groups for row in group):
        caption += "; !: on which side of 0 it is, or whether the interval holds 0, hangs on replies without a verdict"
    caption += broken_text(row for group in groups for row in group)
    table = Table(title=Text(title), title_justify="left", caption=caption, caption_justify="left")
    table.add_column("condition", no_wrap=True)
    for behavior in behaviors:
        table.add_column(Text(f"{behavior} [95% interval]"), justify="right", no_wrap=True)
    selective = any(row["specificity"]["selectivity"] for group in groups for row in group)
    if selective:
        table.add_column("selectivity [95% interval]", justify="right", no_wrap=True)
    for group in groups:
        table.add_section()
        for row in group:
            shifts = row["specificity"]["shifts"]
            cells = [_shift_cell(shifts.get(behavior), own=behavior == row["behavior"]) for behavior in behaviors]
            table.add_row(Text(condition_text(row)), *cells, *([_selectivity_cell(row)] if selective else []))
    return table


def headline(rows: Sequence[Row]) -> list[str]:
    """One line for each direction and sign, at its largest dose: what is printed above the table.

    ``bridge: selectivity 1.23 [0.80, 1.61] nats at alpha=+0.24 (own -2.10, largest other recipe -0.70)``; the two in
    brackets are the shifts themselves.

    Args:
        rows: conditions as results.json holds them.
    """
    largest: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        measured = row.get("specificity")
        if row["kind"] != "steered" or not measured or not row["alpha"] or row["behavior"] not in measured["shifts"]:
            continue
        key = (row["vector"], *row["transforms"], row["model"], row["alpha"] > 0)
        if key not in largest or abs(row["alpha"]) > abs(largest[key]["alpha"]):
            largest[key] = row
    order: dict[tuple[Any, ...], None] = dict.fromkeys(key[:-1] for key in largest)
    ordered = (largest[*key, sign] for key in order for sign in (True, False) if (*key, sign) in largest)
    return [_line(row) for row in ordered]


def _line(row: Row) -> str:
    name = " | ".join([row["vector"], *row["transforms"]]) + (" on base" if row["model"] == "base" else "")
    shifts, selectivity = row["specificity"]["shifts"], row["specificity"]["selectivity"]
    own = _signed(shifts[row["behavior"]]["log_odds_shift"])
    where = f"at alpha={alpha_text(row['alpha'])}"
    broken = f"; a model that broke: see {', '.join(row['damaged'])}" if row.get("damaged") else ""
    if selectivity is None:
        return f"{name}: own shift {own} nats {where}; selectivity not measured{broken}"
    other = selectivity["largest_other"]
    return (
        f"{name}: selectivity {selectivity_text(selectivity, 'z.2f')} nats {where} "
        f"(own {own}, largest other {other} {_signed(shifts[other]['log_odds_shift'])}){broken}"
    )


def measured_groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Measured conditions in the report's order: steered ones, and what they are compared with; no group is empty."""
    measured = sorted(
        (row for row in rows if row.get("specificity") and row["kind"] in _ORDER),
        key=lambda row: _ORDER.index(row["kind"]),
    )
    steered = [row for row in measured if row["kind"] == "steered"]
    return [group for group in (steered, measured[len(steered) :]) if group]


def behaviors_of(rows: Iterable[Row]) -> list[str]:
    """The behaviors whose shifts were measured, in the report's order."""
    return list(dict.fromkeys(name for row in rows for name in row["specificity"]["shifts"]))


def _shift_cell(shift: Mapping[str, Any] | None, *, own: bool) -> "Text":
    from rich.text import Text

    if shift is None:
        return Text("-")
    marks = ("*" if own else " ") + ("?" if has_few(shift) else " ") + ("" if shift.get("robust", True) else "!")
    return Text(interval_text(shift, "log_odds_shift", "+z.2f") + marks, style="bold" if own else "")


def _selectivity_cell(row: Row) -> "Text":
    from rich.text import Text

    selectivity = row["specificity"]["selectivity"]
    if selectivity is None:
        return Text("-")
    return Text(selectivity_text(selectivity), style="bold" if is_selective(selectivity) else "")


def _is_robust(row: Row) -> bool:
    """Whether all that is shown of a condition holds however replies without a verdict are counted."""
    measured = row["specificity"]
    return all(each.get("robust", True) for each in (*measured["shifts"].values(), measured["selectivity"] or {}))


def has_few(shift: Mapping[str, Any]) -> bool:
    """Whether one of the counts is small; those before may not be there."""
    return any(shift[key] < _FEW for key in _COUNTS if key in shift)


def _signed(value: float | None) -> str:
    return number_text(value, "+z.2f")
