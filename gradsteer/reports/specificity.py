"""Specificity and comparisons as they are shown: the behaviors-by-directions matrix, its headline, and the tests.

Knows of report rows; knows nothing of models or responses.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradsteer.reports.figures import PALETTE, plain
from gradsteer.reports.results import condition_text, is_selective, selectivity_text
from gradsteer.steering.conditions import alpha_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table
    from rich.text import Text

Row = Mapping[str, Any]
_FEW = 10
_COUNTS = ("num_shown", "num_neither", "num_shown_before", "num_neither_before")
_ORDER = ("steered", "baseline", "control", "base")
_LEVEL = 0.05
_INK, _NOTHING = "#222222", "#E6E6E6"


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

    groups = _groups(rows)
    if not groups:
        return None
    behaviors = _behaviors(row for group in groups for row in group)
    caption = "nats against neither; *: the condition's own behavior; ?: fewer than 10 replies in a count"
    if not all(_is_robust(row) for group in groups for row in group):
        caption += "; !: on which side of 0 it is, or whether the interval holds 0, hangs on replies without a verdict"
    caption += _broken(row for group in groups for row in group)
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


def specificity_figure(rows: Sequence[Row], title: str) -> "Figure | None":
    """The same matrix as a heat map, blue for less and orange for more, with the numbers written in.

    Own behaviors are framed, shifts on small counts in italics; the selectivity stands at the right, in bold where its
    interval is above 0 however replies without a verdict are counted. Baselines and controls are below the line.

    Args:
        rows: conditions as results.json holds them.
        title: shown above the matrix.

    Returns:
        None where no specificity was measured.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    groups = _groups(rows)
    if not groups:
        return None
    ordered = [row for group in groups for row in group]
    behaviors = _behaviors(ordered)
    selective = any(row["specificity"]["selectivity"] for row in ordered)
    values = [
        [(row["specificity"]["shifts"].get(behavior) or {}).get("log_odds_shift") for behavior in behaviors]
        for row in ordered
    ]
    # the shades are the steered conditions': the base is often so far off that all others would look white
    shaded = [value for line in values[: len(groups[0])] for value in line if value is not None]
    reach = max(map(abs, shaded), default=0.0) or 1.0
    columns = len(behaviors) + selective
    figure = Figure(figsize=(4.4 + 1.25 * columns, 1.7 + 0.44 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    ramp = LinearSegmentedColormap.from_list("shift", [PALETTE[1], "#FFFFFF", PALETTE[0]])
    numbers = [[float("nan") if value is None else value for value in line] for line in values]
    image = axes.imshow(numbers, cmap=ramp.with_extremes(bad=_NOTHING), vmin=-reach, vmax=reach, aspect="auto")
    for y, row in enumerate(ordered):
        for x, behavior in enumerate(behaviors):
            _cell(axes, x, y, row["specificity"]["shifts"].get(behavior), reach, own=behavior == row["behavior"])
        if selectivity := row["specificity"]["selectivity"]:
            text = selectivity_text(selectivity, "z.2f").replace(" [", "\n[")
            weight = "bold" if is_selective(selectivity) and not row.get("damaged") else "normal"
            axes.text(len(behaviors), y, text, ha="center", va="center", fontsize=7.5, fontweight=weight, color=_INK)
    ends = [sum(map(len, groups[: index + 1])) - 0.5 for index in range(len(groups) - 1)]
    axes.hlines(ends, -0.5, columns - 0.5, color=_INK, linewidth=1)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_xticks(range(columns), [*behaviors, *(["selectivity"] if selective else [])])
    axes.set_yticks(range(len(ordered)), [condition_text(row) for row in ordered])
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0, labelsize=8.5)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 8 / len(ordered)), aspect=18, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7.5)
    figure.suptitle(
        f"{title}\nchange of log-odds against neither, nats [95% interval]\n"
        "framed: the own behavior; italics, ?: fewer than 10 replies in a count; !: hangs on replies without a verdict",
        x=0.01, ha="left", fontsize=9.5,
    )  # fmt: skip
    return plain(figure)


def _cell(axes: "Axes", x: int, y: int, shift: Mapping[str, Any] | None, reach: float, *, own: bool) -> None:
    from matplotlib.patches import Rectangle

    value = shift["log_odds_shift"] if shift else None
    text = "-" if shift is None else _interval(shift, "log_odds_shift", "+z.2f").replace(" [", "\n[")
    text += "" if shift is None or shift.get("robust", True) else "!"
    axes.text(
        x, y, text, ha="center", va="center", fontsize=7.5,
        # dark ink reads better on full orange, white on full blue
        color="white" if value is not None and value < -0.72 * reach else _INK,
        fontstyle="italic" if shift and _few(shift) else "normal",
    )  # fmt: skip
    if own:
        axes.add_patch(Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, fill=False, edgecolor=_INK, linewidth=1.6))


def comparison_table(
    rows: Sequence[Row], title: str = "differences from the anchor (on base: from the base)"
) -> "Table | None":
    """Every condition's difference from the model that it started from, in points, with its interval and p-values.

    A line for each behavior that any prompt differs in under any of the conditions; the others are named below. An
    asterisk marks a Holm-corrected p of at most .05, a question mark small counts, an exclamation mark a finding that
    another way to count replies without a verdict would change.

    Args:
        rows: conditions as results.json holds them.
        title: shown above the table.

    Returns:
        None where nothing was compared.
    """
    from rich.table import Table
    from rich.text import Text

    compared = [row for row in rows if row.get("comparisons")]
    if not compared:
        return None
    caption = "paired by prompt; p (Holm) is corrected over this table; *: at most .05; ?: small counts"
    fragile = any(not each.get("robust", True) for row in compared for each in row["comparisons"].values())
    if fragile:
        caption += "; !: whether p is at most .05, or the sign, hangs on how replies without a verdict are counted"
    still = _never_differing([row["comparisons"] for row in compared])
    if still:
        caption += f"\nno prompt differs under any condition, and the correction counts it: {', '.join(still)}"
    caption += _broken(compared)
    table = Table(title=Text(title), title_justify="left", caption=Text(caption), caption_justify="left")
    table.add_column("condition", no_wrap=True)
    table.add_column("behavior", no_wrap=True)
    for heading in ("points [95% interval]", "p", "p (Holm)"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("test", no_wrap=True)
    for row in compared:
        table.add_section()
        shown = [(behavior, each) for behavior, each in row["comparisons"].items() if behavior not in still]
        for index, (behavior, each) in enumerate(shown):
            points = {key: _times(each[key], 100) for key in ("difference", "ci_low", "ci_high")}
            marks = "?" if each.get("few") else " "
            if fragile:
                marks += " " if each.get("robust", True) else "!"
            certain = each["p_holm"] is not None and each["p_holm"] <= _LEVEL
            table.add_row(
                Text("" if index else condition_text(row)),
                Text(behavior),
                Text(_interval(points, "difference", "+z.1f") + marks, style="bold" if certain else ""),
                _p_text(each["p"]),
                _p_text(each["p_holm"]) + ("*" if certain else " "),
                Text(each["test"] or "-"),
            )
    return table


def _broken(rows: Iterable[Row]) -> str:
    """What the tilde behind a name means, where one has it."""
    return "; ~: a model that broke, see the table of results" if any(row.get("damaged") for row in rows) else ""


def _never_differing(compared: Sequence[Mapping[str, Row]]) -> list[str]:
    """Behaviors in which no prompt of any condition differs, whatever the replies without a verdict would have shown.

    None of them where that leaves no line to show.
    """

    def may_differ(found: Row) -> bool:
        return bool(found.get("num_differing", 1) or not found.get("num_pairs", 1) or not found.get("robust", True))

    names = list(dict.fromkeys(name for comparisons in compared for name in comparisons))
    moved = {name for comparisons in compared for name, found in comparisons.items() if may_differ(found)}
    return [name for name in names if name not in moved] if moved else []


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Measured conditions in the report's order: steered ones, and what they are compared with; no group is empty."""
    measured = sorted(
        (row for row in rows if row.get("specificity") and row["kind"] in _ORDER),
        key=lambda row: _ORDER.index(row["kind"]),
    )
    steered = [row for row in measured if row["kind"] == "steered"]
    return [group for group in (steered, measured[len(steered) :]) if group]


def _behaviors(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["specificity"]["shifts"]))


def _shift_cell(shift: Mapping[str, Any] | None, *, own: bool) -> "Text":
    from rich.text import Text

    if shift is None:
        return Text("-")
    marks = ("*" if own else " ") + ("?" if _few(shift) else " ") + ("" if shift.get("robust", True) else "!")
    return Text(_interval(shift, "log_odds_shift", "+z.2f") + marks, style="bold" if own else "")


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


def _few(shift: Mapping[str, Any]) -> bool:
    """Whether one of the counts is small; those before may not be there."""
    return any(shift[key] < _FEW for key in _COUNTS if key in shift)


def _interval(found: Mapping[str, Any], key: str, spec: str) -> str:
    """``-2.10 [-2.40, -1.80]``, or a dash."""
    if found[key] is None:
        return "-"
    return f"{found[key]:{spec}} [{found['ci_low']:{spec}}, {found['ci_high']:{spec}}]"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+z.2f}"


def _times(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale


def _p_text(p: float | None) -> str:
    if p is None:
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"
