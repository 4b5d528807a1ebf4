"""Reports of judged conditions: results.json, the flat results.csv beside it, and the table on the screen."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsteer.records import write_json, write_text

if TYPE_CHECKING:
    from rich.table import Table

FORMAT_VERSION = 1
Row = Mapping[str, Any]


def write_results(
    path: Path,
    experiment: str,
    rows: Sequence[Row],
    *,
    note: str | None = None,
    forecast: Mapping[str, Any] | None = None,
) -> None:
    """Writes the report and, beside it, the same rows as CSV; each under a temporary name first.

    Args:
        path: where the JSON goes; the CSV has the same stem.
        experiment: name of the experiment.
        rows: as `gradsteer.conditions.Condition.row` gives them, in the config's order.
        note: what a reader of the numbers must know.
        forecast: what a forecast is made from; its presence says that the rows are forecasts.
    """
    report: dict[str, Any] = {"format": FORMAT_VERSION, "experiment": experiment, "note": note}
    if forecast is not None:
        report["forecast"] = dict(forecast)
    write_json(path, {**report, "conditions": list(rows)})
    flat = [flatten(row) for row in rows]
    columns = list(dict.fromkeys(column for row in flat for column in row))
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
    results: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    if results.get("format") != FORMAT_VERSION:
        raise ValueError(f"{str(path)!r} has format {results.get('format')!r}; this gradsteer reads {FORMAT_VERSION}")
    return results


def flatten(row: Row) -> dict[str, Any]:
    """One level of keys: ``bridge_rate``, ``bridge_ci_low``, ..., ``perplexity``; lists joined by a plus sign."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if key in ("behaviors", "classes"):
            for behavior, rate in value.items():
                flat.update({f"{behavior}_{field}": number for field, number in rate.items()})
        elif key == "metrics":
            flat.update(value)
        elif key == "predicted":
            flat.update({f"predicted_{name}": number for name, number in _flat_prediction(value or {}).items()})
        elif key == "realised":
            flat.update({f"realised_{name}": number for name, number in (value or {}).items()})
        elif key == "asked":
            flat["asked"], flat["asked_value"] = (value["kind"], value["value"]) if value else (None, None)
        else:
            flat[key] = "+".join(value) if isinstance(value, list) else value
    return flat


def _flat_prediction(predicted: Mapping[str, Any]) -> dict[str, Any]:
    rates = {**predicted.get("rates", {}), **predicted.get("classes", {})}
    flat = {key: value for key, value in predicted.items() if key not in ("rates", "classes")}
    return {**flat, **{f"{name}_{key}": number for name, rate in rates.items() for key, number in rate.items()}}


def results_table(rows: Sequence[Row], title: str) -> "Table":
    """The rows as a table for a terminal: every rate with its interval and the number it rests on."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    behaviors = list(dict.fromkeys(name for row in rows for name in row["behaviors"]))
    table.add_column("condition", no_wrap=True)
    for behavior in behaviors:
        table.add_column(Text(f"{behavior} % [95% interval]"), justify="right", no_wrap=True)
    # what is the same everywhere is left out: nothing unscored, every step taken whole
    unscored = any(rate["num_unscored"] for row in rows for rate in row["behaviors"].values())
    lossy = any(row["retained_fraction"] is not None and abs(row["retained_fraction"] - 1) > 1e-3 for row in rows)
    optional = [*(["unscored"] if unscored else []), *(["step kept"] if lossy else [])]
    for column in ("scored", "perplexity", "repeats %", "distinct-2", "tokens", "cut %", *optional):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        rates = [row["behaviors"].get(name) for name in behaviors]
        metrics = row["metrics"]
        table.add_row(
            Text(row["name"]),
            *(Text(rate_text(rate)) for rate in rates),
            _joined(rate and rate["num_scored"] for rate in rates),
            _number(metrics["perplexity"], ".2f"),
            _number(metrics["repetition"], ".1f", 100),
            _number(metrics["distinct_2"], ".3f"),
            _number(metrics["mean_length"], ".1f"),
            _number(metrics["unfinished"], ".1f", 100),
            *([_joined(rate and rate["num_unscored"] for rate in rates)] if unscored else []),
            *([_number(row["retained_fraction"], ".3f")] if lossy else []),
        )
    return table


def print_table(rows: Sequence[Row], title: str, *, note: str | None = None) -> None:
    """Prints the rows as a table."""
    print_whole(results_table(rows, title), note)


def print_whole(table: "Table", note: str | None = None) -> None:
    """Prints a table at its full width: a narrower terminal wraps lines, but no number is cut."""
    from rich.console import Console

    width = Console(width=1000).measure(table).maximum
    console = Console(width=max(width, Console().width))
    console.print()
    console.print(table)
    if note:
        console.print(note.strip(), markup=False, highlight=False)


def rate_text(rate: Mapping[str, Any] | None) -> str:
    """``51.2 [46.0, 56.4]`` in per cent, or a dash where nothing was scored."""
    if not rate or rate["rate"] is None:
        return "-"
    return f"{100 * rate['rate']:.1f} [{100 * rate['ci_low']:.1f}, {100 * rate['ci_high']:.1f}]"


def _joined(values: Any) -> str:
    """One number where all behaviors agree, otherwise all of them."""
    distinct = list(dict.fromkeys(str(value) for value in values if value is not None))
    return "/".join(distinct) or "-"


def _number(value: float | None, spec: str, scale: float = 1) -> str:
    return "-" if value is None else format(value * scale, spec)
