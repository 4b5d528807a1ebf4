"""The matrix of specificity and the table of tests: what is written, where, and marked how."""

import copy
import io

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from rich.console import Console

from gradsteer.reports.comparison_table import comparison_table
from gradsteer.reports.figure_style import PALETTE
from gradsteer.reports.specificity import headline, specificity_table
from gradsteer.reports.specificity_figure import FRAME, specificity_figure


def shift(value, low=None, high=None, shown=100, neither=100):
    if value is not None:
        low, high = value - 0.3 if low is None else low, value + 0.3 if high is None else high
    return {"log_odds_shift": value, "ci_low": low, "ci_high": high, "num_shown": shown, "num_neither": neither}


def row(name, kind="steered", vector=None, alpha=None, shifts=None, selectivity=None, **changes):
    return {
        "name": name,
        "kind": kind,
        "model": "anchor",
        "vector": vector,
        "behavior": vector if kind == "steered" else None,
        "transforms": [],
        "alpha": alpha,
        "specificity": None if shifts is None else {"shifts": shifts, "selectivity": selectivity},
        "comparisons": None,
        **changes,
    }


def selective(value, low, high, other):
    return {"value": value, "ci_low": low, "ci_high": high, "largest_other": other}


ROWS = [
    row("base", "base", shifts={"bridge": shift(-7.0, shown=0), "recipe": shift(None)}),
    row("anchor", "anchor", alpha=0.0),
    row("random-0 of bridge", "control", "bridge", 0.24, {"bridge": shift(-0.001), "recipe": shift(0.02)}),
    row(
        "bridge alpha=+0.12", "steered", "bridge", 0.12,
        {"bridge": shift(-1.1), "recipe": shift(-0.5)}, selective(0.6, 0.2, 0.9, "recipe"),
    ),
    row(
        "bridge alpha=-0.24", "steered", "bridge", -0.24,
        {"bridge": shift(2.0), "recipe": shift(1.9)}, selective(0.1, -0.2, 0.4, "recipe"),
    ),
    row(
        "bridge alpha=+0.24", "steered", "bridge", 0.24,
        {"bridge": shift(-2.1), "recipe": shift(-0.7, shown=9)}, selective(1.234, 0.8, 1.61, "recipe"),
    ),
]  # fmt: skip


def printed(table):
    console = Console(width=300, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def cells_of(table):
    return [[getattr(cell, "plain", cell) for cell in line] for line in zip(*(c._cells for c in table.columns))]  # noqa: B905


def texts_of(figure):
    return {text.get_text(): text for text in figure.axes[0].texts}


def test_the_headline_is_each_signs_largest_dose():
    assert headline(ROWS) == [
        "bridge: selectivity 1.23 [0.80, 1.61] nats at alpha=+0.24 (own -2.10, largest other recipe -0.70)",
        "bridge: selectivity 0.10 [-0.20, 0.40] nats at alpha=-0.24 (own +2.00, largest other recipe +1.90)",
    ]


def test_the_headline_keeps_directions_apart():
    also = [
        row("b|x", "steered", "bridge", 0.5, {"bridge": shift(-1.0)}, transforms=["x"]),
        row("b on base", "steered", "bridge", 0.5, {"bridge": shift(None)}, model="base"),
    ]
    assert [line.split(":")[0] for line in headline([*also, *ROWS])] == [
        "bridge | x",
        "bridge on base",
        "bridge",
        "bridge",
    ]
    assert headline(also)[0] == "bridge | x: own shift -1.00 nats at alpha=+0.5; selectivity not measured"
    assert "own shift - nats" in headline(also)[1]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        ROWS[:3],
        [row("v", "steered", "v", 0.1)],
        [row("v", "steered", "v", None, {"v": shift(1.0)})],
        [row("v", "steered", "v", 0.1, {"other": shift(1.0)}, behavior=None)],
    ],
)
def test_no_headline_without_a_direction_of_known_behavior(rows):
    assert headline(rows) == []


def test_the_table_has_steered_conditions_first_and_marks_own_and_few():
    cells = cells_of(specificity_table(ROWS))
    assert [line[0] for line in cells] == [
        "bridge alpha=+0.12",
        "bridge alpha=-0.24",
        "bridge alpha=+0.24",
        "random-0 of bridge",
        "base",
    ]
    assert cells[2] == [
        "bridge alpha=+0.24",
        "-2.10 [-2.40, -1.80]* ",
        "-0.70 [-1.00, -0.40] ?",
        "+1.23 [+0.80, +1.61]",
    ]
    assert cells[3][1:] == ["+0.00 [-0.30, +0.30]  ", "+0.02 [-0.28, +0.32]  ", "-"]  # no negative nought
    assert cells[4][1:] == ["-7.00 [-7.30, -6.70] ?", "-  ", "-"]


def test_counts_before_steering_are_looked_at_too():
    rows = [row("v", "steered", "v", 0.1, {"v": shift(1.0) | {"num_shown_before": 3, "num_neither_before": 50}})]
    assert cells_of(specificity_table(rows))[0][1].endswith("*?")


def test_one_behavior_has_no_column_of_selectivity():
    rows = [row("v", "steered", "v", 0.1, {"v": shift(-1.0)})]
    table = specificity_table(rows)
    assert len(table.columns) == 2
    figure = specificity_figure(rows, "t")
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["v"]


def test_nothing_measured_gives_nothing():
    for rows in ([], [ROWS[1]]):
        assert specificity_table(rows) is None
        assert specificity_figure(rows, "t") is None
        assert comparison_table(rows) is None


def test_the_figure_is_the_matrix():
    figure = specificity_figure(ROWS, "costs $5 and $6")
    axes = figure.axes[0]
    lines = [label.get_text() for label in axes.get_yticklabels()]
    assert lines == [*(line[0] for line in cells_of(specificity_table(ROWS))[:3]), "1 null of bridge", "base"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["bridge", "recipe", "selectivity"]
    image = axes.images[0]
    expected = [[-1.1, -0.5], [2.0, 1.9], [-2.1, -0.7], [np.nan, np.nan], [-7.0, np.nan]]
    np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.nan), expected)
    assert image.get_clim() == (-2.1, 2.1)  # of the steered: the base is far off
    colors = [to_hex(image.cmap(share)) for share in (0.0, 1.0)]
    assert colors == [PALETTE[1].lower(), PALETTE[0].lower()]
    assert np.allclose(image.cmap(0.5), 1, atol=0.01)
    # the line above the first control
    assert [segment.tolist()[0][1] for segment in axes.collections[0].get_segments()] == [2.5]
    FigureCanvasAgg(figure).draw()  # a dollar sign is no formula


def test_numbers_stand_in_their_cells_and_own_cells_are_framed():
    figure = specificity_figure(ROWS, "t")
    axes = figure.axes[0]
    texts = texts_of(figure)
    own = texts["-2.10 [-2.40, -1.80]"]
    assert own.get_position() == (0, 2)
    assert texts["-0.70 [-1.00, -0.40]"].get_fontstyle() == "italic"
    assert own.get_fontstyle() == "normal"
    assert own.get_color() == "white"  # on dark blue
    assert texts["+2.00 [+1.70, +2.30]"].get_color() != "white"  # on orange
    assert texts["1.23 [0.80, 1.61]"].get_position() == (2, 2)
    assert texts["1.23 [0.80, 1.61]"].get_fontweight() == "bold"
    assert texts["0.10 [-0.20, 0.40]"].get_fontweight() == "normal"
    assert texts["-"].get_position() == (1, 4)
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_linewidth() == FRAME]
    centres = [(patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2) for patch in frames]
    np.testing.assert_allclose(centres, [(0, 0), (0, 1), (0, 2)], atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 6])
def test_no_two_texts_of_the_figure_overlap(size):
    behaviors = [f"behavior-{index}" for index in range(size)]
    rows = [
        row(
            f"{own} alpha=-0.00075", "steered", own, -0.00075,
            {each: shift(-12.34, -15.5, -10.5) for each in behaviors},
            selective(-10.25, -12.5, -10.5, behaviors[-1]) if size > 1 else None,
        )
        for own in behaviors
    ]  # fmt: skip
    figure = specificity_figure(rows, "t")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    labels = [*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels()]
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in labels]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in boxes)


def test_comparisons_are_in_points_with_both_p_values():
    rows = copy.deepcopy(ROWS)
    rows[5]["comparisons"] = {
        "bridge": {
            "difference": -0.385, "ci_low": -0.431, "ci_high": -0.3384, "p": 0.0002, "p_holm": 0.006,
            "test": "sign_flip", "few": False,
        },
        "recipe": {
            "difference": 0.0002, "ci_low": -0.017, "ci_high": 0.021, "p": 0.03, "p_holm": 0.0501,
            "test": "mcnemar", "few": True,
        },
    }  # fmt: skip
    rows[4]["comparisons"] = {
        "bridge": dict.fromkeys(("difference", "ci_low", "ci_high", "p", "p_holm", "test")) | {"few": True}
    }
    table = comparison_table(rows)
    assert cells_of(table) == [
        ["bridge alpha=-0.24", "bridge", "-?", "-", "- ", "-"],
        ["bridge alpha=+0.24", "bridge", "-38.5 [-43.1, -33.8] ", "<0.001", "0.006*", "sign_flip"],
        ["", "recipe", "+0.0 [-1.7, +2.1]?", "0.030", "0.050 ", "mcnemar"],
    ]


def test_findings_that_hang_on_degenerate_replies_are_marked_and_explained():
    rows = copy.deepcopy(ROWS[4:])
    each = {
        "difference": -0.5, "ci_low": -0.6, "ci_high": -0.4, "p": 0.0, "p_holm": 0.0, "test": "sign_flip", "few": False,
    }  # fmt: skip
    rows[0]["comparisons"] = {
        "bridge": {**each, "robust": False},
        "recipe": {**each, "robust": False, "few": True},
        "poem": {**each, "robust": True},
    }
    table = comparison_table(rows)
    assert [line[2] for line in cells_of(table)] == [
        "-50.0 [-60.0, -40.0] !",
        "-50.0 [-60.0, -40.0]?!",
        "-50.0 [-60.0, -40.0]  ",
    ]
    assert (
        "!: whether p is at most .05, or the sign, hangs on how replies without a verdict are counted" in table.caption
    )
    rows[0]["comparisons"] = {"poem": {**each, "robust": True}}
    assert "!" not in comparison_table(rows).caption


def test_behaviors_that_no_condition_moves_are_named_below_the_table():
    rows = copy.deepcopy(ROWS[4:6])
    each = {"difference": 0.0, "ci_low": -0.1, "ci_high": 0.1, "p": 1.0, "p_holm": 1.0, "test": "mcnemar", "few": True}
    same, differs = {**each, "num_differing": 0}, {**each, "num_differing": 2}
    rows[0]["comparisons"] = {"bridge": same, "benign_refused": same, "harmful_refused": same}
    rows[1]["comparisons"] = {"bridge": differs, "benign_refused": same}
    table = comparison_table(rows)
    assert [line[1] for line in cells_of(table)] == ["bridge", "bridge"]
    assert "under any condition, and the correction counts it: benign_refused, harmful_refused" in table.caption
    rows[1]["comparisons"]["harmful_refused"] = differs
    table = comparison_table(rows)
    assert [line[1] for line in cells_of(table)] == ["bridge", "harmful_refused", "bridge", "harmful_refused"]
    assert "under any condition, and the correction counts it: benign_refused" in table.caption
    # not differing among the replies that are left is not the same
    for open_ended in ({"robust": False}, {"num_pairs": 0, "difference": None}):
        rows[1]["comparisons"]["benign_refused"] = {**same, **open_ended}
        table = comparison_table(rows)
        assert [line[1] for line in cells_of(table)][-2:] == ["benign_refused", "harmful_refused"]
        assert "under any condition" not in table.caption
    for row in rows:
        row["comparisons"] = {"bridge": same, "benign_refused": same}
    table = comparison_table(rows)
    assert len(cells_of(table)) == 4, "a table that would be empty is shown whole"
    assert "under any condition" not in table.caption


def test_names_are_no_markup():
    odd = "[red]x[/red]"
    rows = [
        row(odd, "steered", odd, 0.1, {odd: shift(-1.0), "[b]": shift(0.0)}, selective(1.0, 0.5, 1.5, "[b]")),
    ]
    rows[0]["comparisons"] = {
        odd: {"difference": 0.1, "ci_low": 0, "ci_high": 0.2, "p": 1.0, "p_holm": 1.0, "test": odd, "few": False}
    }
    for table in (specificity_table(rows, odd), comparison_table(rows, odd)):
        assert printed(table).count(odd) >= 3
