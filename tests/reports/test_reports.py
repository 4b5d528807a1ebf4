"""The table of results, its flat rows and the bars: which rates are marked, and what is said of the marks."""

import io

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

from gradsteer.evaluation.condition_result import METRICS, ConditionResult
from gradsteer.evaluation.counting import Counts
from gradsteer.evaluation.statistics import Rate, rate_with_interval, wilson
from gradsteer.reports.cells import (
    FEW,
    OPEN,
    behavior_text,
    marked_rate_text,
    rate_text,
    refusal_text,
)
from gradsteer.reports.flat_rows import flatten
from gradsteer.reports.rates_figure import rates_figure
from gradsteer.reports.results_table import results_table
from gradsteer.steering.conditions import Condition


def rate(num_positive, num, size=None):
    share = num_positive / num
    return Rate(num, 0, num_positive, share, *wilson(share, size or num), effective_n=float(size or num))


def row(name="anchor", kind="anchor", refusals=None, **behaviors):
    metrics = {f"refusal_{key}": value.rate for key, value in (refusals or {}).items()}
    counts = Counts(behaviors=behaviors, refusals=refusals or {}, metrics=metrics)
    return ConditionResult(Condition(name, kind, alpha=0.0), counts=counts).row()


def shown(rows):
    console = Console(width=300, file=io.StringIO())
    console.print(results_table(rows, "t"))
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("found", "marked"),
    [
        (rate(5, 100), False),
        (rate(4, 100), True),
        (rate(96, 100), True),
        (rate(95, 100), False),
        (rate(50, 100), False),
        (rate(50, 100, size=10), False),
        (rate(50, 100, size=9), True),  # replies to one prompt are alike
        (rate(0, 1000), True),
        (rate_with_interval([], []), False),
        (rate_with_interval([None], ["a"]), False),
    ],
)
def test_the_table_marks_what_the_rate_calls_few(found, marked):
    assert found.few is marked
    text = marked_rate_text(found.to_dict())
    assert text == rate_text(found.to_dict()) + ("?" if marked else "")
    table = shown([row(a=found)])
    assert text in table
    assert ("?" in table) is marked
    assert (FEW in " ".join(table.split())) is marked


def test_a_rate_that_replies_without_a_verdict_decide_is_marked_where_it_is_read():
    """All replies about bridges became loops: 0% of those that count."""
    rows = [row(a=rate(50, 100)), row(a=rate(0, 100), b=rate(50, 100), refusals={"benign": rate(50, 100)})]
    rows[1]["comparisons"] = {"a": {"robust": False}, "b": {"robust": True}, "benign_refused": {"robust": False}}
    assert behavior_text(rows[0], "a") == rate_text(rate(50, 100).to_dict())
    assert behavior_text(rows[1], "a") == rate_text(rate(0, 100).to_dict()) + "?!"
    assert not behavior_text(rows[1], "b").endswith("!")
    assert refusal_text(rows[1], "refusal_benign").endswith("!")
    assert refusal_text(rows[1], "refusal_harmful") is None
    table = shown(rows)
    assert behavior_text(rows[1], "a") in table
    assert OPEN in " ".join(table.split())
    rows[1]["comparisons"] = {"b": {"robust": True}}
    assert OPEN not in " ".join(shown(rows).split())


def test_a_rate_of_no_known_size_has_no_mark():
    forecast = {"rate": 0.01, "ci_low": 0.0, "ci_high": 0.02}
    assert marked_rate_text(forecast) == marked_rate_text(forecast | {"effective_n": None}) == "1.0 [0.0, 2.0]"
    assert marked_rate_text(None) == "-"


def test_refusals_stand_in_the_table_with_their_intervals_and_marks():
    rows = [
        row(a=rate(50, 100), refusals={"benign": rate(10, 60), "harmful": rate(57, 60)}),
        row("steered", a=rate(40, 100)),
    ]
    table = shown(rows)
    assert "refused benign % [95% interval]" in table
    assert rate_text(rate(10, 60).to_dict()) in table
    assert f"{rate_text(rate(57, 60).to_dict())}?" in table
    assert table.count("]?") == 1
    assert FEW in " ".join(table.split())
    old = {**rows[0], "metrics": rows[0]["metrics"] | {"refusal_benign": 0.25}}
    del old["refusals"]
    assert " 25.0 " in shown([old])


def test_flat_rows_have_all_of_a_refusal_rate():
    found = {"benign": rate(3, 60), "harmful": rate_with_interval([None], ["a"], num_degenerate=2)}
    flat = flatten(row(a=rate(1, 2), refusals=found))
    for name, each in found.items():
        assert {key: flat[f"{name}_refused_{key}"] for key in each.to_dict()} == each.to_dict()
    assert "refusals" not in flat
    assert set(METRICS) <= set(flat)
    assert not [key for key in flatten(row(a=rate(1, 2))) if "_refused_" in key]


@pytest.mark.parametrize("kinds", [["control"], ["baseline"], ["baseline", "steered"], []])
def test_the_legend_of_the_bars_says_what_there_is(kinds):
    rows = [row("anchor", a=rate(1, 2)), *(row(kind, kind, a=rate(1, 2)) for kind in kinds)]
    for each in rows[1:]:
        each["vector"] = "v"
    figure = rates_figure(rows, "t")
    FigureCanvasAgg(figure).draw()
    said = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    found = {"control": "the vector's nulls, lowest to highest", "baseline": "baseline", "steered": "steered"}
    assert set(said) == {*(found[kind] for kind in kinds), *(["anchor"] if kinds else [])}
