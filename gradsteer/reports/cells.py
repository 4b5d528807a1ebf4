"""Numbers as the reports' tables write them: rates and shifts with their intervals, and the marks that qualify them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from gradsteer.evaluation.statistics import Rate

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, Any]
_RARE, _LEAST = 1e-3, 1e-6  # rates: below the one more digits are written, below the other none
BOUND = (
    "<=, >=, to: a bound, the end or ends of the 95% interval. A rate would hang on one response there: it has more "
    "than a third of the weight of all, of those that show it, or of those that do not."
)
FEW = (
    "?: a rate of small counts. At the effective sample size fewer than 5 responses show it, or fewer than 5 do not: "
    "one prompt more or less moves it."
)
OPEN = (
    "!: of a rate: whether it differs from the anchor's (p, Holm) hangs on how replies without a verdict are counted, "
    "degenerate ones among them."
)
MORE_WITHHELD = (
    "*: the judge withheld more verdicts than in another condition, so that the rate leaves a selection out; bounds "
    "stand below the table of results."
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


def number_text(value: float | None, spec: str, scale: float = 1) -> str:
    """A number in a format, or a dash."""
    return "-" if value is None else format(value * scale, spec)


def interval_text(found: Mapping[str, Any] | None, key: str, spec: str, scale: float = 1) -> str:
    """A number with its interval, ``-2.10 [-2.40, -1.80]``, or a dash where it is not known.

    Args:
        found: the number, ``ci_low`` and ``ci_high``.
        key: of the number.
        spec: a format.
        scale: all three are multiplied with it.
    """
    if not found or found[key] is None:
        return "-"
    value, low, high = (format(scale * found[each], spec) for each in (key, "ci_low", "ci_high"))
    return f"{value} [{low}, {high}]"


def rate_text(rate: Mapping[str, Any] | None, spec: str = ".1f") -> str:
    """``51.2 [46.0, 56.4]`` in per cent, a bound (`bound_text`), or a dash where nothing was scored.

    A rate below a tenth of a per cent is written with two digits that say something, ``0.042 [0.018, 0.096]``, and so
    are its limits.
    """
    if not rate:
        return "-"
    if rate["rate"] is None:
        return bound_text(rate, spec) if is_bound(rate) else "-"
    write = partial(percent_text, spec=spec, rare=is_rare(rate["rate"]))
    return f"{write(rate['rate'])} [{write(rate['ci_low'])}, {write(rate['ci_high'])}]"


def is_bound(rate: Mapping[str, Any] | None) -> bool:
    """Whether a forecast rate has an interval and no value: it would hang on one response."""
    return rate is not None and rate["rate"] is None and rate.get("ci_high") is not None


def bound_text(rate: Mapping[str, Any], spec: str = ".1f") -> str:
    """``<= 60.1`` in per cent where the interval begins at 0, ``>= 20.3`` where it ends at 100, or both ends."""
    low, high = (percent_text(rate[end], spec, rare=is_rare(rate["ci_high"])) for end in ("ci_low", "ci_high"))
    if low.startswith("<") or float(low) == 0:
        return f"<= {high}"
    return f">= {low}" if float(high.lstrip("<")) == 100 else f"{low} to {high}"


def is_rare(rate: float) -> bool:
    """Whether a rate is lost in a tenth of a per cent."""
    return 0 < rate < _RARE


def percent_text(share: float, spec: str = ".1f", *, rare: bool = False) -> str:
    """A share in per cent; where it belongs to a rare rate, two digits that say something.

    Args:
        share: in [0, 1].
        spec: a format.
        rare: the rate that it is, or whose limit it is, `is_rare`.
    """
    if not rare or share <= 0 or share >= 0.1:
        return format(100 * share, spec)
    if share < _LEAST:
        return f"<{100 * _LEAST:g}"
    places = 1 - math.floor(math.log10(100 * share))
    return format(100 * share, f".{max(1, places)}f")


def marked_rate_text(rate: Mapping[str, Any] | None, spec: str = ".1f") -> str:
    """As `rate_text`, with a question mark where the rate rests on small counts: ``1.0 [0.2, 4.9]?``."""
    return rate_text(rate, spec) + ("?" if rate and rests_on_few(rate) else "")


def behavior_text(row: Row, behavior: str, spec: str = ".1f") -> str:
    """A condition's rate of a behavior with its marks, ``0.0 [0.0, 3.7]?!``; a dash where it was not judged."""
    return marked_rate_text(row["behaviors"].get(behavior), spec) + _marks(row, behavior)


def refusal_text(row: Row, metric: str) -> str | None:
    """Likewise of a ``refusal_...`` on other prompts; None for other metrics, and where it is not known."""
    rate = (row.get("refusals") or {}).get(metric.removeprefix("refusal_"))
    name = f"{metric.removeprefix('refusal_')}_refused"
    return None if rate is None else marked_rate_text(rate) + _marks(row, name)


def condition_text(row: Row) -> str:
    """A condition's name, with a tilde where it broke the model."""
    return f"{row['name']} ~" if row.get("damaged") else str(row["name"])


def selectivity_of(row: Row) -> Mapping[str, Any] | None:
    """A condition's selectivity as its row holds it; None where it was not measured."""
    found: Mapping[str, Any] | None = (row.get("specificity") or {}).get("selectivity")
    return found


def selectivity_text(found: Mapping[str, Any] | None, spec: str = "+z.2f") -> str:
    """``+1.77 [+1.30, +2.25]``, or a dash; with a question mark where it rests on small counts.

    An exclamation mark says that another way to count replies without a verdict would change on which side of 0 it is.
    """
    if not found:
        return "-"
    marks = ("?" if found.get("few") else "") + ("" if found.get("robust", True) else "!")
    return interval_text(found, "value", spec) + marks


def is_selective(found: Mapping[str, Any]) -> bool:
    """Whether a selectivity's interval is above 0, however replies without a verdict are counted."""
    return bool(found["ci_low"] > 0 and found.get("robust", True))


def is_robust(row: Row, name: str) -> bool:
    """Whether what is found of a rate beside the anchor's is found however replies without a verdict are counted."""
    comparison = (row.get("comparisons") or {}).get(name)
    return comparison is None or bool(comparison.get("robust", True))


def _marks(row: Row, name: str) -> str:
    return ("" if is_robust(row, name) else "!") + ("*" if _has_more(row, name) else "")


def _has_more(row: Row, name: str) -> bool:
    """Whether the judge withheld more verdicts than in another condition."""
    return ((row.get("withheld") or {}).get(name) or {}).get("more_than") is not None


def rests_on_few(rate: Mapping[str, Any]) -> bool:
    """`Rate.few` of a rate in a report; not known of a forecast rate, which counts nothing."""
    size = rate.get("effective_n")
    if size is None:
        return False
    return Rate(0, 0, 0, rate["rate"], rate["ci_low"], rate["ci_high"], effective_n=size).few


def broken_text(rows: Iterable[Row]) -> str:
    """What the tilde behind a name means, where one has it."""
    return "; ~: a model that broke, see the table of results" if any(row.get("damaged") for row in rows) else ""


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
    few, robust = any(map(rests_on_few, rates)), all(is_robust(row, name) for row in rows for name in names)
    damaged, withheld = any(row.get("damaged") for row in rows), any(_has_more(r, name) for r in rows for name in names)
    said = [*([FEW] if few else []), *([] if robust else [OPEN]), *([DAMAGED] if damaged else [])]
    said += [*([MORE_WITHHELD] if withheld else []), *more]
    if said:
        table.caption, table.caption_justify = Text("\n".join(said)), "left"
