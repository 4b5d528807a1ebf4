"""The nulls of a report: controls at the size of a vector, which reports sum up as a range."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradsteer.reports.cells import selectivity_of

Row = Mapping[str, Any]
Range = tuple[float, float]


@dataclass(frozen=True)
class Nulls:
    """The nulls of one vector.

    Attributes:
        vector: its name; None for the nulls of several vectors together.
        model: what was moved, ``anchor`` or ``base``.
        rows: as results.json holds them, at least one.
    """

    vector: str | None
    model: str
    rows: list[Row]

    @property
    def name(self) -> str:
        """``14 nulls of bridge``."""
        number = f"{len(self.rows)} null{'s' if len(self.rows) > 1 else ''}"
        whose = f" of {self.vector}" if self.vector is not None else ""
        return number + whose + (" on base" if self.model == "base" else "")

    def rates(self, behavior: str) -> Range | None:
        """The lowest and the highest rate of a behavior; None where none is known."""
        return _range((row["behaviors"].get(behavior) or {}).get("rate") for row in self.rows)

    def forecasts(self, behavior: str) -> Range | None:
        """Likewise of the forecast rates."""
        rates = (((row.get("predicted") or {}).get("rates") or {}).get(behavior) for row in self.rows)
        return _range(rate["rate"] if rate else None for rate in rates)

    def shifts(self, behavior: str) -> Range | None:
        """Likewise of the shifts of log-odds."""
        shifts = ((row.get("specificity") or {}).get("shifts", {}).get(behavior) for row in self.rows)
        return _range(shift["log_odds_shift"] if shift else None for shift in shifts)

    def selectivities(self) -> Range | None:
        """Likewise of the selectivities."""
        return _range((selectivity_of(row) or {}).get("value") for row in self.rows)


def is_null(row: Row) -> bool:
    """Whether a condition is a control of a vector; a resampled anchor is none."""
    return row["kind"] == "control" and row["vector"] is not None


def nulls_by_vector(rows: Sequence[Row]) -> list[Nulls]:
    """The nulls of every vector, in the report's order."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if is_null(row):
            groups.setdefault((row["vector"], row["model"]), []).append(row)
    return [Nulls(*key, members) for key, members in groups.items()]


def family_of(row: Row) -> str:
    """What a control or baseline is one of: ``random-1 of bridge alpha=+0.24`` -> ``random``."""
    name: str = row["name"]
    if row["vector"] is not None:
        name = re.split(rf" of {re.escape(row['vector'])}(?=[| ]|$)", name)[0]
    return re.sub(r"-\d+$", "", name) if row["kind"] == "control" else name


def range_text(found: Range | None, spec: str, scale: float = 1, *, to: str = " to ") -> str:
    """``20.9 to 49.6``, one number where both are written alike, or a dash."""
    if found is None:
        return "-"
    low, high = (format(scale * value, spec) for value in found)
    return low if low == high else f"{low}{to}{high}"


def _range(values: Iterable[float | None]) -> Range | None:
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else None
