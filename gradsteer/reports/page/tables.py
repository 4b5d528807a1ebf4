"""The reports' tables in parts that a template lays out: the numbers are written where they always are."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradsteer.reports.cells import behavior_text, selectivity_of, selectivity_text
from gradsteer.reports.metric_columns import METRIC_COLUMNS
from gradsteer.reports.nulls import family_of, nulls_by_vector, range_text
from gradsteer.reports.tradeoffs import Tradeoff, tradeoffs

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, Any]
METRICS = frozenset(column.heading for column in METRIC_COLUMNS.values())


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: what it says.
        interval: what stands in brackets behind it, with the marks that follow.
        bold: whether it stands out.
    """

    text: str
    interval: str = ""
    bold: bool = False


@dataclass(frozen=True)
class Line:
    """A row of cells.

    Attributes:
        cells: they.
        starts: whether it begins a section.
        dim: whether it says little.
    """

    cells: list[Cell]
    starts: bool = False
    dim: bool = False


@dataclass(frozen=True)
class PageTable:
    """A table.

    Attributes:
        headings: of its columns.
        numeric: whether a column is set at the right.
        lines: its rows.
        notes: what explains it.
    """

    headings: list[str]
    numeric: list[bool]
    lines: list[Line]
    notes: list[str]


def page_table(table: "Table | None", *, without: Collection[str] = ()) -> PageTable | None:
    """A table for a terminal as one for a page.

    Args:
        table: it; None stays None.
        without: headings of columns to leave out.
    """
    if table is None:
        return None
    kept = [column for column in table.columns if str(column.header) not in without]
    columns = [list(column.cells) for column in kept]
    starts, lines = False, []
    for index, row in enumerate(table.rows):
        cells = [_cell(cells[index]) for cells in columns]
        lines.append(Line(cells, starts, "dim" in str(row.style or "")))
        starts = row.end_section
    notes = str(table.caption).splitlines() if table.caption else []
    numeric = [column.justify == "right" for column in kept]
    return PageTable([str(column.header) for column in kept], numeric, lines, notes)


def _cell(found: Any) -> Cell:
    text, bold = str(found).strip(), "bold" in str(getattr(found, "style", ""))
    number, bracket, rest = text.partition(" [")
    # a condition may be called anything: only what stands behind a number is its interval
    if bracket and number.lstrip("+-<>= ").replace(".", "", 1).isdigit():
        return Cell(number, f"[{rest}", bold)
    return Cell(text, "", bold)


def summary_table(rows: Sequence[Row]) -> PageTable | None:
    """What came out, a line for each vector: its behavior's rate at the largest dose of each sign, and selectivities.

    Args:
        rows: conditions as results.json holds them.

    Returns:
        None where no steered vector's behavior is known.
    """
    lines = [_summary(rows, each) for each in tradeoffs(rows)]
    if not lines:
        return None
    headings = ["vector", "base %", "+alpha %", "anchor %", "-alpha %", "nulls %", "selectivity, +alpha", "-alpha"]
    return PageTable(headings, [False] + [True] * 7, [Line(line) for line in lines], [])


def _summary(rows: Sequence[Row], each: Tradeoff) -> list[Cell]:
    anchor = next((row for row in each.curve if row["kind"] == "anchor"), None)
    up = each.curve[0] if (each.curve[0]["alpha"] or 0) < 0 else None
    down = each.curve[-1] if (each.curve[-1]["alpha"] or 0) > 0 else None
    vector = each.name.split(" | ")[0]
    nulls = next((found for found in nulls_by_vector(rows) if (found.vector, found.model) == (vector, "anchor")), None)
    rates = [_cell(behavior_text(row, each.target) if row else "-") for row in (each.base, down, anchor, up)]
    spread = range_text(nulls.rates(each.target), ".1f", 100) if nulls else "-"
    selectivities = [_cell(selectivity_text(selectivity_of(row)) if row else "-") for row in (down, up)]
    name = each.name if each.name == each.target else f"{each.name} (of {each.target})"
    return [Cell(name, bold=True), *rates, Cell(spread), *selectivities]


def nulls_table(rows: Sequence[Row]) -> PageTable | None:
    """The nulls of every vector as ranges; None where there are none."""
    found = nulls_by_vector(rows)
    if not found:
        return None
    behaviors = list(dict.fromkeys(name for row in rows for name in row["behaviors"]))
    lines = []
    for each in found:
        families: dict[str, int] = {}
        for row in each.rows:
            families[family_of(row)] = families.get(family_of(row), 0) + 1
        what = ", ".join(f"{number} {name}" for name, number in families.items())
        rates = [range_text(each.rates(name), ".1f", 100) for name in behaviors]
        counts = [rate["num_scored"] for row in each.rows for rate in row["behaviors"].values()]
        scored = range_text((min(counts), max(counts)), "d") if counts else "-"
        lines.append([each.name, what, *rates, range_text(each.selectivities(), "+z.2f"), scored])
    headings = ["nulls", "which", *(f"{name} %, lowest to highest" for name in behaviors)]
    headings += ["selectivity", "scored, each"]
    numeric = [False, False] + [True] * (len(headings) - 2)
    return PageTable(headings, numeric, [Line([Cell(text) for text in line]) for line in lines], [])
