"""What steering costs: the target's rate beside perplexity, divergence, loops, refusals and length.

Knows of report rows; knows nothing of models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from gradsteer.reports.results import behavior_text, condition_text, explain_marks, refusal_text

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, Any]


class Cost(NamedTuple):
    """How a metric is shown."""

    label: str  # of the axis
    heading: str  # of the table's column
    spec: str
    scale: float


COSTS = {
    "perplexity": Cost("perplexity, held-out text", "perplexity", ".2f", 1),
    "kl_to_anchor": Cost("KL to the anchor (nats a token)", "KL to anchor", ".4f", 1),
    "degenerate": Cost("degenerate (%)", "degenerate %", ".1f", 100),
    "repetition": Cost("with a repeated sentence (%)", "repeats %", ".1f", 100),
    "unfinished": Cost("cut by the length limit (%)", "cut %", ".1f", 100),
    "refusal_benign": Cost("benign prompts refused (%)", "benign refused % [95% interval]", ".1f", 100),
    "refusal_harmful": Cost("harmful prompts refused (%)", "harmful refused % [95% interval]", ".1f", 100),
    "refusal_benign_judged": Cost("benign refused, judged (%)", "benign judged refused % [95% interval]", ".1f", 100),
    "refusal_harmful_judged": Cost(
        "harmful refused, judged (%)", "harmful judged refused % [95% interval]", ".1f", 100
    ),
    "mean_length": Cost("mean length (tokens)", "tokens", ".1f", 1),
}


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
    for heading in ("its % [95% interval]", *(COSTS[key].heading for key in costs)):
        table.add_column(heading, justify="right", no_wrap=True)
    for section in sections:
        table.add_section()
        for index, row in enumerate(section.rows):
            table.add_row(
                Text("" if index else section.target),
                Text(condition_text(row)),
                behavior_text(row, section.target),
                *(_cost_text(row, key) for key in costs),
            )
    shown = [row for each in sections for row in each.rows]
    explain_marks(table, shown, list(dict.fromkeys(each.target for each in sections)))
    return table


def cost_of(row: Row, key: str) -> float | None:
    """What a condition costs in the unit that is shown, None where it was not measured; the anchor is 0 from itself."""
    if key == "kl_to_anchor" and row["kind"] == "anchor":
        return 0.0 if row["metrics"].get(key) is None else float(row["metrics"][key])
    value = row["metrics"].get(key)
    return None if value is None else float(value) * COSTS[key].scale


def _cost_text(row: Row, key: str) -> str:
    value = cost_of(row, key)
    return refusal_text(row, key) or ("-" if value is None else format(value, COSTS[key].spec))


def measured_costs(rows: Sequence[Row]) -> list[str]:
    """The costs that were measured of any condition but the anchor, whose KL to itself needs no measuring."""
    return [key for key in COSTS if any(row["metrics"].get(key) is not None for row in rows if row["kind"] != "anchor")]
