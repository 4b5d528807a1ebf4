"""All figures: within 1,600 pixels at 10 and at 60 conditions, readable, and without panels that hold nothing."""

import numpy as np
import pytest
from experiment_rows import experiment
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from gradsteer.reports.curves import forecast_figure
from gradsteer.reports.figure_style import DPI, colors_of
from gradsteer.reports.figures import result_figures
from gradsteer.reports.layer_figure import layer_figure
from gradsteer.reports.nulls import nulls_by_vector
from gradsteer.reports.rates_figure import rates_figure
from gradsteer.reports.tradeoff_figure import tradeoff_figure

MOST, TALLEST, LEAST = 1600, 3000, 7.0  # pixels, pixels, points


def check(figure):
    width, height = DPI * figure.get_size_inches()
    assert width <= MOST
    assert height <= TALLEST
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= LEAST
    FigureCanvasAgg(figure).draw()
    # a name with dollar signs is no formula, wherever it stands
    shown = [text for text in figure.findobj(Text) if text.get_visible() and "$" in text.get_text()]
    assert not any(text.get_parse_math() for text in shown)
    for legend in figure.legends:
        box = legend.get_window_extent()
        assert box.x1 <= figure.bbox.x1 + 1
        assert not any(box.overlaps(axes.bbox) for axes in figure.axes if axes.get_visible())


@pytest.mark.parametrize(("number", "num_behaviors"), [(60, 2)])
def test_no_figure_is_wider_than_a_page(number, num_behaviors):
    rows = experiment(number, ("$bridge$", "recipe", *"abcde")[:num_behaviors], suffix=" $5")
    figures = dict(result_figures(rows, "demo", "evaluations/x"))
    assert list(figures) == ["rates-evaluations-x", "specificity", "trade-offs", "predicted-realised"]
    for figure in figures.values():
        check(figure)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["x" * 150])
def test_long_names_leave_room_for_the_panels(suffix):
    for _, figure in result_figures(experiment(10, suffix=suffix), "demo"):
        check(figure)
        assert max(axes.bbox.width for axes in figure.axes) > 0.2 * figure.bbox.width


@pytest.mark.slow
@pytest.mark.parametrize("number", [60])
def test_forecasts_too(number):
    rows = [row | {"transforms": [f"t{i}"]} for i in range(number // 12) for row in experiment(7)]
    check(forecast_figure(rows, "t"))


@pytest.mark.parametrize(("num_vectors", "num_layers"), [(1, 4), (6, 80)])
def test_layer_norms_too(num_vectors, num_layers):
    series = {f"vector {i}": {str(layer): 0.1 * (i + layer) for layer in range(num_layers)} for i in range(num_vectors)}
    figure = layer_figure(series, "t", squared=False)
    check(figure)
    heights = [[bar.get_height() for bar in container] for axes in figure.axes for container in axes.containers]
    np.testing.assert_allclose(heights, np.sqrt([list(values.values()) for values in series.values()]))


def test_nulls_are_a_grey_band_and_have_no_bars():
    rows = experiment(15)
    figure = rates_figure(rows, "t")
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    nulls = nulls_by_vector(rows)
    single = [row["name"] for row in rows if not (row["kind"] == "control" and row["vector"])]
    assert sorted(names) == sorted([*single, *(each.name for each in nulls)])
    for axes, behavior in zip(figure.axes, ("bridge", "recipe"), strict=True):
        assert axes.get_title(loc="left") == behavior
        bars = {bar.get_y() + bar.get_height() / 2: bar for bar in axes.patches}
        places = dict(zip(names, axes.get_yticks(), strict=True))
        for row in rows:
            if row["name"] in places:
                bar = next(bar for y, bar in bars.items() if y == pytest.approx(places[row["name"]]))
                assert bar.get_width() == pytest.approx(100 * row["behaviors"][behavior]["rate"])
        bands = [
            collection.get_paths()[0].get_extents() for collection in axes.collections if collection.get_zorder() == 0
        ]
        assert len(bars) == len(single)
        for band, each in zip(bands, nulls, strict=True):
            np.testing.assert_allclose((band.x0, band.x1), [100 * rate for rate in each.rates(behavior)])
            inside = [name for name, place in places.items() if band.y0 < place < band.y1]
            assert inside == [name for name in names if each.vector in name]


def test_conditions_of_a_vector_stand_from_the_largest_alpha_to_the_smallest():
    figure = rates_figure(experiment(15), "t")
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    doses = [float(name.split("=")[1]) for name in names if name.startswith("recipe alpha")]
    assert doses == sorted(doses, reverse=True)
    assert len(doses) > 2


@pytest.mark.parametrize(
    ("asked", "said"),
    [("alpha", ["positive alpha reduces"]), ("log_odds_shift", ["shift: asked of the log-odds of the vector's"])],
)
def test_the_rates_figure_says_what_the_sign_of_a_dose_means(asked, said):
    rows = experiment(8)
    for row in rows:
        row["asked"] = {"kind": asked, "value": -1.0} if row["kind"] == "steered" else None
    lines = rates_figure(rows, "demo").get_suptitle().splitlines()
    assert len(lines) == 1 + len(said)
    assert all(line.startswith(words) for line, words in zip(lines[1:], said, strict=True))


def test_colours_are_those_of_the_behaviors_everywhere():
    rows = experiment(15)
    colors = colors_of(rows)
    assert colors["bridge"] != colors["recipe"]
    assert colors_of([row | {"vector": f"v of {row['vector']}"} for row in rows if row["vector"]]) == {
        **colors, "v of bridge": colors["bridge"], "v of recipe": colors["recipe"],
    }  # fmt: skip
    figures = dict(result_figures(rows, "t"))
    titles = figures["rates-results"].axes
    assert [axes._left_title.get_color() for axes in titles] == list(colors.values())
    labels = {text.get_text(): handle for text, handle in legend_of(figures["predicted-realised"])}
    assert {name: labels[name].get_color() for name in colors} == colors


def legend_of(figure):
    (legend,) = figure.legends
    return zip(legend.get_texts(), legend.legend_handles, strict=True)


def test_panels_that_hold_nothing_but_zeros_are_left_out():
    rows = experiment(15)
    assert all(row["metrics"]["refusal_benign"] == 0 for row in rows)

    def panels():
        figure = tradeoff_figure(rows, "t")
        return [axes.get_xlabel() for axes in figure.axes if axes.get_visible()]

    assert panels() == 2 * ["perplexity, held-out text", "KL to the anchor (nats a token)", "mean length (tokens)"]
    steered = next(row for row in rows if row["kind"] == "steered" and row["vector"] == "recipe")
    steered["metrics"]["refusal_benign"] = 0.01
    assert panels().count("benign prompts refused (%)") == 1
    for row in rows:
        row["metrics"] = dict.fromkeys(row["metrics"]) | {"unfinished": 0.0}
    assert tradeoff_figure(rows, "t") is None
