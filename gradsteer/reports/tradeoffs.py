"""What steering costs: the target's rate beside perplexity, divergence, loops, refusals and length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradsteer.reports.cells import behavior_text, condition_text, explain_marks
from gradsteer.reports.metric_columns import METRIC_COLUMNS, measured_metrics, metric_text

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Tradeoff:
    """The conditions that one picture shows.

    Attributes:
        name: of the vector, with its transforms.
        target: the behavior that the vector is of.
        base: the base, where it is a condition.
        curve: the anchor and its steered conditions, from the smallest alpha to the largest.
        others: the vector's controls and baselines, and those that belong to no vector.
    """

    name: str
    target: str
    base: Row | None
    curve: list[Row]
    others: list[Row]

    @property
    def rows(self) -> list[Row]:
        """All of them: base, anchor, steered from the largest alpha to the smallest, others."""
        anchor = [row for row in self.curve if row["kind"] == "anchor"]
        steered = [row for row in reversed(self.curve) if row["kind"] != "anchor"]
        return [*([self.base] if self.base else []), *anchor, *steered, *self.others]

    @property
    def costs(self) -> list[str]:
        """The metrics that were measured of any of them, the anchor's KL to itself apart."""
        return measured_costs(self.rows)


def tradeoffs(rows: Sequence[Row]) -> list[Tradeoff]:
    """One for each vector and set of transforms that steered the anchor and whose behavior is known and was judged.

    Args:
        rows: conditions as results.json holds them.
    """
    curves: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        target = row.get("behavior")
        if row["kind"] == "steered" and row["model"] == "anchor" and target in row["behaviors"]:
            curves.setdefault((row["vector"], *row["transforms"]), []).append(row)
    base = next((row for row in rows if row["kind"] == "base"), None)
    anchor = [row for row in rows if row["kind"] == "anchor"]
    found = []
    for (vector, *transforms), steered in curves.items():
        others = [
            row
            for row in rows
            if row["kind"] in ("control", "baseline") and row["model"] == "anchor"
            if row["vector"] in (None, vector)
            if row["vector"] is None or row["kind"] == "baseline" or row["transforms"] == transforms
        ]
        curve = sorted([*anchor, *steered], key=lambda row: row["alpha"])
        found.append(Tradeoff(" | ".join([vector, *transforms]), steered[0]["behavior"], base, curve, others))
    return found


def tradeoff_table(rows: Sequence[Row], title: str = "trade-off") -> "Table | None":
    """What each condition costs, a section for each vector; conditions of no vector stand in every section.

    Rates are marked as in the table of results, and the caption explains the marks.

    Args:
        rows: conditions as results.json holds them.
        title: shown above the table.

    Returns:
        None where no steered vector's behavior is known.
    """
    from rich.table import Table
    from rich.text import Text

    sections = tradeoffs(rows)
    if not sections:
        return None
    costs = measured_costs([row for each in sections for row in each.rows])
    table = Table(title=Text(title), title_justify="left")
    table.add_column("target", no_wrap=True)
    table.add_column("condition", no_wrap=True)
    for heading in ("its % [95% interval]", *(METRIC_COLUMNS[key].heading for key in costs)):
        table.add_column(heading, justify="right", no_wrap=True)
    for section in sections:
        table.add_section()
        for index, row in enumerate(section.rows):
            table.add_row(
                Text("" if index else section.target),
                Text(condition_text(row)),
                behavior_text(row, section.target),
                *(metric_text(row, key) for key in costs),
            )
    shown = [row for each in sections for row in each.rows]
    explain_marks(table, shown, list(dict.fromkeys(each.target for each in sections)))
    return table


def measured_costs(rows: Sequence[Row]) -> list[str]:
    """The costs that were measured of any condition but the anchor, whose KL to itself needs no measuring."""
    measured = measured_metrics([row for row in rows if row["kind"] != "anchor"])
    return [key for key in measured if METRIC_COLUMNS[key].label]
