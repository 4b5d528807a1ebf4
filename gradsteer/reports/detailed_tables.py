"""All tables of a report as one text: what ``tables.txt`` holds."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradsteer.reports.comparison_table import comparison_table
from gradsteer.reports.predictions import agreement_lines, predictions_table
from gradsteer.reports.printing import whole_text
from gradsteer.reports.results_table import results_table
from gradsteer.reports.specificity import headline, specificity_table
from gradsteer.reports.tradeoffs import tradeoff_table


def detailed_tables(rows: Sequence[Mapping[str, Any]], experiment: str, *, note: str | None = None) -> str:
    """Rates and metrics, specificity, trade-offs, comparisons, and forecast beside realised, each with its caption.

    Args:
        rows: conditions as results.json holds them.
        experiment: its name, for titles.
        note: what a reader of the numbers must know.
    """
    title = f"{experiment}: rates of judged behaviors, 95% intervals clustered by prompt"
    parts = [*headline(rows), whole_text(results_table(rows, title), note)]
    for table in (specificity_table(rows), tradeoff_table(rows), comparison_table(rows)):
        if table is not None:
            parts.append(whole_text(table))
    predictions = predictions_table(rows, f"{experiment}: asked and predicted beside realised")
    if predictions is not None:
        parts.append(whole_text(predictions, "\n".join(agreement_lines(rows))))
    return "\n".join(parts) + "\n"
