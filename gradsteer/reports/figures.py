"""Every figure of a report of conditions."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradsteer.reports.curves import agreement_figure
from gradsteer.reports.rates_figure import rates_figure
from gradsteer.reports.specificity_figure import specificity_figure
from gradsteer.reports.tradeoff_figure import tradeoff_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def result_figures(rows: Sequence[Mapping[str, Any]], experiment: str, name: str = "results") -> dict[str, "Figure"]:
    """The figures that the rows hold enough for, by the names of their files.

    Args:
        rows: conditions as results.json holds them.
        experiment: its name, for titles.
        name: of the report, which the figure of rates has in its name.
    """
    figures = {
        f"rates-{name}".replace("/", "-"): rates_figure(
            rows, f"{experiment}: behavior rates, % of responses (95% intervals)"
        ),
        "specificity": specificity_figure(rows, f"{experiment}: what else moved"),
        "trade-offs": tradeoff_figure(rows, f"{experiment}: the behavior's rate and what it costs"),
        "predicted-realised": agreement_figure(rows, f"{experiment}: predicted and realised (95% intervals)"),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}
