"""Reports of judged conditions: results.json, the flat results.csv beside it, and the table on the screen."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsteer.evaluation.statistics import Rate
from gradsteer.records import write_json, write_text
from gradsteer.reports.flat_rows import flatten

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
    evaluation: Mapping[str, Any] | None = None,
) -> None:
    """Writes the report and, beside it, the same rows as CSV; each under a temporary name first.

    Args:
        path: where the JSON goes; the CSV has the same stem.
        experiment: name of the experiment.
        rows: as `gradsteer.steering.conditions.Condition.row` gives them, in the config's order.
        note: what a reader of the numbers must know.
        forecast: what a forecast is made from; its presence says that the rows are forecasts.
        evaluation: what was sampled and judged, and how.
    """
    report: dict[str, Any] = {"format": FORMAT_VERSION, "experiment": experiment, "note": note}
    if forecast is not None:
        report["forecast"] = dict(forecast)
    if evaluation is not None:
        report["evaluation"] = dict(evaluation)
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
    results: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    if results.get("format") != FORMAT_VERSION:
        raise ValueError(f"{str(path)!r} has format {results.get('format')!r}; this gradsteer reads {FORMAT_VERSION}")
    return results


# metric -> heading, format and factor
_COLUMNS: dict[str, tuple[str, str, float]] = {
    "perplexity": ("perplexity", ".2f", 1),
    "kl_to_anchor": ("KL", ".3f", 1),
    "base_perplexity": ("under base", ".2f", 1),
    "degenerate": ("degenerate %", ".1f", 100),
    "mean_length": ("tokens", ".1f", 1),
    "unfinished": ("cut %", ".1f", 100),
    "refusal_benign": ("refused benign % [95% interval]", ".1f", 100),
    "refusal_harmful": ("refused harmful % [95% interval]", ".1f", 100),
    "refusal_benign_judged": ("judged refusals of benign % [95% interval]", ".1f", 100),
    "refusal_harmful_judged": ("judged refusals of harmful % [95% interval]", ".1f", 100),
}
FEW = (
    "?: a rate of small counts. At the effective sample size fewer than 5 responses show it, or fewer than 5 do not: "
    "one prompt more or less moves it."
)
OPEN = (
    "!: of a rate: whether it differs from the anchor's (p, Holm) hangs on how replies without a verdict are counted, "
    "degenerate ones among them."
)
DAMAGED = (
    "~: a model that broke: held-out text, or its responses under the base, cost at least a bit more a token than "
    "those of the model that was steered, or half more of its responses are degenerate or cut. Read some of them "
    "before its rates are believed."
)
UNSURE = (
    "selectivity: ?: fewer than 10 replies in a count that decides it; !: on which side of 0 it is, or whether its "
    "interval holds 0, hangs on how replies without a verdict are counted."
)


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
    selective = any(_selectivity(row) for row in rows)
    # what is the same everywhere is left out: nothing unscored, every step taken whole
    unscored = any(rate["num_unscored"] for row in rows for rate in row["behaviors"].values())
    lossy = any(row["retained_fraction"] is not None and abs(row["retained_fraction"] - 1) > 1e-3 for row in rows)
    measured = [key for key in _COLUMNS if any(row["metrics"].get(key) is not None for row in rows)]
    columns = [
        *(["selectivity"] if selective else []),
        "scored",
        *(["unscored"] if unscored else []),
        *(_COLUMNS[key][0] for key in measured),
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
            *([selectivity_text(_selectivity(row))] if selective else []),
            _joined(rate and rate["num_scored"] for rate in rates),
            *([_joined(rate and rate["num_unscored"] for rate in rates)] if unscored else []),
            *(Text(_measured(row, key)) for key in measured),
            *([_number(row["retained_fraction"], ".3f")] if lossy else []),
        )
    unsure = any(selectivity_text(_selectivity(row)).endswith(("?", "!")) for row in rows)
    explain_marks(table, rows, behaviors, *([UNSURE] if unsure else []))
    return table


def _measured(row: Row, key: str) -> str:
    return refusal_text(row, key) or _number(row["metrics"].get(key), *_COLUMNS[key][1:])


def condition_text(row: Row) -> str:
    """A condition's name, with a tilde where it broke the model."""
    return f"{row['name']} ~" if row.get("damaged") else str(row["name"])


def behavior_text(row: Row, behavior: str) -> str:
    """A condition's rate of a behavior with its marks, ``0.0 [0.0, 3.7]?!``; a dash where it was not judged."""
    return marked_rate_text(row["behaviors"].get(behavior)) + ("" if is_robust(row, behavior) else "!")


def refusal_text(row: Row, metric: str) -> str | None:
    """Likewise of a ``refusal_...`` on other prompts; None for other metrics, and where it is not known."""
    rate = refusal_of(row, metric)
    name = f"{metric.removeprefix('refusal_')}_refused"
    return None if rate is None else marked_rate_text(rate) + ("" if is_robust(row, name) else "!")


def is_robust(row: Row, name: str) -> bool:
    """Whether what is found of a rate beside the anchor's is found however replies without a verdict are counted."""
    comparison = (row.get("comparisons") or {}).get(name)
    return comparison is None or bool(comparison.get("robust", True))


def refusal_of(row: Row, metric: str) -> Row | None:
    """The rate behind a ``refusal_...`` on other prompts; None for other metrics, and where it is not known."""
    found: Row | None = (row.get("refusals") or {}).get(metric.removeprefix("refusal_"))
    return found


def _selectivity(row: Row) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = (row.get("specificity") or {}).get("selectivity")
    return found


def selectivity_text(found: Mapping[str, Any] | None, spec: str = "+z.2f") -> str:
    """``+1.77 [+1.30, +2.25]``, or a dash; with a question mark where it rests on small counts.

    An exclamation mark says that another way to count replies without a verdict would change on which side of 0 it is.
    """
    if not found:
        return "-"
    marks = ("?" if found.get("few") else "") + ("" if found.get("robust", True) else "!")
    return f"{found['value']:{spec}} [{found['ci_low']:{spec}}, {found['ci_high']:{spec}}]{marks}"


def is_selective(found: Mapping[str, Any]) -> bool:
    """Whether a selectivity's interval is above 0, however replies without a verdict are counted."""
    return bool(found["ci_low"] > 0 and found.get("robust", True))


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


def marked_rate_text(rate: Mapping[str, Any] | None) -> str:
    """As `rate_text`, with a question mark where the rate rests on small counts: ``1.0 [0.2, 4.9]?``."""
    return rate_text(rate) + ("?" if rate and _few(rate) else "")


def explain_marks(table: "Table", rows: Sequence[Row], behaviors: Sequence[str], *more: str) -> None:
    """Says under a table what the marks mean that its rates have, of these behaviors and of refusals.

    Args:
        table: it.
        rows: the conditions in it.
        behaviors: that it shows.
        more: what is said beside.
    """
    from rich.text import Text

    rates = [row["behaviors"][name] for row in rows for name in behaviors if name in row["behaviors"]]
    rates += [rate for row in rows for rate in (row.get("refusals") or {}).values()]
    names = [*behaviors, *(f"{name}_refused" for row in rows for name in row.get("refusals") or {})]
    few, robust = any(map(_few, rates)), all(is_robust(row, name) for row in rows for name in names)
    damaged = any(row.get("damaged") for row in rows)
    said = [*([FEW] if few else []), *([] if robust else [OPEN]), *([DAMAGED] if damaged else []), *more]
    if said:
        table.caption, table.caption_justify = Text("\n".join(said)), "left"


def _few(rate: Mapping[str, Any]) -> bool:
    """`Rate.few` of a rate in a report; not known of a forecast rate, which counts nothing."""
    size = rate.get("effective_n")
    if size is None:
        return False
    return Rate(0, 0, 0, rate["rate"], rate["ci_low"], rate["ci_high"], effective_n=size).few


def _joined(values: Any) -> str:
    """One number where all behaviors agree, otherwise all of them."""
    distinct = list(dict.fromkeys(str(value) for value in values if value is not None))
    return "/".join(distinct) or "-"


def _number(value: float | None, spec: str, scale: float = 1) -> str:
    return "-" if value is None else format(value * scale, spec)
