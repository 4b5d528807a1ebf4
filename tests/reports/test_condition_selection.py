"""What is planned, chosen by forecast, and said of predictions: by hand, on rows as reports hold them."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gradsteer.evaluation.specificity import measure_specificity
from gradsteer.reports.condition_selection import Selection, choose, read_forecast
from gradsteer.reports.curves import agreement_figure, forecast_figure
from gradsteer.reports.predictions import (
    Agreement,
    agreement,
    agreement_lines,
    cells,
    forecast_table,
    pooled_slope,
    predicted_shift,
    predictions_table,
    shift_text,
)
from gradsteer.reports.results import write_results
from gradsteer.steering.condition_plan import (
    Baselines,
    Controls,
    Recipe,
    controls_at_largest,
    identity_of,
    plan_conditions,
)
from gradsteer.steering.condition_weights import ConditionWeights
from gradsteer.steering.conditions import Condition
from gradsteer.steering.doses import Dose
from gradsteer.vectors.parameter_vectors import ParameterVector, SteeringVector

# --- rows ------------------------------------------------------------------------------------------------------------


def interval(rate):
    return {"rate": rate, "ci_low": max(0.0, rate - 0.05), "ci_high": min(1.0, rate + 0.05)}


def predicted(rates, *, role="steered", reliable=True, kl=0.01, shift=None, linear=0.3, **more):
    return {
        "role": role, "method": "importance" if reliable else "linear", "reliable": reliable, "num_responses": 400,
        "effective_sample_size": 400.0 if reliable else 20.0, "kl_per_token": kl, "mean_length": 12.0,
        "log_odds_shift": shift, "linear_log_odds_shift": None if shift is None else 2 * shift,
        "rates": {name: {**interval(rate), "importance": rate, "linear": linear} for name, rate in rates.items()},
        "classes": {},
        **more,
    }  # fmt: skip


def row(
    name,
    measured,
    said=None,
    *,
    kind="steered",
    vector="a",
    alpha=0.1,
    model="anchor",
    realised=None,
    transforms=(),
    asked=None,
    classes=(),
):
    return {
        "name": name, "kind": kind, "model": model, "vector": vector if kind != "anchor" else None, "alpha": alpha,
        "transforms": list(transforms), "relative_norm": 0.01, "asked": asked, "predicted": said,
        "realised": realised,
        "classes": {name: interval(rate) for name, rate in dict(classes).items()},
        "behaviors": {
            behavior: {"num_scored": 400, "num_unscored": 0, "num_positive": 1, **interval(rate)}
            if rate is not None else {"num_scored": 0, "rate": None, "ci_low": None, "ci_high": None}
            for behavior, rate in measured.items()
        },
    }  # fmt: skip


def forecast_row(name, rates, *, vector="a", role="steered", model="anchor", alpha=0.1, transforms=(), **more):
    kind = "anchor" if role == "anchor" else "forecast"
    said = predicted({k: v for k, v in rates.items() if v is not None}, role=role, **more)
    return row(name, rates, said, kind=kind, vector=vector, alpha=alpha, model=model, transforms=transforms)


ANCHOR = forecast_row("anchor", {"a": 0.4, "b": 0.2}, role="anchor", alpha=0.0)


def log_odds(rate, number=400):
    return math.log((rate * number + 0.5) / ((1 - rate) * number + 0.5))


# --- choosing --------------------------------------------------------------------------------------------------------

ROWS = [
    ANCHOR,
    forecast_row("weak", {"a": 0.3, "b": 0.2}, kl=0.001),
    forecast_row("strong", {"a": 0.05, "b": 0.01}, kl=0.05),
    forecast_row("clean", {"a": 0.1, "b": 0.21}, kl=0.02),
    forecast_row("fair", {"a": 0.09, "b": 0.15}, kl=0.02),
    forecast_row("other way", {"a": 0.7, "b": 0.19}, kl=0.03, alpha=-0.1),
    forecast_row("unscored", {"a": 0.01, "b": None}),
    forecast_row("unreliable", {"a": 0.01, "b": 0.2}, kl=1e-5, reliable=False),
    forecast_row("a control", {"a": 0.01, "b": 0.2}, role="control"),
    forecast_row("on base", {"a": 0.01, "b": 0.2}, model="base"),
    forecast_row("of b", {"a": 0.4, "b": 0.05}, vector="b"),
]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection("target_rate", rate=0.1), ["clean"]),  # at the target counts
        (Selection("target_rate", rate=0.0951), ["clean"]),  # so does half a point beside it
        (Selection("target_rate", rate=0.0949), ["fair"]),
        (Selection("target_rate", rate=0.7049), ["other way"]),
        (Selection("target_rate", rate=0.1, keep=2), ["clean", "fair"]),
        (Selection("target_rate", rate=0.1, keep=9), ["strong", "clean", "fair"]),
        (Selection("target_rate", rate=0.06), ["strong"]),
        (Selection("target_rate", rate=0.6), ["other way"]),  # above the anchor's rate
        (Selection("selectivity", max_kl=0.1), ["clean"]),
        (Selection("selectivity", max_kl=0.1, keep=2), ["clean", "fair"]),
        (Selection("selectivity", max_kl=0.1, keep=3), ["clean", "fair", "other way"]),
        (Selection("selectivity", max_kl=0.001), ["weak"]),
    ],
)
def test_the_best_conditions_are_kept(selection, expected):
    assert choose(ROWS, {"a": "a"}, selection) == expected


def test_the_order_is_by_what_is_changed_besides():
    def besides(row):
        return abs(log_odds(row["behaviors"]["b"]["rate"]) - log_odds(0.2))

    def selectivity(row):
        # replies of the rates given, 400 a condition, as the results' own selectivity counts them
        def replies(rates):
            shown = [(True, False)] * round(400 * rates["a"]) + [(False, True)] * round(400 * rates["b"])
            shown += [(False, False)] * (400 - len(shown))
            return [{"prompt": "p", "verdicts": {"a": one, "b": other}} for one, other in shown]

        after = replies({name: rate["rate"] for name, rate in row["behaviors"].items()})
        found = measure_specificity(replies({"a": 0.4, "b": 0.2}), after, ["a", "b"], "a", row["alpha"], draws=100)
        return found.selectivity.value

    candidates = [r for r in ROWS[1:6]]
    by_rate = sorted((r for r in candidates if r["behaviors"]["a"]["rate"] <= 0.1), key=besides)
    by_selectivity = sorted(candidates, key=selectivity, reverse=True)
    for keep in (1, 2, 3, 4):
        kept = choose(ROWS, {"a": "a"}, Selection("target_rate", rate=0.1, keep=keep))
        assert set(kept) == {r["name"] for r in by_rate[:keep]}
        kept = choose(ROWS, {"a": "a"}, Selection("selectivity", max_kl=1.0, keep=keep))
        assert set(kept) == {r["name"] for r in by_selectivity[:keep]}


def test_with_one_behavior_alone_the_most_selective_moves_it_most():
    rows = [forecast_row("anchor", {"a": 0.4}, role="anchor", alpha=0.0)]
    rows += [forecast_row("weak", {"a": 0.3}), forecast_row("strong", {"a": 0.1}), forecast_row("up", {"a": 0.9})]
    assert choose(rows, {"a": "a"}, Selection("selectivity", max_kl=0.1)) == ["strong"]  # up goes the wrong way


def test_every_vector_has_its_own():
    assert choose(ROWS, {"a": "a", "b": "b"}, Selection("target_rate", rate=0.1)) == ["clean", "of b"]
    rates = [forecast_row("none", {"a": 0.0, "b": 0.2}), forecast_row("all", {"a": 1.0, "b": 0.2}, vector="b")]
    assert choose([ANCHOR, *rates], {"a": "a", "b": "a"}, Selection("selectivity", max_kl=1.0)) == ["none", "all"]


@pytest.mark.parametrize(
    ("behaviors", "selection", "message"),
    [
        ({"a": None}, Selection("target_rate", rate=0.1), "which behavior is vector 'a' of"),
        ({"a": "c"}, Selection("target_rate", rate=0.1), "give --steering.behaviors.a BEHAVIOR"),
        ({"a": "a"}, Selection("target_rate", rate=0.02), "vector 'a': no condition reaches a rate of 0.02 of 'a'; the "
         "nearest comes to 0.05"),
        ({"a": "a"}, Selection("target_rate", rate=0.9), "the nearest comes to 0.7"),
        ({"a": "a"}, Selection("selectivity", max_kl=1e-4), "no condition stays within 0.0001 nats a token; the "
         "least is 0.001"),
        ({"c": "a"}, Selection("selectivity", max_kl=1), "vector 'c': the forecast has no condition of it that "
         "is to be believed"),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen(behaviors, selection, message):
    with pytest.raises(ValueError, match=message):
        choose(ROWS, behaviors, selection)
    with pytest.raises(ValueError, match="the forecast has no anchor to compare with"):
        choose(ROWS[1:], behaviors, selection)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rule": "best"}, "steering.select.rule is 'best'; accepted: target_rate, selectivity"),
        ({"rule": "target_rate"}, "rate belongs to the rule target_rate, which needs it"),
        ({"rule": "selectivity", "max_kl": 1, "rate": 0.1}, "rate belongs to the rule target_rate"),
        ({"rule": "selectivity"}, r"max_kl belongs to the rule selectivity, which needs it \(nats a token\)"),
        ({"rule": "target_rate", "rate": 0.1, "max_kl": 1}, "max_kl belongs to the rule selectivity"),
        ({"rule": "target_rate", "rate": 1.0}, "rate is 1.0; accepted: more than 0 and less than 1"),
        ({"rule": "selectivity", "max_kl": 0}, "max_kl is 0; accepted: nats a token, more than 0"),
        ({"rule": "selectivity", "max_kl": 1, "keep": 0}, "keep is 0; accepted: at least 1"),
    ],
)
def test_selections_that_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Selection(**given)


def test_a_forecast_is_read_and_nothing_else(tmp_path):
    write_results(tmp_path / "forecast.json", "e", ROWS, forecast={"model_fingerprint": "f"})
    assert read_forecast(str(tmp_path / "forecast.json"))["conditions"] == json.loads(json.dumps(ROWS))
    write_results(tmp_path / "results.json", "e", ROWS)
    with pytest.raises(ValueError, match="is no forecast of format 1"):
        read_forecast(str(tmp_path / "results.json"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="is not readable as JSON"):
        read_forecast(str(tmp_path / "broken.json"))
    with pytest.raises(FileNotFoundError, match="no forecast at 'nowhere.json'"):
        read_forecast("nowhere.json")


# --- predictions beside what came out --------------------------------------------------------------------------------


def realised(shift, width=0.4):
    counts = dict.fromkeys(("num_plus", "num_minus", "num_plus_before", "num_minus_before"), 50)
    return {"log_odds_shift": shift, "ci_low": shift - width / 2, "ci_high": shift + width / 2, **counts}


NONE = {"log_odds_shift": None, "ci_low": None, "ci_high": None}
PAIRS = [
    row("anchor", {"a": 0.4}, predicted({"a": 0.4}, role="anchor"), kind="anchor", alpha=0.0),
    row("one", {"a": 0.30, "b": 0.2}, predicted({"a": 0.32, "b": 0.25}, shift=-0.5), realised=realised(-0.4)),
    row("two", {"a": 0.10, "b": None}, predicted({"a": 0.20, "b": 0.25}, shift=1.0), realised=realised(1.2, 0.8)),
    row("far", {"a": 0.10}, predicted({"a": 0.31}, reliable=False, shift=0.5), realised=realised(2.0)),
    row("plain", {"a": 0.3}, None),
    row("by slope", {"a": 0.3}, {"role": "steered", "calibrated_log_odds_shift": -2.0}, realised=realised(-1.0)),
    row("null", {"a": 0.3}, predicted({"a": 0.3}, shift=0.1), kind="control", realised=realised(0.0)),
    row("elsewhere", {"a": 0.3}, predicted({"a": 0.3}, shift=0.1), model="base", realised=realised(0.0)),
    row("unjudged", {}, predicted({"a": 0.3}, shift=0.1), realised=NONE),
]  # fmt: skip


def test_agreement_by_hand():
    assert [(r["name"], behavior) for r, behavior, _, _ in cells(PAIRS)] == [
        ("one", "a"), ("one", "b"), ("two", "a"), ("far", "a"), ("null", "a"), ("elsewhere", "a"),
    ]  # fmt: skip
    good = agreement(PAIRS, reliable=True)
    assert (good.num_cells, good.num_within) == (5, 4)
    assert good.mean_error == pytest.approx((0.02 + 0.05 + 0.10 + 0 + 0) / 5)
    close = "4 of 5 (80%) within 5 points, mean error 3.4 points"
    assert str(good) == f"{close}; 4 of 5 (80%) as near as their intervals allow"
    bad = agreement(PAIRS, reliable=False)
    assert (bad.num_cells, bad.num_within, bad.mean_error) == (1, 0, pytest.approx(0.21))
    assert (bad.num_intervals, bad.num_consistent) == (1, 0)
    assert agreement(PAIRS[:1], reliable=True) == Agreement(0, 0, None)
    assert str(Agreement(0, 0, None)) == "none"
    assert str(Agreement(2, 1, 0.04)) == "1 of 2 (50%) within 5 points, mean error 4.0 points"


def test_the_limits_that_face_each_other_decide():
    """The roots of .03^2 + .08^2 and of .03^2 + .10^2 are .085 and .104; the rates are .1 apart."""
    low, near = {"rate": 0.1, "ci_low": 0.0, "ci_high": 0.13}, {"rate": 0.2, "ci_low": 0.12, "ci_high": 0.4}
    for above, consistent in ((near, 0), ({**near, "ci_low": 0.1}, 1)):
        for one, other in ((low, above), (above, low)):
            rows = [row("one", {"a": 0.5}, {**predicted({}), "rates": {"a": one}})]
            rows[0]["behaviors"]["a"].update(other)
            found = agreement(rows, reliable=True)
            assert (found.num_intervals, found.num_consistent) == (1, consistent)
    rows[0]["behaviors"]["a"]["ci_low"] = None
    assert agreement(rows, reliable=True).num_intervals == 0


CLASSES = ("only a", "only b", "a and b", "neither")


def with_classes(name, measured, said, **more):
    """A row with rates of the four classes of two behaviors, measured and forecast."""
    forecast = {each: interval(rate) for each, rate in zip(CLASSES, said, strict=True)}
    given = dict(zip(CLASSES, measured, strict=True))
    return row(name, {"a": 0.5, "b": 0.5}, predicted({"a": 0.1, "b": 0.1}, classes=forecast, **more), classes=given)


def test_agreement_is_over_the_classes_where_there_are_some():
    rows = [with_classes("one", (0.1, 0.2, 0.3, 0.4), (0.1, 0.22, 0.28, 0.5)), PAIRS[0]]
    assert [name for _, name, _, _ in cells(rows, classes=True)] == list(CLASSES)
    assert [name for _, name, _, _ in cells(rows)] == ["a", "b"]
    found = agreement(rows, reliable=True)
    assert (found.num_cells, found.num_within, found.num_intervals, found.num_consistent) == (4, 3, 4, 3)
    assert found.mean_error == pytest.approx((0 + 0.02 + 0.02 + 0.1) / 4)
    rows[0]["classes"]["only c"] = interval(0.0)  # judged for more behaviors than were forecast: other classes
    assert cells(rows, classes=True) == []
    assert agreement(rows, reliable=True).num_cells == 2


@pytest.mark.parametrize("count", ["num_plus", "num_minus", "num_plus_before", "num_minus_before"])
def test_an_empty_class_is_left_out_of_the_pooled_slope(count):
    rows = [row(str(x), {}, predicted({}, shift=x), realised=realised(0.9 * x)) for x in (-1.0, 0.5)]
    rows.append(row("far", {}, predicted({}, shift=3.0), realised={**realised(-7.0), count: 0}))
    slope, *_, number = pooled_slope(rows)
    assert (slope, number) == (pytest.approx(0.9), 2)
    assert pooled_slope(rows[2:]) is None


def test_which_shift_was_predicted():
    by_name = {each["name"]: predicted_shift(each) for each in PAIRS}
    assert by_name["one"] == -0.5
    assert by_name["far"] == 1.0  # the linear form's
    assert by_name["by slope"] == -2.0
    assert by_name["plain"] is None
    assert shift_text(realised(-0.4)) == "-0.40 [-0.60, -0.20]"
    assert shift_text(None) == shift_text(PAIRS[-1]["realised"]) == "-"


def test_the_pooled_slope_by_hand():
    asked, got, widths = [-0.5, 1.0, 1.0, -2.0], [-0.4, 1.2, 2.0, -1.0], [0.4, 0.8, 0.4, 0.4]
    slope, low, high, number = pooled_slope(PAIRS)
    squares = sum(x * x for x in asked)
    expected = sum(x * y for x, y in zip(asked, got, strict=True)) / squares
    error = math.sqrt(sum((x * w / 3.92) ** 2 for x, w in zip(asked, widths, strict=True))) / squares
    assert number == 4
    assert slope == pytest.approx(expected)
    assert (low, high) == pytest.approx((expected - 1.96 * error, expected + 1.96 * error))
    assert pooled_slope(PAIRS[:1]) is None
    exact = [row(str(x), {}, predicted({}, shift=x), realised=realised(0.9 * x)) for x in (-1.0, 0.5, 0.0)]
    assert pooled_slope(exact)[0] == pytest.approx(0.9)
    assert pooled_slope(exact)[3] == 2  # no shift says nothing of a slope
    asked = {"kind": "log_odds_shift", "value": -1.0}
    one = row("asked", {}, predicted({}, shift=-1.0), realised=realised(-0.7), asked=asked)
    other = row("other", {}, predicted({}, shift=-1.0), realised=realised(0.0), asked={"kind": "alpha", "value": 1.0})
    assert pooled_slope([*exact, one, other])[0] == pytest.approx(0.7)  # of what was asked for alone


def test_tables_say_what_they_should():
    table = predictions_table(PAIRS, "t")
    assert table.row_count == 7
    assert list(table.columns[0].cells)[0].plain == "one"
    assert predictions_table(PAIRS[:1], "t") is None
    assert agreement_lines(PAIRS[:1]) == []
    shown = "\n".join(agreement_lines(PAIRS))
    for line in (
        "  steered, effective sample size large enough: 2 of 3 (67%) within 5 points, mean error 5.7 points",
        "  steered, too small: 0 of 1 (0%) within 5 points, mean error 21.0 points",
        "  controls, effective sample size large enough: 1 of 1 (100%) within 5 points, mean error 0.0 points",
    ):
        assert line in shown
    assert "  baselines, base, effective sample size large enough: 1 of 1 (100%)" in shown  # a step on the base
    assert "realised on predicted shifts of log-odds, slope through 0: 0." in shown
    forecast = forecast_table(ROWS, "f")
    assert forecast.row_count == len(ROWS)
    assert "400 of 400" in list(forecast.columns[3].cells)


# --- figures ---------------------------------------------------------------------------------------------------------


def drawn(figure):
    figure.canvas.draw()
    return figure.axes


def test_figures_without_anything_to_draw_are_none():
    assert forecast_figure([ANCHOR], "t") is None
    others = [each for each in ROWS if each["name"] in ("a control", "on base")]
    assert len(others) == 2
    assert forecast_figure([ANCHOR, *others], "t") is None
    assert agreement_figure([PAIRS[0], PAIRS[4]], "t") is None
    assert agreement_figure([], "t") is None


def test_forecast_curves_have_a_panel_for_each_direction():
    rows = [*ROWS, forecast_row("sparse", {"a": 0.2, "b": 0.2}, transforms=["top_k(percent=1)"], reliable=False)]
    figure = forecast_figure(rows, "costs $5 and $6")
    shown = [axes for axes in drawn(figure) if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == ["a", "b", "a | top_k(percent=1)"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    many = [forecast_row(str(i), {"a": 0.2}, vector=str(i)) for i in range(4)]
    axes = drawn(forecast_figure([ANCHOR, *many], "t"))
    assert [each.get_visible() for each in axes] == [True] * 4 + [False] * 2


def test_small_samples_are_drawn_too():
    """All grey, the anchor's own among them: still with a legend, and without a warning."""
    rows = [forecast_row("anchor", {"a": 0.0}, role="anchor", alpha=0.0, reliable=False, linear=None)]
    rows.append(forecast_row("one", {"a": 1.0}, reliable=False))
    figure = forecast_figure(rows, "t")
    drawn(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a"]


def test_agreement_has_panels_for_rates_and_shifts():
    both = drawn(agreement_figure(PAIRS, "t"))
    assert [axes.get_ylabel() for axes in both] == ["realised rate (%)", "realised shift (nats)"]
    (only,) = drawn(agreement_figure([PAIRS[5]], "t"))
    assert only.get_ylabel() == "realised shift (nats)"
    (only,) = drawn(agreement_figure([PAIRS[6]], "t"))
    assert only.get_ylabel() == "realised rate (%)"
    drawn(agreement_figure([row("still", {}, predicted({}, shift=0.0), realised=realised(0.0, 0.0))], "t"))


# --- the plan --------------------------------------------------------------------------------------------------------

KINDS = [
    ("alpha", 0.1, "alpha=+0.1"), ("relative_norm", 0.01, "norm=+0.01"), ("log_odds_shift", -0.75, "shift=-0.75"),
    ("kl_budget", 0.02, "kl=+0.02"), ("target_rate", 0.1, "rate=0.1"),
]  # fmt: skip


@pytest.fixture
def files(tmp_path):
    """A vector file with controls beside it."""
    for name in ("a", "other", "permuted/a-0", "permuted/a-1", "graddiff/a-1", "graddiff/a-5"):
        SteeringVector({"w": torch.ones(1)}).save(tmp_path / f"{name}.safetensors")
    return tmp_path


@pytest.mark.parametrize(("kind", "value", "label"), KINDS)
def test_conditions_and_their_order(files, kind, value, label):
    dose = Dose(kind, value)
    file = str(files / "a.safetensors")
    controls = Controls(
        random=2, signs=1, permuted=2, files={"len": str(files / "other.safetensors")}, seed=4
    )  # fmt: skip
    beside = Baselines(graddiff=[1, 5], delta_scales=[0.5, -1.0], system_prompts={"brief": "Be brief."})
    top = {"top_k": {"percent": 1}}
    plan = plan_conditions(
        {"a": file}, {"a": [dose]}, [[], [top]], controls, has_base=True, on_base=True, baselines=beside
    )
    names = [condition.name for condition, _ in plan]
    shown = names[3].removeprefix("a|").removesuffix(f" {label}")
    directions = ["a", f"a|{shown}"]
    assert names == [
        "base", "anchor",
        *(f"{each} {label}" for each in directions),
        *(f"{each} {label} on base" for each in directions),
        *(
            f"{control} of {each} {label}"
            for each in directions
            for control in ("random-0", "random-1", "signs-0", "permuted-0", "permuted-1", "len at the norm")
        ),
        "graddiff-1 of a", "graddiff-5 of a", "anchor - 0.5 Delta", "anchor + 1 Delta", "system prompt brief",
    ]  # fmt: skip
    by_name = dict(zip(names, plan, strict=True))
    condition, recipe = by_name[f"a {label}"]
    assert (condition.kind, condition.vector, condition.alpha) == ("steered", "a", value if kind == "alpha" else None)
    assert condition.asked == {"kind": kind, "value": value}
    assert recipe == Recipe("vector", "a", (), dose)
    condition, recipe = by_name[f"random-1 of a {label}"]
    assert (condition.kind, recipe) == ("control", Recipe("random", "a", (), dose, seed=5))
    recipe = by_name[f"permuted-1 of a {label}"][1]
    assert recipe == Recipe("file", "a", (), dose, file=str(files / "permuted/a-1.safetensors"))
    assert by_name[f"len at the norm of a {label}"][1].file == str(files / "other.safetensors")
    on_base = by_name[f"a {label} on base"]
    assert (on_base[0].model, on_base[1].on_base) == ("base", True)
    condition, recipe = by_name["graddiff-5 of a"]
    assert (condition.kind, condition.asked, recipe.dose) == ("baseline", None, None)
    assert by_name["anchor - 0.5 Delta"][0].alpha == -0.5
    assert by_name["anchor + 1 Delta"][1] == Recipe("delta", scale=-1.0)
    assert by_name["system prompt brief"][0].system_prompt == "Be brief."
    assert by_name["anchor"][0].alpha == 0
    assert len({condition.slug for condition, _ in plan}) == len(plan)


def test_controls_take_each_vectors_largest_dose(files):
    doses = {"a": [Dose("alpha", value) for value in (0.1, -0.1, 0.2, -0.2)], "b": [Dose("alpha", 3.0)]}
    vectors = {"a": str(files / "a.safetensors"), "b": "b.safetensors"}
    plan = plan_conditions(vectors, doses, [[]], Controls(random=1), has_base=False, on_base=False)
    assert [c.name for c, r in plan if c.kind == "control"] == ["random-0 of a alpha=+0.2", "random-0 of b alpha=+3"]
    assert plan[0][0].name == "anchor"


def test_controls_of_both_signs(files):
    vectors, given = {"a": str(files / "a.safetensors")}, Controls(random=1, both_signs=True)

    def names(doses, chosen=None):
        plan = plan_conditions(vectors, {"a": doses}, [[]], given, has_base=False, on_base=False, chosen=chosen)
        return plan, [c.name for c, _ in plan if c.kind == "control"]

    alphas = [Dose("alpha", value) for value in (0.1, -0.1, 0.2, -0.3)]
    assert names(alphas)[1] == ["random-0 of a alpha=+0.2", "random-0 of a alpha=-0.3"]
    assert names(alphas, chosen={"a alpha=+0.1"})[1] == ["random-0 of a alpha=+0.1"]
    # a rate turns out to be further away than a shift on one side
    doses = [Dose("log_odds_shift", -1.0), Dose("log_odds_shift", 1.0), Dose("target_rate", 0.9)]
    plan, before = names(doses)
    assert before == ["random-0 of a shift=-1", "random-0 of a shift=+1"]
    alphas = {"a shift=-1": 0.5, "a shift=+1": -0.5, "a rate=0.9": -0.7}
    plan = [(replace(c, alpha=alphas.get(c.name, c.alpha)), recipe) for c, recipe in plan]
    moved = [c for c, _ in controls_at_largest(plan, both_signs=True) if c.kind == "control"]
    assert [(c.name, c.alpha) for c in moved] == [("random-0 of a shift=-1", 0.5), ("random-0 of a rate=0.9", -0.7)]


def test_only_chosen_conditions_are_planned_with_what_belongs_to_them(files):
    doses = {name: [Dose("alpha", value) for value in (0.1, -0.1, 0.2, -0.2)] for name in ("a", "b")}
    vectors, given = {"a": str(files / "a.safetensors"), "b": str(files / "other.safetensors")}, Controls(random=1)

    def names(chosen):
        plan = plan_conditions(vectors, doses, [[]], given, has_base=True, on_base=True, chosen=chosen)
        return [condition.name for condition, _ in plan]

    assert names({"a alpha=+0.1", "a alpha=-0.2"}) == [
        "base", "anchor", "a alpha=+0.1", "a alpha=-0.2", "a alpha=+0.1 on base", "a alpha=-0.2 on base",
        "random-0 of a alpha=-0.2",
    ]  # fmt: skip
    assert names(set()) == ["base", "anchor"]
    everything = {f"{name} {dose.label}" for name in doses for dose in doses[name]}
    assert names(everything) == names(None)


def test_controls_are_moved_to_the_largest_step(files):
    doses = {"a": [Dose("target_rate", 0.1), Dose("target_rate", 0.6)], "rate=0.6": [Dose("alpha", 1.0)]}
    vectors = {"a": str(files / "a.safetensors"), "rate=0.6": None}
    plan = plan_conditions(vectors, doses, [[]], Controls(random=1, signs=1), has_base=False, on_base=True)
    alphas = {"a rate=0.1": 0.5, "a rate=0.6": -0.25, "rate=0.6 alpha=+1": 1.0, "a rate=0.1 on base": 9.0}
    assert [c.name for c, _ in plan if c.kind == "control"][:2] == ["random-0 of a rate=0.6", "signs-0 of a rate=0.6"]
    plan = [(replace(c, alpha=alphas.get(c.name, -0.25)), recipe) for c, recipe in plan]
    moved = controls_at_largest(plan)
    controls = [(condition, recipe) for condition, recipe in moved if condition.kind == "control"]
    assert [(c.name, c.alpha, c.asked["value"], r.dose) for c, r in controls] == [
        ("random-0 of a rate=0.1", 0.5, 0.1, doses["a"][0]), ("signs-0 of a rate=0.1", 0.5, 0.1, doses["a"][0]),
        ("random-0 of rate=0.6 alpha=+1", 1.0, 1.0, Dose("alpha", 1.0)),
        ("signs-0 of rate=0.6 alpha=+1", 1.0, 1.0, Dose("alpha", 1.0)),
    ]  # fmt: skip
    assert [pair for pair in moved if pair[0].kind != "control"] == [p for p in plan if p[0].kind != "control"]


def test_another_vectors_file_is_not_transformed_and_a_permuted_one_is(files):
    controls = Controls(permuted=1, files={"len": str(files / "other.safetensors")})
    dose = {"a": [Dose("alpha", 0.1)]}
    vectors = {"a": str(files / "a.safetensors")}
    plan = plan_conditions(vectors, dose, [[{"top_k": {"percent": 1}}]], controls, has_base=False, on_base=False)
    assert [r.transformed for c, r in plan if c.kind == "control"] == [True, False]


def test_a_file_that_its_transforms_leave_nothing_of_is_refused(tmp_path):
    parameters = SimpleNamespace(named_parameters=dict)
    one, other = SteeringVector({"w": torch.tensor([1.0, 0.0])}), SteeringVector({"w": torch.tensor([0.0, 2.0])})
    path = str(other.save(tmp_path / "other.safetensors"))
    weights = ConditionWeights(parameters, {"a": one})
    pipeline = ({"orthogonal_to": {"vector_file": path}},)
    assert weights.direction(Recipe("file", "a", (), file=path))["w"].tolist() == [0.0, 1.0]  # at the norm of a
    assert weights.direction(Recipe("file", "a", pipeline, file=path, transformed=False))["w"].tolist() == [0.0, 1.0]
    with pytest.raises(ValueError, match="other.safetensors': its transforms leave nothing of it"):
        weights.direction(Recipe("file", "a", pipeline, file=path))


def test_two_conditions_of_one_name_are_refused(files):
    file = str(files / "a.safetensors")
    with pytest.raises(ValueError, match=r"two conditions would share the file name 'a_alpha=\+0.1'; rename a vector"):
        plan_conditions({"a": file}, {"a": [Dose("alpha", 0.1)] * 2}, [[]], Controls(), has_base=False, on_base=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"controls": Controls(permuted=3)},
         r"permuted_controls of vector 'a': there is no '.*permuted/a-2.safetensors'; .* \(--data.permutations\)"),
        ({"baselines": Baselines(graddiff=[20])},
         r"graddiff_steps of vector 'a': there is no '.*graddiff/a-20.safetensors'; .* \(--graddiff.steps\)"),
    ],
)  # fmt: skip
def test_controls_whose_files_are_not_there(files, given, message):
    dose, given = {"a": [Dose("alpha", 0.1)]}, {"controls": Controls(), "has_base": False, "on_base": False, **given}
    with pytest.raises(ValueError, match=message):
        plan_conditions({"a": str(files / "a.safetensors")}, dose, [[]], **given)
    combined = plan_conditions({"a": None}, dose, [[]], **given)
    assert [condition.name for condition, _ in combined] == ["anchor", "a alpha=+0.1"]  # a sum has no such files


def test_a_vector_that_is_not_there_is_said_before_its_controls(files):
    vectors, dose = {"z": str(files / "nowhere.safetensors")}, {"z": [Dose("alpha", 0.1)]}
    for given in ((Controls(permuted=1), None), (Controls(), Baselines(graddiff=[5]))):
        with pytest.raises(FileNotFoundError, match="no vector file at '.*nowhere.safetensors'"):
            plan_conditions(vectors, dose, [[]], given[0], has_base=False, on_base=False, baselines=given[1])
    ParameterVector({"w": torch.ones(1)}).save(files / "nowhere.safetensors")
    with pytest.raises(ValueError, match="a 'vector' was asked for"):
        plan_conditions(vectors, dose, [[]], Controls(permuted=1), has_base=False, on_base=False)


def test_a_conditions_identity_names_what_its_weights_are_made_of_and_nothing_else(files):
    other, third = str(files / "other.safetensors"), files / "third.safetensors"
    SteeringVector({"w": torch.zeros(1)}).save(third)
    sources = {"a": str(files / "a.safetensors"), "b": other, "sum": "a + 2 * b - 0 * c", "c": str(third)}
    digests = {"a": "A", "b": "B", "sum": sources["sum"], "c": "C"}

    def identity(recipe, **changes):
        return identity_of(Condition("it", "steered", alpha=0.5), recipe, sources, digests | changes)

    orthogonal = ({"orthogonal_to": {"vector_file": str(third)}},)
    for recipe, deciding in (
        (None, ""), (Recipe("delta", scale=1.0), ""), (Recipe("vector", "a"), "a"), (Recipe("random", "b"), "b"),
        (Recipe("file", "a", file=other), "a"), (Recipe("vector", "sum"), "ab"), (Recipe("signs", "sum"), "ab"),
        (Recipe("vector", "a", orthogonal), "a"),
    ):  # fmt: skip
        changed = [name for name in "abc" if identity(recipe, **{name: "changed"}) != identity(recipe)]
        assert "".join(changed) == deciding
    assert identity(Recipe("vector", "sum"), sum="a - b") != identity(Recipe("vector", "sum"))
    recipes = Recipe("vector", "a", orthogonal), Recipe("file", "a", file=str(third))
    before = [identity(recipe) for recipe in recipes]
    SteeringVector({"w": torch.ones(1), "v": torch.ones(2)}).save(third)  # another one in its place
    assert all(identity(recipe) != was for recipe, was in zip(recipes, before, strict=True))
    assert identity(Recipe("vector", "a"))["vectors"] == {"a": "A"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"random": -1}, "steering.random_controls is -1; accepted: 0 or more"),
        ({"signs": -1}, "steering.sign_controls is -1"),
        ({"permuted": -2}, "steering.permuted_controls is -2"),
        ({"files": {"a b": "x"}}, "a control is called 'a b'; accepted"),
        ({"graddiff": [5, 0]}, "steering.graddiff_steps holds 0; accepted: 1 or more"),
        ({"delta_scales": [0.0]}, "steering.delta_scales holds 0.0; accepted: finite numbers other than 0"),
        ({"delta_scales": [math.inf]}, "steering.delta_scales holds inf"),
        ({"system_prompts": {"x": "  "}}, "steering.system_prompts.x is empty; accepted: a text"),
        ({"system_prompts": {"a/b": "text"}}, "a system prompt is called 'a/b'"),
    ],
)
def test_controls_and_baselines_that_are_refused(given, message):
    kind = Baselines if set(given) <= {"graddiff", "delta_scales", "system_prompts"} else Controls
    with pytest.raises(ValueError, match=message):
        kind(**given)
