"""The trade-off curves: which conditions are drawn, where, and that labels hide nothing."""

import copy
import io

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

from gradsteer.evaluation.condition_result import METRICS
from gradsteer.reports.tradeoff_figure import tradeoff_figure
from gradsteer.reports.tradeoffs import tradeoff_table, tradeoffs


def row(name, kind, vector=None, alpha=None, rate=0.4, behavior="bridge", **metrics):
    return {
        "name": name,
        "kind": kind,
        "model": "base" if kind == "base" else "anchor",
        "vector": vector,
        "behavior": vector if kind == "steered" else None,
        "transforms": [],
        "alpha": alpha,
        "behaviors": {behavior: {"rate": rate, "ci_low": rate - 0.05, "ci_high": rate + 0.05}},
        "metrics": dict.fromkeys(METRICS) | metrics,
    }


ROWS = [
    row("base", "base", rate=0.05, perplexity=1.2, mean_length=28.0),
    row("anchor", "anchor", alpha=0.0, rate=0.4, perplexity=1.3, mean_length=36.0),
    row("bridge alpha=+0.1", "steered", "bridge", 0.1, 0.2, perplexity=1.25, kl_to_anchor=0.01, mean_length=33.0),
    row("bridge alpha=-0.2", "steered", "bridge", -0.2, 0.85, perplexity=1.4, kl_to_anchor=0.05, mean_length=40.0),
    row("bridge alpha=+0.2", "steered", "bridge", 0.2, 0.06, perplexity=1.28, kl_to_anchor=0.04, mean_length=30.0),
    row("random-0 of bridge alpha=+0.2", "control", "bridge", 0.2, 0.41, perplexity=1.31, mean_length=36.5),
    row("random-1 of bridge alpha=+0.2", "control", "bridge", 0.2, 0.39, perplexity=1.29, mean_length=35.5),
    row("random-0 of recipe alpha=+0.2", "control", "recipe", 0.2, 0.5, perplexity=9.0),
    row("anchor resampled", "control", None, 0.0, 0.42, perplexity=1.3),
    row("graddiff-5 of bridge", "baseline", "bridge", None, 0.15, perplexity=1.5),
    row("anchor - 0.5 Delta", "baseline", None, -0.5, 0.2, perplexity=1.22),
]


def cells_of(table):
    return [[getattr(cell, "plain", cell) for cell in line] for line in zip(*(c._cells for c in table.columns))]  # noqa: B905


def panels(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def points(axes):
    """Label -> where its markers are."""
    return {c.get_label(): (c.lines[0].get_xdata()[0], c.lines[0].get_ydata()[0]) for c in axes.containers}


def test_a_vectors_picture_has_its_own_controls_and_those_of_none():
    (one,) = tradeoffs(ROWS)
    assert (one.name, one.target, one.base["name"]) == ("bridge", "bridge", "base")
    assert [each["alpha"] for each in one.curve] == [-0.2, 0.0, 0.1, 0.2]
    assert [each["name"] for each in one.others] == [ROWS[i]["name"] for i in (5, 6, 8, 9, 10)]
    assert one.costs == ["perplexity", "kl_to_anchor", "mean_length"]


def test_sets_of_transforms_have_curves_of_their_own():
    ranked = copy.deepcopy(ROWS[2:6])
    for each in ranked:
        each["transforms"] = ["rank=2"]
    plain_one, ranked_one = tradeoffs([*ROWS, *ranked])
    assert ranked_one.name == "bridge | rank=2"
    assert [each["alpha"] for each in ranked_one.curve] == [-0.2, 0.0, 0.1, 0.2]
    assert all(each["transforms"] == [] for each in plain_one.rows)
    # controls are at the size of their own transformed vector; baselines know of no transforms
    assert [each["name"] for each in ranked_one.others] == [
        "anchor resampled",
        "graddiff-5 of bridge",
        "anchor - 0.5 Delta",
        "random-0 of bridge alpha=+0.2",
    ]


@pytest.mark.parametrize("change", [{"model": "base"}, {"behavior": None}, {"behavior": "not judged"}])
def test_what_has_no_target_or_another_start_is_no_curve(change):
    rows = [each | change if each["kind"] == "steered" else each for each in ROWS]
    assert tradeoffs(rows) == []
    assert tradeoff_figure(rows, "t") is None
    assert tradeoff_table(rows) is None


def test_nothing_measured_gives_no_figure_but_a_table_of_rates():
    rows = [each | {"metrics": dict.fromkeys(METRICS)} for each in ROWS]
    assert tradeoff_figure(rows, "t") is None
    assert len(tradeoff_table(rows).columns) == 3
    assert tradeoff_figure([], "t") is None
    assert tradeoff_table([]) is None


def test_the_curve_leads_through_both_signs_and_the_anchor():
    perplexity, kl, length = panels(tradeoff_figure(ROWS, "t"))
    curve = perplexity.lines[0]
    np.testing.assert_allclose(curve.get_xdata(), [1.4, 1.3, 1.25, 1.28])
    np.testing.assert_allclose(curve.get_ydata(), [85, 40, 20, 6])
    # the anchor's divergence from itself needs no measuring; conditions without a value are left out
    np.testing.assert_allclose(kl.lines[0].get_xdata(), [0.05, 0.0, 0.01, 0.04])
    assert len(kl.containers) == 4
    assert set(points(length)) >= {"base", "nulls"}


def test_points_stand_at_cost_and_rate_with_the_rates_interval():
    axes = panels(tradeoff_figure(ROWS, "t"))[0]
    found = points(axes)
    assert found["base"] == pytest.approx((1.2, 5.0))
    assert found["anchor"] == pytest.approx((1.3, 40.0))
    assert found["graddiff-5"] == pytest.approx((1.5, 15.0))
    assert found["anchor - 0.5 Delta"] == pytest.approx((1.22, 20.0))
    assert found["anchor resampled"] == pytest.approx((1.3, 42.0))
    bars = {c.get_label(): c.lines[2][0].get_segments()[0] for c in axes.containers}
    np.testing.assert_allclose(bars["graddiff-5"], [[1.5, 10.0], [1.5, 20.0]])
    low, high = axes.get_xlim()
    assert low < 1.2
    assert high > 1.5


def test_markers_tell_the_kinds_apart_and_the_legend_names_each_once():
    figure = tradeoff_figure(ROWS, "t")
    markers = {c.get_label(): c.lines[0].get_marker() for c in panels(figure)[0].containers}
    assert markers["base"] == "*"
    kinds = ["anchor", "nulls", "anchor resampled", "graddiff-5", "anchor - 0.5 Delta", "positive alpha"]
    looks = {
        label: (c.lines[0].get_marker(), c.lines[0].get_markerfacecolor())
        for c in panels(figure)[0].containers
        if (label := c.get_label()) in kinds
    }
    assert len(set(looks.values())) == len(kinds)
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names[:5] == ["anchor", "positive alpha", "negative alpha", "base", "nulls"]
    assert sorted(names) == sorted({*names})
    assert {*kinds, "negative alpha", "base"} == set(names)


def test_a_dose_whose_effect_hangs_on_lost_replies_is_hollow_and_marked():
    rows = copy.deepcopy(ROWS)
    assert "hollow" not in tradeoff_figure(rows, "t").get_suptitle()
    solid = [
        line.get_markerfacecolor() for line in panels(tradeoff_figure(rows, "t"))[0].lines if line.get_marker() in "v^"
    ]
    assert "white" not in solid
    fragile = next(each for each in rows if each["kind"] == "steered" and each["alpha"] == 0.2)
    fragile["comparisons"] = {"bridge": {"robust": False}}
    figure = tradeoff_figure(rows, "t")
    assert "hollow: hangs on replies without a verdict" in figure.get_suptitle()
    found = [line.get_markerfacecolor() for line in panels(figure)[0].lines if line.get_marker() in "v^"]
    assert found.count("white") == 1
    assert len(found) == len(solid)
    (line,) = [cells for cells in cells_of(tradeoff_table(rows)) if cells[1] == fragile["name"]]
    assert line[2].endswith("!")
    assert "!: of a rate" in str(tradeoff_table(rows).caption)


def test_shares_are_drawn_in_per_cent():
    rows = copy.deepcopy(ROWS)
    for index, each in enumerate(rows):
        each["metrics"] |= {"unfinished": 0.0, "repetition": 0.01, "degenerate": 0.001 * index, "refusal_harmful": 0.9}
    figure = tradeoff_figure(rows, "t")
    by_label = {axes.get_xlabel(): axes for axes in panels(figure)}
    assert list(by_label) == [
        "perplexity, held-out text", "KL to the anchor (nats a token)", "degenerate (%)",
        "with a repeated sentence (%)", "harmful prompts refused (%)", "mean length (tokens)",
    ]  # fmt: skip
    np.testing.assert_allclose(by_label["degenerate (%)"].lines[0].get_xdata(), [0.3, 0.1, 0.2, 0.4])
    assert all(axes.get_xticks()[axes.get_xticks() >= axes.get_xlim()[0]].min() >= 0 for axes in by_label.values())
    assert points(by_label["harmful prompts refused (%)"])["anchor"] == (90, 40)


def test_one_cost_alone_is_one_panel():
    rows = [each | {"metrics": {"repetition": 0.02}} for each in ROWS]
    (axes,) = panels(tradeoff_figure(rows, "t"))
    assert axes.get_xlabel() == "with a repeated sentence (%)"
    np.testing.assert_allclose(axes.lines[0].get_xdata(), 2)


def test_several_vectors_have_blocks_of_their_own():
    other = [
        row("anchor", "anchor", alpha=0.0, behavior="recipe", perplexity=1.3),
        row("recipe alpha=+1", "steered", "recipe", 1.0, 0.1, "recipe", perplexity=1.3),
    ]
    rows = copy.deepcopy(ROWS)
    rows[1]["behaviors"] |= other[0]["behaviors"]
    rows.append(other[1])
    figure = tradeoff_figure(rows, "costs $5 and $6")
    labels = [axes.get_ylabel() for axes in panels(figure) if axes.get_ylabel()]
    assert labels == ["bridge (%)", "recipe (%)"]
    FigureCanvasAgg(figure).draw()  # a dollar sign is no formula
    # the control of recipe is now drawn, in recipe's panel, where its rate is known
    assert "nulls" not in points(panels(figure)[3])


@pytest.mark.parametrize(("scale", "said"), [(1.0, "-0.2 to +0.2"), (1e-4, "-2e-05 to +2e-05")])
def test_the_title_of_a_block_says_the_largest_doses(scale, said):
    rows = copy.deepcopy(ROWS)
    for each in rows:
        each["alpha"] = None if each["alpha"] is None else each["alpha"] * scale
    (block,) = tradeoff_figure(rows, "t").subfigs
    assert block.get_suptitle() == f"bridge, alpha {said}"
    one_sign = [each for each in ROWS if each["kind"] != "steered" or each["alpha"] == 0.1]
    (block,) = tradeoff_figure(one_sign, "t").subfigs
    assert block.get_suptitle() == "bridge, alpha +0.1"


def test_the_table_has_a_section_for_each_vector_from_the_largest_alpha_down():
    table = tradeoff_table(ROWS, "[red]t[/red]")
    assert [column.header for column in table.columns] == [
        "target", "condition", "its % [95% interval]", "perplexity", "KL to anchor", "tokens",
    ]  # fmt: skip
    cells = cells_of(table)
    assert [line[1] for line in cells[:5]] == [
        "base",
        "anchor",
        "bridge alpha=+0.2",
        "bridge alpha=+0.1",
        "bridge alpha=-0.2",
    ]
    assert cells[0] == ["bridge", "base", "5.0 [0.0, 10.0]", "1.20", "-", "28.0"]
    assert cells[2] == ["", "bridge alpha=+0.2", "6.0 [1.0, 11.0]", "1.28", "0.0400", "30.0"]
    console = Console(width=300, file=io.StringIO())
    console.print(table)
    assert "[red]t[/red]" in console.file.getvalue()


def test_refusals_have_intervals_and_small_counts_a_mark_that_the_caption_explains():
    rows = copy.deepcopy(ROWS)
    for each in rows:
        each["metrics"]["refusal_benign"] = 0.1
    assert [cells_of(tradeoff_table(rows))[0][i] for i in (2, 4)] == ["5.0 [0.0, 10.0]", "-"]
    headers = [column.header for column in tradeoff_table(rows).columns]
    column = headers.index("refused benign % [95% interval]")
    assert cells_of(tradeoff_table(rows))[0][column] == "10.0"  # a report from before there were intervals
    for each in rows:
        each["refusals"] = {"benign": {"rate": 0.1, "ci_low": 0.05, "ci_high": 0.2, "effective_n": 100.0}}
    assert tradeoff_table(rows).caption is None
    assert {line[column] for line in cells_of(tradeoff_table(rows))} == {"10.0 [5.0, 20.0]"}
    rows[2]["refusals"]["benign"]["effective_n"] = 49.0
    rows[3]["behaviors"]["bridge"]["effective_n"] = 33.0  # of 85%
    table = tradeoff_table(rows)
    marked = [(line[1], index) for line in cells_of(table) for index, cell in enumerate(line) if cell.endswith("?")]
    assert marked == [(rows[2]["name"], column), (rows[3]["name"], 2)]
    assert table.caption.plain.startswith("?: ")
