"""Rare rates and bounds where they are read: cells, tables, the screen, figures, agreement and selection."""

import numpy as np
import pytest
from experiment_rows import experiment
from test_condition_selection import ANCHOR, ROWS, interval, predicted, row
from test_figures import check

from gradsteer.reports.cells import rate_text
from gradsteer.reports.condition_selection import Selection, choose
from gradsteer.reports.curves import agreement_figure, forecast_figure
from gradsteer.reports.flat_rows import flatten
from gradsteer.reports.predictions import Agreement, agreement, agreement_lines, forecast_table, predictions_table
from gradsteer.reports.printing import whole_text
from gradsteer.reports.screen import results_screen

BOUND = {
    "rate": None, "ci_low": 0.0, "ci_high": 0.2, "importance": 0.05, "linear": 0.3, "method": "bound", "reliable": False
}  # fmt: skip


def bounded(name="bound", measured=0.1, **said):
    """A condition whose forecast of ``a`` is a bound, and what was measured of it."""
    found = predicted({"a": 0.1}, reliable=False, **said)
    return row(name, {"a": measured}, {**found, "rates": {"a": BOUND}})


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0.00042, 0.00018, 0.00096), "0.042 [0.018, 0.096]"),
        ((0.00042, 0.0, 0.0123), "0.042 [0.0, 1.2]"),
        ((0.00091, 0.00003, 0.3), "0.091 [0.0030, 30.0]"),
        ((4.5e-6, 1e-9, 2e-5), "0.00045 [<0.0001, 0.0020]"),
        ((7.8e-10, 0.0, 0.6), "<0.0001 [0.0, 60.0]"),
        ((0.001, 0.0004, 0.002), "0.1 [0.0, 0.2]"),
        ((0.0, 0.0, 0.0372), "0.0 [0.0, 3.7]"),
        ((None, 0.0, 0.601), "<= 60.1"),
        ((None, 1e-17, 0.00052), "<= 0.052"),
        ((None, 0.203, 1.0), ">= 20.3"),
        ((None, 0.2, 0.8), "20.0 to 80.0"),
        ((None, None, None), "-"),
    ],
)
def test_a_rate_is_written_with_digits_that_say_something(numbers, text):
    assert rate_text(dict(zip(("rate", "ci_low", "ci_high"), numbers, strict=True))) == text


def test_tables_show_the_bound_and_say_what_it_is():
    forecast = bounded()
    forecast["behaviors"] = {"a": {**BOUND, "num_scored": 400, "num_unscored": 0}}
    table = whole_text(forecast_table([forecast], "f"))
    assert "<= 20.0" in table
    assert "│ bound │" in table.replace("  ", "")
    assert "more than" in table
    assert "third of the weight" in table
    assert "third of the weight" not in whole_text(forecast_table(ROWS, "f"))
    assert "<= 20.0" in whole_text(predictions_table([bounded()], "p"))
    flat = flatten(forecast)
    assert (flat["a_rate"], flat["a_ci_high"], flat["predicted_a_method"]) == (None, 0.2, "bound")


def test_a_rate_that_is_known_stands_out_where_others_of_its_condition_are_not():
    """By the weights, where the row says that the linear form had to do."""
    said = predicted({"a": 0.0004, "b": 0.5}, reliable=False)
    said["rates"]["a"] |= {"method": "importance", "reliable": True}
    said["rates"]["b"] |= {"method": "linear", "reliable": False}
    mixed = row("mixed", {"a": 0.0004, "b": 0.5}, said)
    table = whole_text(forecast_table([mixed], "f"))
    assert "weights, linear form" in table
    assert "0.040 [" in table
    good, poor = (agreement([mixed], reliable=reliable) for reliable in (True, False))
    assert (good.num_cells, poor.num_cells) == (1, 1)


def test_a_bound_is_compared_as_a_bound():
    rows = [bounded(), bounded("above", measured=0.5)]
    found = agreement(rows, reliable=False)
    assert found == Agreement(0, 0, None, num_bounds=2, num_held=1)
    assert str(found) == "1 of 2 within a bound"
    assert agreement(rows, reliable=True) == Agreement(0, 0, None)
    assert any("too small: 1 of 2 within a bound" in line for line in agreement_lines(rows))
    plain = row("plain", {"a": 0.1}, predicted({"a": 0.12}, reliable=False))
    both = str(agreement([*rows, plain], reliable=False))
    assert both.startswith("1 of 1 (100%) within 5 points")
    assert both.endswith("; 1 of 2 within a bound")


def test_figures_draw_bounds_without_a_point():
    forecast = bounded()
    forecast["behaviors"] = {"a": BOUND}
    anchor = ANCHOR
    figure = forecast_figure([anchor, forecast], "t")
    check(figure)
    bars = [each for each in figure.axes[0].collections if len(each.get_segments()) == 1]
    assert any(np.allclose(each.get_segments()[0], [[0.1, 0], [0.1, 20]]) for each in bars)
    assert agreement_figure([bounded()], "t") is None  # there is no point to draw


def test_the_screen_shows_bounds_and_says_so():
    rows = experiment(8)
    steered = next(each for each in rows if each["kind"] == "steered")
    steered["predicted"]["rates"] = {**steered["predicted"]["rates"], "bridge": BOUND}
    screen = results_screen(rows, "t")
    assert "<= 20" in screen
    assert "a rate would hang on one response" in screen.replace("\n", " ")
    assert "within a bound" in screen.replace("\n", " ")


def test_a_bound_is_no_candidate():
    rates = {"a": interval(0.1), "b": interval(0.3)}
    known = row("known", {"a": 0.1, "b": 0.3}, predicted({"a": 0.1, "b": 0.3}))
    lost = row("lost", {"a": 0.1, "b": 0.3}, predicted({"a": 0.1, "b": 0.3}))
    lost["behaviors"] = {**rates, "a": BOUND}
    assert choose([ANCHOR, known, lost], {"a": "a"}, Selection("target_rate", rate=0.1, keep=2)) == ["known"]
    anchor = {**ANCHOR, "behaviors": {**ANCHOR["behaviors"], "a": BOUND}}
    with pytest.raises(ValueError, match="no rate of 'a' for the anchor"):
        choose([anchor, known], {"a": "a"}, Selection("target_rate", rate=0.1))
