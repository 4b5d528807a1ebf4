"""Every figure of a report of conditions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradsteer.reports.curves import agreement_figure
from gradsteer.reports.rates_figure import rates_figure
from gradsteer.reports.specificity_figure import specificity_figure
from gradsteer.reports.tradeoff_figure import tradeoff_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def result_figures(
    rows: Sequence[Mapping[str, Any]], experiment: str, name: str = "results"
) -> Iterator[tuple[str, "Figure"]]:
    """Draws the figures that the rows hold enough for, one at a time, each after the name of its file.

    Args:
        rows: conditions as results.json holds them.
        experiment: its name, for titles.
        name: of the report, which the figure of rates has in its name.
    """
    yield (
        f"rates-{name}".replace("/", "-"),
        rates_figure(rows, f"{experiment}: behavior rates, % of responses (95% intervals)"),
    )
    for file, draw, title in (
        ("specificity", specificity_figure, "what else moved"),
        ("trade-offs", tradeoff_figure, "the behavior's rate and what it costs"),
        ("predicted-realised", agreement_figure, "predicted and realised (95% intervals)"),
    ):
        figure = draw(rows, f"{experiment}: {title}")
        if figure is not None:
            yield file, figure
