"""The detailed table of results: every rate with its interval, and everything else that was measured."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradsteer.reports.cells import (
    UNSURE,
    behavior_text,
    condition_text,
    explain_marks,
    number_text,
    rate_text,
    selectivity_of,
    selectivity_text,
)
from gradsteer.reports.metric_columns import METRIC_COLUMNS, measured_metrics, metric_text
from gradsteer.reports.withheld import withheld_lines

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, Any]


def results_table(rows: Sequence[Row], title: str) -> "Table":
    """The rows as a table for a terminal: every rate with its interval and the number it rests on.

    A rate of small counts (`gradsteer.evaluation.statistics.Rate.few`) has a question mark, one that stands or falls
    with replies without a verdict an exclamation mark; the caption explains them.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    behaviors = list(dict.fromkeys(name for row in rows for name in row["behaviors"]))
    table.add_column("condition", no_wrap=True)
    for behavior in behaviors:
        table.add_column(Text(f"{behavior} % [95% interval]"), justify="right", no_wrap=True)
    corrected = [name for name in behaviors if any((row.get("corrected") or {}).get(name) for row in rows)]
    for behavior in corrected:
        table.add_column(Text(f"{behavior} % corrected"), justify="right", no_wrap=True)
    selective = any(selectivity_of(row) for row in rows)
    # what is the same everywhere is left out: nothing unscored, every step taken whole
    unscored = any(rate["num_unscored"] for row in rows for rate in row["behaviors"].values())
    withheld = any(row.get("withheld") for row in rows)
    lossy = any(row["retained_fraction"] is not None and abs(row["retained_fraction"] - 1) > 1e-3 for row in rows)
    measured = measured_metrics(rows)
    columns = [
        *(["selectivity"] if selective else []),
        "scored",
        *(["unscored"] if unscored else []),
        *(["withheld"] if withheld else []),
        *(METRIC_COLUMNS[key].heading for key in measured),
        *(["step kept"] if lossy else []),
    ]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        rates = [row["behaviors"].get(name) for name in behaviors]
        table.add_row(
            Text(condition_text(row)),
            *(Text(behavior_text(row, name)) for name in behaviors),
            *(Text(rate_text((row.get("corrected") or {}).get(name))) for name in corrected),
            *([selectivity_text(selectivity_of(row))] if selective else []),
            _joined(rate and rate["num_scored"] for rate in rates),
            *([_joined(rate and rate["num_unscored"] for rate in rates)] if unscored else []),
            *(
                [_joined(_num_withheld(row, name) for name in behaviors if name in row["behaviors"])]
                if withheld
                else []
            ),
            *(Text(metric_text(row, key)) for key in measured),
            *([number_text(row["retained_fraction"], ".3f")] if lossy else []),
        )
    unsure = any(selectivity_text(selectivity_of(row)).endswith(("?", "!")) for row in rows)
    explain_marks(table, rows, behaviors, *([UNSURE] if unsure else []), *withheld_lines(rows))
    return table


def _num_withheld(row: Row, behavior: str) -> int:
    found = (row.get("withheld") or {}).get(behavior)
    return 0 if found is None else int(found["num_withheld"])


def _joined(values: Iterable[Any]) -> str:
    """One number where all behaviors agree, otherwise all of them."""
    distinct = list(dict.fromkeys(str(value) for value in values if value is not None))
    return "/".join(distinct) or "-"
