"""The heat map of specificity: what every condition did to every behavior."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradsteer.reports.cells import condition_text, interval_text, is_selective, selectivity_text
from gradsteer.reports.figure_style import INK, PALETTE, WIDTH, plain, shortened
from gradsteer.reports.nulls import Nulls, is_null, nulls_by_vector, range_text
from gradsteer.reports.specificity import behaviors_of, has_few, measured_groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
_NOTHING, _NULL = "#E6E6E6", "#F3F3F3"
FRAME = 1.4  # points around the own behavior
_LONGEST = 34  # characters of a name
_SLANTED = 1.2  # inches of a column below which the names above lean
_ONE_LINE, _TWO_LINES = 1.55, 0.85  # inches that a number needs with its interval beside it, or below


@plain
def specificity_figure(rows: Sequence[Row], title: str) -> "Figure | None":
    """Shifts of log-odds as a heat map, blue for less and orange for more, with the numbers written in.

    Own behaviors are framed, shifts on small counts in italics; the selectivity stands at the right, in bold where its
    interval is above 0 however replies without a verdict are counted. Below the line is what steering is compared
    with; the nulls of a vector are one line, from the lowest shift to the highest.

    Args:
        rows: conditions as results.json holds them.
        title: shown above the matrix.

    Returns:
        None where no specificity was measured.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    groups = measured_groups(rows)
    if not groups:
        return None
    measured = [row for group in groups for row in group]
    behaviors, nulls = behaviors_of(measured), nulls_by_vector(measured)
    selective = any(row["specificity"]["selectivity"] for row in measured)
    lines: list[Row | Nulls] = [row for row in measured if not is_null(row) and row["kind"] != "base"]
    lines += [*nulls, *(row for row in measured if row["kind"] == "base")]
    values = [[_value(line, behavior) for behavior in behaviors] for line in lines]
    # the shades are the steered conditions': the base is often so far off that all others would look white
    shaded = [value for line in values[: len(groups[0])] for value in line if value is not None]
    reach = max(map(abs, shaded), default=0.0) or 1.0
    columns = len(behaviors) + selective
    room = (WIDTH - 3.6) / columns
    wide = room >= _ONE_LINE
    line_height = (0.27 if len(lines) < 30 else 0.2) if wide else 0.4
    size = (3.6 + columns * min(room, _ONE_LINE), 1.35 + line_height * len(lines))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    ramp = LinearSegmentedColormap.from_list("shift", [PALETTE[1], "#FFFFFF", PALETTE[0]])
    numbers = [[float("nan") if value is None else value for value in line] for line in values]
    image = axes.imshow(numbers, cmap=ramp.with_extremes(bad=_NOTHING), vmin=-reach, vmax=reach, aspect="auto")
    for y, line in enumerate(lines):
        for x, (text, style) in enumerate(_texts(line, behaviors)):
            value = numbers[y][x] if x < len(behaviors) else 0.0
            axes.text(
                x, y, text if wide else _narrow(text, room), ha="center", va="center",
                fontsize=7.5 if room >= _TWO_LINES else 7,
                # dark ink reads better on full orange, white on full blue
                color="white" if value < -0.72 * reach else INK, **style,
            )  # fmt: skip
        _frame(axes, y, line, behaviors)
    if len(lines) > len(groups[0]) or len(groups) > 1:
        axes.hlines(len(groups[0]) - 0.5, -0.5, columns - 0.5, color=INK, linewidth=1)
    axes.set_xlim(-0.5, columns - 0.5)
    heads = shortened([*behaviors, *(["selectivity"] if selective else [])], 24)
    axes.set_xticks(range(columns), heads)
    for label in axes.get_xticklabels() if room < _SLANTED else []:
        label.set(rotation=30, ha="left")
    names = [line.name if isinstance(line, Nulls) else condition_text(line) for line in lines]
    axes.set_yticks(range(len(lines)), shortened(names, _LONGEST))
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0, labelsize=8.5)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 2.4 / (line_height * len(lines))), aspect=18, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7.5)
    marks = "framed: the own behavior; italics, ?: fewer than 10 replies in a count"
    figure.suptitle(
        f"{title}\nnats against neither [95% interval]; {marks};\n!: hangs on replies without a verdict"
        + ("; nulls: lowest to highest" if nulls else ""),
        x=0.01, ha="left", fontsize=9,
    )  # fmt: skip
    return figure


def _narrow(text: str, room: float) -> str:
    """A text of a cell that is too narrow for it: on two lines, or without its interval."""
    if room >= _TWO_LINES:
        return text.replace(" [", "\n[")
    return text.split(" [")[0].replace(" to ", "\nto ")


def _value(line: Row | Nulls, behavior: str) -> float | None:
    """The shift that shades a cell; None where there is none, and for a range."""
    if isinstance(line, Nulls):
        return None
    value: float | None = (line["specificity"]["shifts"].get(behavior) or {}).get("log_odds_shift")
    return value


def _texts(line: Row | Nulls, behaviors: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """What is written in the cells of a line, and how."""
    if isinstance(line, Nulls):
        texts = [range_text(line.shifts(behavior), "+z.2f") for behavior in behaviors]
        selectivities = line.selectivities()
        return [(text, {}) for text in [*texts, *([range_text(selectivities, "z.2f")] if selectivities else [])]]
    found: list[tuple[str, dict[str, Any]]] = []
    for behavior in behaviors:
        shift = line["specificity"]["shifts"].get(behavior)
        text = interval_text(shift, "log_odds_shift", "+z.2f")
        text += "" if shift is None or shift.get("robust", True) else "!"
        found.append((text, {"fontstyle": "italic" if shift and has_few(shift) else "normal"}))
    if selectivity := line["specificity"]["selectivity"]:
        bold = is_selective(selectivity) and not line.get("damaged")
        found.append((selectivity_text(selectivity, "z.2f"), {"fontweight": "bold" if bold else "normal"}))
    return found


def _frame(axes: "Axes", y: int, line: Row | Nulls, behaviors: Sequence[str]) -> None:
    from matplotlib.patches import Rectangle

    if isinstance(line, Nulls):
        axes.add_patch(Rectangle((-0.5, y - 0.5), len(behaviors), 1, color=_NULL, linewidth=0))
        axes.add_patch(Rectangle((-0.5, y - 0.5), len(behaviors), 1, fill=False, edgecolor="white", linewidth=1.5))
    elif line["behavior"] in behaviors:
        x = behaviors.index(line["behavior"])
        axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, fill=False, edgecolor=INK, linewidth=FRAME))
