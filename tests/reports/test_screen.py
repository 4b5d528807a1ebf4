"""The one screen: what stands on it, within 100 columns, whatever the number of conditions and behaviors."""

from pathlib import Path

import pytest
from experiment_rows import experiment

from gradsteer.reports.cells import behavior_text, condition_text, selectivity_text
from gradsteer.reports.nulls import nulls_by_vector
from gradsteer.reports.screen import WIDTH, results_screen

FILES = [Path("out") / name for name in ("results.json", "results.csv", "tables.txt")]
PICTURES = [Path("out/figures") / name for name in ("rates-results.png", "trade-offs.png")]
THREE, SEVEN = ("bridge", "recipe", "poem"), tuple(f"behavior-of-a-long-name-{index}" for index in range(7))


def shown(rows, **more):
    text = results_screen(rows, "t: rates", files=FILES, pictures=PICTURES, **more)
    assert max(map(len, text.splitlines())) <= WIDTH
    return text


def line_of(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name}  ")]
    return line


@pytest.mark.parametrize("number", [10, 15, 60])
@pytest.mark.parametrize("behaviors", [("bridge",), ("bridge", "recipe")])
def test_every_condition_has_a_row_with_rate_interval_forecast_and_selectivity(number, behaviors):
    rows = experiment(number, behaviors)
    text = shown(rows)
    for row in rows:
        if row["kind"] == "control" and row["vector"] is not None:
            assert row["name"] not in text
            continue
        line = line_of(text, row["name"])
        for name in behaviors:
            assert behavior_text(row, name) in line
            said = (row["predicted"]["rates"][name]["rate"], row["predicted"]["reliable"])
            forecast = f"{100 * said[0]:.1f}" if said[1] else f"({100 * said[0]:.1f})"
            assert f" {forecast} " in f"{line} " or row["kind"] == "anchor"
        if len(behaviors) > 1 and row["kind"] == "steered":
            assert line.endswith(selectivity_text(row["specificity"]["selectivity"], "z.2f"))


@pytest.mark.parametrize("number", [10, 60])
def test_the_nulls_of_a_vector_are_one_row_from_the_lowest_to_the_highest(number):
    rows = experiment(number)
    text = shown(rows)
    for nulls in nulls_by_vector(rows):
        line = line_of(text, nulls.name)
        rates = [100 * row["behaviors"]["bridge"]["rate"] for row in nulls.rows]
        low, high = f"{min(rates):.1f}", f"{max(rates):.1f}"
        assert (f" {low} to {high} " if low != high else f" {low} ") in line
    assert f"random ({sum(map(len, (each.rows for each in nulls_by_vector(rows))))})" in text


def test_the_nulls_of_many_vectors_share_a_row():
    rows = [row for name in "abcd" for row in experiment(24, (name, "other")) if row["vector"] == name]
    number = sum(row["kind"] == "control" for row in rows)
    assert number > 4
    assert f"\n{number} nulls  " in shown(rows)
    assert "nulls of a" not in shown(rows)


def test_without_a_forecast_there_is_no_column_and_no_agreement():
    assert "forecast" in shown(experiment(15))
    text = shown(experiment(15, forecast=False))
    assert "forecast" not in text
    assert "selectivity" in text


def test_agreement_and_the_slope_are_said_in_two_lines_below():
    text = shown(experiment(15))
    below = text[text.index("forecasts within 5 points of the realised rates: steered ") :]
    assert "nulls " in below
    assert "realised on predicted shifts of log-odds, slope through 0: 1.10 [" in below


def test_three_behaviors_stand_side_by_side_in_whole_per_cent():
    rows = experiment(15, THREE)
    text = shown(rows)
    for row in rows:
        if row["kind"] == "steered":
            for name in THREE:
                assert behavior_text(row, name, ".0f") in line_of(text, row["name"])


def test_more_behaviors_go_on_below():
    rows = experiment(15, SEVEN)
    text = shown(rows)
    name = next(row["name"] for row in rows if row["kind"] == "baseline")
    lines = [line for line in text.splitlines() if line.startswith(f"{name}  ")]
    assert len(lines) > 1
    assert sum(line.count("[") for line in lines) == len(SEVEN)
    assert text.count("selectivity\n") == 1


@pytest.mark.parametrize("suffix", [" | top_k(percent=1) | orthogonal_to(length)", "_" + "x" * 120])
def test_long_names_wrap_and_nothing_of_them_is_lost(suffix):
    rows = experiment(15, suffix=suffix)
    text = shown(rows)
    first = [line[:20].strip() for line in text.splitlines()]
    row = next(row for row in rows if row["kind"] == "steered")
    assert row["name"][:12].strip() in " ".join(first)
    assert behavior_text(row, "bridge", ".0f").split(" ")[0] in text


def test_a_model_that_broke_is_marked_with_what_shows_it():
    rows = experiment(15)
    assert "~" not in shown(rows)
    steered = next(row for row in rows if row["kind"] == "steered")
    null = next(row for row in rows if row["name"].startswith("random"))
    steered["damaged"], null["damaged"] = ["perplexity", "unfinished"], ["degenerate"]
    text = shown(rows)
    assert line_of(text, condition_text(steered)) != ""
    assert "~: a model that broke" in text
    said = " ".join(text.split())
    assert f"{steered['name']} (perplexity, unfinished), {null['name']} (degenerate)" in said
    (nulls,) = [each for each in nulls_by_vector(rows) if null in each.rows]
    assert f"{nulls.name} ~" in text


def test_marks_are_kept_and_explained_where_there_are_some():
    rows = experiment(10)
    assert "?:" not in shown(rows)
    rows[2]["behaviors"]["bridge"]["effective_n"] = 5.0
    assert f"{behavior_text(rows[2], 'bridge')} " in line_of(shown(rows), rows[2]["name"])
    assert behavior_text(rows[2], "bridge").endswith("?")
    assert "?: rests on small counts\n" in shown(rows)
    rows[4]["comparisons"] = {"recipe": {"robust": False}}
    assert "?: rests on small counts; !: hangs on how replies without a verdict are counted\n" in shown(rows)


def test_the_note_and_the_paths_are_at_the_end():
    text = shown(experiment(10), note="what one must know " * 20)
    assert text.index("what one must know") < text.index("forecasts within")
    assert text.endswith(
        "results: out/results.json, results.csv, tables.txt\n"
        "pictures: out/figures/rates-results.png, trade-offs.png"
    )  # fmt: skip


def test_one_condition_alone_and_none_at_all():
    rows = experiment(10)[1:2]
    assert behavior_text(rows[0], "bridge") in line_of(shown(rows), "anchor")
    assert "nulls" not in shown(rows)
    assert results_screen([], "t").strip() == "t"


def test_names_are_no_markup():
    rows = experiment(10, ("[red]x[/red]", "recipe"))
    assert "[red]x[/red]" in shown(rows)
