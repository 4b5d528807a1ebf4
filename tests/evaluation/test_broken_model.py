"""A model that broke is marked as such, whatever its rates."""

import pytest
from judged import rows_of, steer_words
from road import run

from gradsteer.evaluation.broken_model import damage
from gradsteer.reports.cells import DAMAGED, condition_text
from gradsteer.reports.comparison_table import comparison_table
from gradsteer.reports.predictions import predictions_table
from gradsteer.reports.results_table import results_table
from gradsteer.reports.specificity import headline, specificity_table
from gradsteer.reports.tradeoffs import tradeoff_table

START = {"perplexity": 2.0, "base_perplexity": 3.0, "degenerate": 0.1, "unfinished": 0.2, "kl_to_anchor": 0.0}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"perplexity": 3.99, "base_perplexity": 5.9, "degenerate": 0.59, "unfinished": 0.69}, []),
        ({"perplexity": 4.0}, ["perplexity"]),
        ({"base_perplexity": 6.5, "unfinished": 0.75}, ["base_perplexity", "unfinished"]),
        ({"degenerate": 0.7, "perplexity": None}, ["degenerate"]),
        ({"perplexity": 0.5, "degenerate": 0.0, "kl_to_anchor": 9.0}, []),
    ],
)
def test_damage_by_hand(changes, found):
    assert damage({**START, **changes}, START) == found


def test_what_was_not_measured_of_either_is_not_flagged():
    assert damage({"perplexity": 9.0, "unfinished": 1.0}, {"perplexity": None}) == []
    assert damage({}, START) == []


@pytest.fixture(scope="module")
def broken(judged, inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("broken")
    words = steer_words(
        judged,
        out,
        steering__base=judged.base,
        steering__alphas="[0.01, 300]",
        steering__on_base="true",
        evaluation__heldout=inputs / "chat.jsonl",
        data__max_prompts=8,
        model__num_samples=2,
        model__max_new_tokens=12,
    )
    run(*words)
    return rows_of(out / "results.json")


@pytest.mark.slow
def test_the_dose_that_breaks_the_model_is_marked_and_no_other(broken):
    for name, row in broken.items():
        start = broken["base" if row["model"] == "base" and name != "base" else "anchor"]
        assert row["damaged"] == ([] if name == "base" else damage(row["metrics"], start["metrics"]))
    assert "perplexity" in broken["a alpha=+300"]["damaged"]
    assert "perplexity" in broken["a alpha=+300 on base"]["damaged"]
    assert not any(broken[name]["damaged"] for name in ("base", "anchor", "a alpha=+0.01", "a alpha=-0.01"))


def shown(table):
    from rich.console import Console

    console = Console(width=400)
    with console.capture() as capture:
        console.print(table)
    return " ".join(capture.get().split())


@pytest.mark.slow
def test_every_table_and_the_headline_say_so(broken):
    rows = list(broken.values())
    assert condition_text(broken["anchor"]) == "anchor"
    for table in (results_table(rows, "t"), tradeoff_table(rows), specificity_table(rows), comparison_table(rows)):
        text = shown(table)
        assert "a alpha=+300 ~" in text
        assert "a alpha=+0.01 ~" not in text
        assert "~: a model that broke" in text
    assert "a alpha=+300 ~" in shown(predictions_table(rows, "t"))
    assert " ".join(DAMAGED.split()) in shown(results_table(rows, "t"))
    said = [line for line in headline(rows) if "a model that broke: see perplexity" in line]
    assert any("alpha=+300 (" in line for line in said)
    fine = [row for row in rows if not row["damaged"]]
    assert "~" not in "".join([*map(shown, (results_table(fine, "t"), specificity_table(fine))), *headline(fine)])


@pytest.mark.slow
def test_the_headline_says_so_also_without_a_selectivity(broken):
    row = {**broken["a alpha=+300"]}
    row["specificity"] = {**row["specificity"], "selectivity": None}
    [line] = headline([row])
    assert "selectivity not measured; a model that broke: see perplexity" in line
