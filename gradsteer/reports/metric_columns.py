"""How metrics are shown: headings of table columns, labels of axes, formats and units."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gradsteer.reports.cells import number_text, refusal_text

Row = Mapping[str, Any]


class MetricColumn(NamedTuple):
    """How a metric is shown."""

    heading: str  # of a table's column
    label: str | None  # of an axis; None for what is no cost of steering
    spec: str
    scale: float = 1


METRIC_COLUMNS = {
    "perplexity": MetricColumn("perplexity", "perplexity, held-out text", ".2f"),
    "kl_to_anchor": MetricColumn("KL to anchor", "KL to the anchor (nats a token)", ".4f"),
    "base_perplexity": MetricColumn("under base", None, ".2f"),
    "degenerate": MetricColumn("degenerate %", "degenerate (%)", ".1f", 100),
    "repetition": MetricColumn("repeats %", "with a repeated sentence (%)", ".1f", 100),
    "unfinished": MetricColumn("cut %", "cut by the length limit (%)", ".1f", 100),
    "unanswered": MetricColumn("in thought %", "ended within the thought (%)", ".1f", 100),
    "refusal_benign": MetricColumn("refused benign % [95% interval]", "benign prompts refused (%)", ".1f", 100),
    "refusal_harmful": MetricColumn("refused harmful % [95% interval]", "harmful prompts refused (%)", ".1f", 100),
    "refusal_benign_judged": MetricColumn(
        "judged refusals of benign % [95% interval]", "benign refused, judged (%)", ".1f", 100
    ),
    "refusal_harmful_judged": MetricColumn(
        "judged refusals of harmful % [95% interval]", "harmful refused, judged (%)", ".1f", 100
    ),
    "mean_length": MetricColumn("tokens", "mean length (tokens)", ".1f"),
}


def metric_of(row: Row, key: str) -> float | None:
    """A metric in the unit that is shown, None where it was not measured; the anchor's KL to itself is 0."""
    value = row["metrics"].get(key)
    if value is None and key == "kl_to_anchor" and row["kind"] == "anchor":
        return 0.0
    return None if value is None else float(value) * METRIC_COLUMNS[key].scale


def metric_text(row: Row, key: str) -> str:
    """A metric as a table shows it, a rate of refusals with its interval; a dash where it was not measured."""
    return refusal_text(row, key) or number_text(metric_of(row, key), METRIC_COLUMNS[key].spec)


def measured_metrics(rows: Sequence[Row]) -> list[str]:
    """The metrics that were measured of any of the conditions."""
    return [key for key in METRIC_COLUMNS if any(row["metrics"].get(key) is not None for row in rows)]
