"""Reports of judged conditions: results.json, and the flat results.csv beside it."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradsteer.records import read_json, write_json, write_text
from gradsteer.reports.flat_rows import flatten

FORMAT_VERSION = 1
Row = Mapping[str, Any]


def write_results(
    path: Path,
    experiment: str,
    rows: Sequence[Row],
    *,
    note: str | None = None,
    forecast: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    precision_check: Sequence[Row] = (),
) -> None:
    """Writes the report and, beside it, the same rows as CSV; each under a temporary name first.

    Args:
        path: where the JSON goes; the CSV has the same stem.
        experiment: name of the experiment.
        rows: as `gradsteer.steering.conditions.Condition.row` gives them, in the config's order.
        note: what a reader of the numbers must know.
        forecast: what a forecast is made from; its presence says that the rows are forecasts.
        evaluation: what was sampled and judged, and how.
        precision_check: what steps in half precision did beside float32.
    """
    report: dict[str, Any] = {"format": FORMAT_VERSION, "experiment": experiment, "note": note}
    if forecast is not None:
        report["forecast"] = dict(forecast)
    if evaluation is not None:
        report["evaluation"] = dict(evaluation)
    if precision_check:
        report["precision_check"] = list(precision_check)
    write_json(path, {**report, "conditions": list(rows)})
    flat = [flatten(row) for row in rows]
    # in the order of the fullest row: the base has no selectivity, say
    columns = list(dict.fromkeys(column for row in sorted(flat, key=len, reverse=True) for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_text(path.with_suffix(".csv"), text.getvalue())


def read_results(path: str | Path) -> dict[str, Any]:
    """Reads a report that `write_results` wrote.

    Raises:
        ValueError: another format version.
    """
    results = read_json(path)
    if results.get("format") != FORMAT_VERSION:
        raise ValueError(f"{str(path)!r} has format {results.get('format')!r}; this gradsteer reads {FORMAT_VERSION}")
    return results
