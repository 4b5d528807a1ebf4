"""The one screen at the end of a run: a row for each condition, the nulls as a range, then where the rest is."""

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsteer.reports.cells import (
    behavior_text,
    bound_text,
    condition_text,
    is_bound,
    is_rare,
    percent_text,
    selectivity_of,
    selectivity_text,
)
from gradsteer.reports.figure_style import shortened
from gradsteer.reports.nulls import Nulls, family_of, is_null, nulls_by_vector, range_text
from gradsteer.reports.predictions import agreement, believed, cells, kinds_of, slope_lines
from gradsteer.reports.printing import measured_width, plain_text
from gradsteer.reports.withheld import withheld_lines

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, Any]
WIDTH = 100
_MOST_NULLS = 3  # vectors whose nulls have a line each; those of more vectors have one line together
_MOST_BOUNDS = 4  # rates with bounds that are printed
_MOST_BROKEN = 4  # broken models that are named with their reasons


@dataclass(frozen=True)
class _Layout:
    """How much a table shows, in columns of the screen.

    Attributes:
        digits: of rates, after the point.
        name: what a condition's name has at least, before it wraps.
        heading: of a behavior's name, before its middle is left out.
        forecast: heading of the forecasts.
    """

    digits: int
    name: int
    heading: int
    forecast: str


_LAYOUTS = (_Layout(1, 24, 17, "\nforecast"), _Layout(0, 24, 14, "\nforecast"), _Layout(0, 20, 11, "fore-\ncast"))


def results_screen(
    rows: Sequence[Row],
    title: str,
    *,
    note: str | None = None,
    files: Sequence[Path] = (),
    pictures: Sequence[Path] = (),
) -> str:
    """The results on one screen of at most 100 columns.

    Rates and forecasts are in per cent, to a decimal where that fits, otherwise whole. Behaviors that do not fit beside
    one another go on in a table below.

    Args:
        rows: conditions as results.json holds them.
        title: the first line.
        note: what a reader of the numbers must know.
        files: that were written, all of one directory.
        pictures: likewise.

    Returns:
        Lines without colours; only a path may be longer than 100 columns.
    """
    behaviors = list(dict.fromkeys(name for row in rows for name in row["behaviors"]))
    tables = _tables(rows, behaviors)
    parts = [
        *_wrapped([title]),
        *(plain_text([table], WIDTH) for table in tables),
        "",
        *_wrapped(_marks(rows, behaviors)),
    ]
    if note:
        parts += ["", *_wrapped([note.strip()])]
    if said := agreement_summary(rows):
        parts += ["", *_wrapped(said)]
    paths = [*_paths("results: ", files), *_paths("pictures: ", pictures)]
    return "\n".join(["", *parts, *([""] if paths else []), *paths])


def agreement_summary(rows: Sequence[Row]) -> list[str]:
    """How near the forecasts came, in one or two lines; none without forecasts."""
    if not cells(rows):
        return slope_lines(rows)
    said = []
    for name, members in kinds_of(rows).items():
        if (found := agreement(members, reliable=True)).mean_error is not None:
            kind = "nulls" if name == "controls" else name
            error = f"mean error {100 * found.mean_error:.1f}"
            said.append(f"{kind} {found.num_within} of {found.num_cells} ({error})")
    poor = agreement(rows, reliable=False)
    if poor.num_cells:
        said.append(f"with too few effective samples {poor.num_within} of {poor.num_cells}")
    if poor.num_bounds:
        said.append(f"within a bound {poor.num_held} of {poor.num_bounds}")
    return [f"forecasts within 5 points of the realised rates: {', '.join(said)}", *slope_lines(rows)]


def _tables(rows: Sequence[Row], behaviors: Sequence[str]) -> "list[Table]":
    """One table, or as many as the behaviors need."""
    longest = max((len(condition_text(row)) for row in rows if not is_null(row)), default=0)
    for number in range(1, len(behaviors) + 1):
        size = -(-len(behaviors) // number)
        parts = [behaviors[start : start + size] for start in range(0, len(behaviors), size)]
        for layout in _LAYOUTS:
            unnamed = [_table(rows, part, layout, selective=part is parts[0], named=False) for part in parts]
            if max(map(measured_width, unnamed)) + min(longest, layout.name) <= WIDTH:
                return [_table(rows, part, layout, selective=part is parts[0]) for part in parts]
    return [_table(rows, [behavior], _LAYOUTS[-1], selective=behavior == behaviors[0]) for behavior in behaviors]


def _table(
    rows: Sequence[Row], behaviors: Sequence[str], layout: _Layout, *, selective: bool, named: bool = True
) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    selective = selective and any(map(selectivity_of, rows))
    forecast = [name for name in behaviors if any(_forecast(row, name) for row in rows)]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("\ncondition" if named else "", overflow="fold")
    for name in behaviors:
        (heading,) = shortened([name], layout.heading)
        table.add_column(Text(f"{heading}\n% [95%]"), justify="right", no_wrap=True)
        if name in forecast:
            table.add_column(layout.forecast, justify="right", no_wrap=True)
    if selective:
        table.add_column("selectivity\n[95%]", justify="right", no_wrap=True)
    spec = f".{layout.digits}f"
    for row in [*(row for row in rows if not _stands_below(row)), *(row for row in rows if row["kind"] == "baseline")]:
        texts = []
        for name in behaviors:
            texts.append(behavior_text(row, name, spec))
            texts += [_forecast_text(row, name, spec)] * (name in forecast)
        texts += [selectivity_text(selectivity_of(row), "z.2f")] * selective
        table.add_row(*map(Text, [condition_text(row) if named else "", *texts]))
    for nulls in _nulls(rows):
        broken = " ~" if any(row.get("damaged") for row in nulls.rows) else ""
        texts = []
        for name in behaviors:
            texts.append(range_text(nulls.rates(name), spec, 100))
            texts += [range_text(nulls.forecasts(name), ".0f", 100, to="–")] * (name in forecast)
        texts += [range_text(nulls.selectivities(), "z.2f")] * selective
        table.add_row(*map(Text, [nulls.name + broken if named else "", *texts]))
    return table


def _stands_below(row: Row) -> bool:
    return is_null(row) or row["kind"] == "baseline"


def _nulls(rows: Sequence[Row]) -> list[Nulls]:
    found = nulls_by_vector(rows)
    if len(found) <= _MOST_NULLS:
        return found
    return [Nulls(None, "anchor", [row for each in found for row in each.rows])]


def _forecast(row: Row, behavior: str) -> Mapping[str, Any] | None:
    """A forecast rate; None of the anchor, of which it was measured."""
    if row["kind"] == "anchor":
        return None
    found: Mapping[str, Any] | None = ((row.get("predicted") or {}).get("rates") or {}).get(behavior)
    return found


def _forecast_text(row: Row, behavior: str, spec: str) -> str:
    found = _forecast(row, behavior)
    if found is None:
        return "-"
    if is_bound(found):
        return bound_text(found, spec)
    text = percent_text(found["rate"], spec, rare=is_rare(found["rate"]))
    return text if believed(row, found) else f"({text})"


def _marks(rows: Sequence[Row], behaviors: Sequence[str]) -> list[str]:
    """What the marks mean that are on the screen."""
    shown = [row for row in rows if not is_null(row)]
    texts = [behavior_text(row, name) for row in shown for name in behaviors]
    texts += [selectivity_text(selectivity_of(row)) for row in shown]
    marks = {mark for text in texts for mark in text[text.rfind("]") + 1 :]}
    said = {"?": "?: rests on small counts", "!": "!: hangs on how replies without a verdict are counted"}
    said["*"] = "*: the judge withheld more verdicts than in another condition"
    lines = ["; ".join(text for mark, text in said.items() if mark in marks)] if marks else []
    if any(_forecast_text(row, name, ".0f").startswith("(") for row in shown for name in behaviors):
        lines.append("(forecast): too few effective samples, by the linear form")
    if any(is_bound(_forecast(row, name)) for row in shown for name in behaviors):
        lines.append("a forecast of <=, >= or to: a bound; a rate would hang on one response")
    if any(map(selectivity_of, shown)):
        lines.append("selectivity: nats by which the vector's behavior moved more than any other")
    if families := Counter(family_of(row) for row in rows if is_null(row)):
        kinds = ", ".join(f"{name} ({number})" for name, number in families.items())
        lines.append(f"nulls: from the lowest to the highest of {kinds}")
    bounds = list(withheld_lines(shown))
    more = [f"*: and {len(bounds) - _MOST_BOUNDS} more, see tables.txt"] if len(bounds) > _MOST_BOUNDS else []
    return [*lines, *bounds[:_MOST_BOUNDS], *more, *_broken(rows)]


def _broken(rows: Sequence[Row]) -> list[str]:
    """Which models broke, and by what."""
    found = [f"{row['name']} ({', '.join(row['damaged'])})" for row in rows if row.get("damaged")]
    if not found:
        return []
    more = f" and {len(found) - _MOST_BROKEN} more" if len(found) > _MOST_BROKEN else ""
    return [f"~: a model that broke, read its responses: {', '.join(found[:_MOST_BROKEN])}{more}"]


def _paths(label: str, paths: Sequence[Path]) -> list[str]:
    """The directory once, then the files in it."""
    if not paths:
        return []
    first, *others = paths
    names = (str(path.relative_to(first.parent)) for path in others)
    return _wrapped([label + ", ".join([str(first), *names])], indent=" " * len(label), whole=True)


def _wrapped(texts: Iterable[str], *, indent: str = "", whole: bool = False) -> list[str]:
    """Lines of at most the screen's width, but for a word that is longer, where words stay whole."""
    return [
        line
        for text in texts
        for line in textwrap.wrap(
            text, WIDTH, subsequent_indent=indent, break_long_words=not whole, break_on_hyphens=False
        )
    ]  # fmt: skip
