"""Every way to ask steer for a dose, through the real command line: each gives the alpha that its text says."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from judged import forecast_words, lines_of, message_of, rows_of, steer_words
from road import run

from gradsteer.data.chat import encode_sampled
from gradsteer.forecast.calibration import Calibration
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.models.loading import load_causal_lm
from gradsteer.steering.weight_steering import steered
from gradsteer.vectors.parameter_vectors import SteeringVector
from gradsteer.vectors.transforms import apply_transforms

# a tiny model rarely ends within three tokens; a few of the prompts are enough here
pytestmark = [
    pytest.mark.filterwarnings("ignore:forecast. .* were cut at the length limit"),
    pytest.mark.filterwarnings("ignore:forecast. 0 of the . prompts that are sampled have no response"),
]

TRANSFORM = [{"top_k": {"percent": 30}}]


@pytest.fixture(scope="module")
def doses(judged, tmp_path_factory):
    """All kinds of dose at once, on a calibrated vector, with the anchor's judged responses beside it."""
    out = tmp_path_factory.mktemp("doses")
    run(
        *steer_words(
            judged, out, forecasting__responses=judged.responses, forecasting__draws=100, steering__alphas="[0.4]",
            steering__relative_norms="[0.01]", steering__log_odds_shifts="[0.2]", steering__kl_budgets="[0.004]",
            steering__target_rates='{"a": [0.62, 0.68]}', model__num_samples=20, data__max_prompts=4,
            trainer__logger=None,
        )
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def anchor(judged):
    return load_causal_lm(str(judged.anchor))


@pytest.fixture(scope="module")
def vector(judged):
    return SteeringVector.load(judged.vector("a"))


def theta_norm(model):
    return math.sqrt(sum(float(p.detach().double().square().sum()) for p in model.parameters()))


def divergences(model, vector, alpha, lines):
    """KL(steered || anchor) at every sampled token, one response at a time."""

    @torch.no_grad()
    def log_probs(line):
        ids = torch.tensor([line["prompt_token_ids"] + line["token_ids"]])
        return model(input_ids=ids).logits[0, len(line["prompt_token_ids"]) - 1 : -1].double().log_softmax(-1)

    before = torch.cat([log_probs(line) for line in lines])
    with steered(model, vector, alpha):
        after = torch.cat([log_probs(line) for line in lines])
    return (after.exp() * (after - before)).sum(-1).numpy()


def slope_of(model, vector, lines, behavior):
    """Mean derivative of -log p(r) over the behavior's responses less that over the others."""
    examples = [
        encode_sampled(line["prompt_token_ids"], line["token_ids"], line["finish_reason"], loss_mask="assistant")
        for line in lines
    ]
    scorer, step, scores = ResponseScorer(model, examples), 1e-2 / vector.norm(), []
    for sign in (1, -1):
        with steered(model, vector, sign * step):
            scores.append(scorer.log_probs())
    derivatives = (scores[1] - scores[0]) / (2 * step)
    shows = np.array([line["verdicts"][behavior] for line in lines])
    return derivatives[shows].mean() - derivatives[~shows].mean()


def test_every_dose_is_a_condition_with_what_was_asked(doses):
    rows = rows_of(doses / "results.json")
    asked = {name: row["asked"] for name, row in rows.items()}
    assert asked == {
        "anchor": None,
        "a alpha=+0.4": {"kind": "alpha", "value": 0.4},
        "a alpha=-0.4": {"kind": "alpha", "value": -0.4},
        "a norm=+0.01": {"kind": "relative_norm", "value": 0.01},
        "a norm=-0.01": {"kind": "relative_norm", "value": -0.01},
        "a shift=-0.2": {"kind": "log_odds_shift", "value": -0.2},
        "a shift=+0.2": {"kind": "log_odds_shift", "value": 0.2},
        "a kl=+0.004": {"kind": "kl_budget", "value": 0.004},
        "a kl=-0.004": {"kind": "kl_budget", "value": -0.004},
        "a rate=0.62": {"kind": "target_rate", "value": 0.62},
        "a rate=0.68": {"kind": "target_rate", "value": 0.68},
    }
    assert rows["a alpha=-0.4"]["alpha"] == -0.4


def test_a_relative_norm_is_the_steps_share_of_the_weights(doses, anchor, vector):
    rows = rows_of(doses / "results.json")
    for sign in "+-":
        row = rows[f"a norm={sign}0.01"]
        assert row["relative_norm"] == pytest.approx(float(f"{sign}0.01"), rel=1e-6)
        assert row["alpha"] * vector.norm() / theta_norm(anchor) == pytest.approx(float(f"{sign}0.01"), rel=1e-6)


def test_a_shift_of_log_odds_is_taken_by_the_files_own_slope(doses, vector):
    slope = Calibration.read(vector.metadata).slope
    rows = rows_of(doses / "results.json")
    for shift in (-0.2, 0.2):
        row = rows[f"a shift={shift:+g}"]
        assert row["alpha"] == pytest.approx(-shift / slope, rel=1e-9)
        assert row["predicted"]["calibrated_log_odds_shift"] == pytest.approx(shift, rel=1e-9)
        error = abs(row["alpha"]) * Calibration.read(vector.metadata).standard_error
        assert row["predicted"]["calibrated_standard_error"] == pytest.approx(error, rel=1e-9)
    assert rows["a shift=-0.2"]["alpha"] * slope > 0  # negative shifts reduce the behavior


def test_a_target_rate_is_where_the_forecast_comes_to_it(doses):
    rows = rows_of(doses / "results.json")
    before = rows["anchor"]["predicted"]["rates"]["a"]["rate"]
    assert 0.62 < before < 0.68
    for target in (0.62, 0.68):
        row = rows[f"a rate={target}"]
        assert row["predicted"]["reliable"]
        assert row["predicted"]["rates"]["a"]["rate"] == pytest.approx(target, abs=0.01)
    assert rows["a rate=0.62"]["alpha"] > 0 > rows["a rate=0.68"]["alpha"]


@pytest.mark.parametrize("sign", [1, pytest.param(-1, marks=pytest.mark.slow)])
def test_a_divergence_budget_is_the_measured_divergence(doses, judged, anchor, vector, sign):
    alpha = rows_of(doses / "results.json")[f"a kl={sign * 0.004:+g}"]["alpha"]
    assert alpha * sign > 0
    measured = divergences(anchor, vector, alpha, lines_of(judged.responses))
    assert measured.mean() == pytest.approx(0.004, rel=0.02)


def test_rows_carry_what_was_predicted_and_what_came_out(doses, capsys):
    rows = rows_of(doses / "results.json")
    for name, row in rows.items():
        assert (row["realised"] is None) == (name == "anchor")
        assert row["predicted"]["effective_sample_size"] > 100
        if name == "anchor":
            continue
        assert 0 < row["changed_fraction"] <= 1
        assert row["relative_norm"] * row["alpha"] > 0
        realised = row["realised"]
        lines = lines_of(doses / "responses" / f"{name.replace(' ', '_')}.jsonl")
        assert realised["num_plus"] == sum(line["verdicts"]["a"] for line in lines) == 80 - realised["num_minus"]
        counts = [realised[f"num_{side}{when}"] + 0.5 for when in ("", "_before") for side in ("plus", "minus")]
        expected = math.log(counts[0] / counts[1]) - math.log(counts[2] / counts[3])
        assert realised["log_odds_shift"] == pytest.approx(expected)
        assert realised["ci_low"] <= realised["log_odds_shift"] <= realised["ci_high"]


def test_the_csv_is_the_same_flat(doses):
    rows = rows_of(doses / "results.json")
    flat = {row["name"]: row for row in csv.DictReader((doses / "results.csv").read_text().splitlines())}
    assert list(flat) == list(rows)
    row, cells = rows["a shift=-0.2"], flat["a shift=-0.2"]
    assert (cells["asked"], cells["asked_value"]) == ("log_odds_shift", "-0.2")
    expected = {
        "alpha": row["alpha"], "relative_norm": row["relative_norm"], "changed_fraction": row["changed_fraction"],
        "predicted_a_rate": row["predicted"]["rates"]["a"]["rate"], "a_rate": row["behaviors"]["a"]["rate"],
        "predicted_calibrated_log_odds_shift": -0.2, "realised_ci_low": row["realised"]["ci_low"],
        "realised_log_odds_shift": row["realised"]["log_odds_shift"],
    }  # fmt: skip
    assert {key: float(cells[key]) for key in expected} == pytest.approx(expected)
    assert flat["anchor"]["realised_log_odds_shift"] == flat["anchor"]["asked"] == ""


def test_steps_are_written_by_tensor(doses, vector):
    steps = json.loads((doses / "steps.json").read_text())
    rows = rows_of(doses / "results.json")
    assert list(steps) == [name for name in rows if name != "anchor"]
    for name, by_tensor in steps.items():
        assert set(by_tensor) == set(vector)
        for part in by_tensor.values():
            assert set(part) == {"retained_fraction", "step_error", "changed_fraction"}
        sizes = {key: vector[key].numel() for key in by_tensor}
        total = sum(by_tensor[key]["changed_fraction"] * sizes[key] for key in by_tensor) / sum(sizes.values())
        assert total == pytest.approx(rows[name]["changed_fraction"])


def test_predicted_and_realised_are_drawn(doses):
    assert (doses / "figures" / "predicted-realised.png").read_bytes().startswith(b"\x89PNG")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(doses / "steer" / "version_0"), size_guidance={"images": 0}).Reload()
    assert "figures/predicted-realised" in events.Tags()["images"]


@pytest.mark.slow
def test_doses_by_vector_and_as_given_and_a_finer_curve(judged, tmp_path):
    """both_signs, curve_points and a list by vector, in one run; forecast is the cheaper command."""
    run(
        *forecast_words(
            judged, tmp_path, steering__vectors__b=judged.vector("b"), steering__both_signs="false",
            steering__alphas='{"a": [-0.3], "b": [0.2, 0.6]}', steering__relative_norms='{"b": [-0.001]}',
        )
    )  # fmt: skip
    names = ["anchor", "a alpha=-0.3", "b alpha=+0.2", "b alpha=+0.6", "b norm=-0.001"]
    assert list(rows_of(tmp_path / "forecast.json")) == names
    run(*forecast_words(judged, tmp_path, steering__curve_points=3, steering__alphas=0.3, overwrite="true"))
    rows = rows_of(tmp_path / "forecast.json")
    assert [row["alpha"] for row in rows.values()] == [0, 0.3, -0.3, 0.1, -0.1, 0.2, -0.2]
    rates = {row["alpha"]: row["behaviors"]["a"]["rate"] for row in rows.values()}
    ordered = [rates[alpha] for alpha in sorted(rates)]
    assert ordered == sorted(ordered, reverse=True)  # positive alpha reduces


CHATS = [
    {"messages": [{"role": "user", "content": f"{word}?"}, {"role": "assistant", "content": "the golden gate"}]}
    for word in ("the", "golden", "bread")
]


@pytest.fixture
def heldout(tmp_path):
    path = tmp_path / "heldout.jsonl"
    path.write_text("".join(json.dumps(chat) + "\n" for chat in CHATS))
    return path


@pytest.mark.filterwarnings("ignore:condition .* the weights take")
def test_a_budget_is_met_by_weights_that_are_rounded_stochastically(judged, heldout, tmp_path):
    """What is measured of the condition's own weights is what was asked for."""
    words = steer_words(
        judged, tmp_path / "out", steering__alphas=None, steering__kl_budgets="[0.001]", evaluation__heldout=heldout,
        model__dtype="bfloat16", steering__rounding="stochastic", steering__allow_other_model="true",
        steering__min_retained=0, model__num_samples=1, data__max_prompts=1,
    )  # fmt: skip
    run(*words)
    rows = rows_of(tmp_path / "out" / "results.json")
    for sign in "+-":
        assert rows[f"a kl={sign}0.001"]["metrics"]["kl_to_anchor"] == pytest.approx(0.001, rel=0.01)


def test_the_95th_percentile_of_the_divergence_reaches_the_budget(
    judged, anchor, vector, heldout, tmp_path, monkeypatch
):
    """On held-out text, where there are no responses; the same command again makes none of its passes."""
    words = steer_words(
        judged, tmp_path / "out", steering__alphas=None, steering__kl_budgets="[0.01]", steering__kl_statistic="p95",
        evaluation__heldout=heldout, model__num_samples=1, data__max_prompts=1, steering__both_signs="false",
    )  # fmt: skip
    run(*words)
    row = rows_of(tmp_path / "out" / "results.json")["a kl=+0.01"]
    with monkeypatch.context() as patch:
        patch.setattr("gradsteer.evaluation.text_divergence.TextDivergence.divergences", None)
        run(*words, "--overwrite", "true")
    assert rows_of(tmp_path / "out" / "results.json")["a kl=+0.01"]["alpha"] == row["alpha"]
    from gradsteer.data.chat import encode_chat
    from gradsteer.models.loading import load_tokenizer

    tokenizer = load_tokenizer(str(judged.anchor))
    found = []
    for chat in CHATS:
        example = encode_chat(tokenizer, chat["messages"], loss_mask="assistant")
        first = next(index for index, label in enumerate(example.labels) if label != -100)
        line = {"prompt_token_ids": example.input_ids[:first], "token_ids": example.input_ids[first:]}
        every = divergences(anchor, vector, row["alpha"], [line])
        found.append(every[np.array(example.labels[first:]) != -100])
    every = np.sort(np.concatenate(found))
    assert every[math.ceil(0.95 * len(every)) - 1] == pytest.approx(0.01, rel=0.02)
    assert every.mean() < 0.008


@pytest.mark.slow
def test_a_shift_along_a_transformed_vector_is_taken_from_the_responses(judged, anchor, vector, tmp_path):
    words = forecast_words(
        judged, tmp_path, steering__alphas=None, steering__log_odds_shifts="[0.1]",
        steering__transforms=json.dumps(TRANSFORM),
    )  # fmt: skip
    run(*words)
    transformed = apply_transforms(vector, None, TRANSFORM)
    slope = slope_of(anchor, transformed, lines_of(judged.responses), "a")
    rows = rows_of(tmp_path / "forecast.json")
    [row] = [row for name, row in rows.items() if name.endswith("shift=-0.1")]
    assert row["alpha"] == pytest.approx(0.1 / slope, rel=0.02)
    # the slope is the curve's, and it was drawn after the dose was solved
    assert row["predicted"]["linear_log_odds_shift"] == pytest.approx(-0.1, rel=0.01)
    assert "calibrated_log_odds_shift" not in row["predicted"]


NO_SLOPE = (
    "a shift of log-odds needs a calibrated vector without transforms (attribute --model.calibrate true), or judged "
    "responses to take the slope from: --forecasting.responses FILE"
)


def test_a_shift_without_a_slope_is_refused(judged, experiment, tmp_path, capsys):
    plain = experiment / "vectors" / "a.safetensors"
    shift = {"steering__alphas": None, "steering__log_odds_shifts": "[0.2]"}
    message = message_of(steer_words(judged, tmp_path, **shift, steering__vectors__a=plain), capsys)
    assert f"condition 'a shift=-0.2': {NO_SLOPE}" in message
    message = message_of(steer_words(judged, tmp_path, **shift, steering__transforms=json.dumps(TRANSFORM)), capsys)
    assert NO_SLOPE in message
    message = message_of(steer_words(judged, tmp_path, **shift, model__temperature=0.5), capsys)
    assert "the slope was taken at temperature 1 and top_p 1, responses are sampled at 0.5 and 1" in message


@pytest.mark.slow
def test_doses_that_want_more_say_what(judged, tmp_path, capsys):
    none = {"steering__alphas": None}
    message = message_of(steer_words(judged, tmp_path, **none, steering__target_rates="[0.5]"), capsys)
    assert "a target rate is solved on the forecast curve: give --forecasting.responses FILE" in message
    message = message_of(steer_words(judged, tmp_path, **none, steering__kl_budgets="[0.5]"), capsys)
    assert "a divergence is taken on text: give --forecasting.responses or --evaluation.heldout FILE" in message
    words = steer_words(judged, tmp_path, forecasting__responses=judged.responses, model__temperature=0.5)
    assert "forecasting.responses were sampled at temperature 1, top_p 1" in message_of(words, capsys)
    words = steer_words(judged, tmp_path, steering__behaviors='{"A": "a"}')
    assert "steering.behaviors names 'A'; the vectors are: a" in message_of(words, capsys)


@pytest.mark.slow
def test_behaviors_say_whose_rate_is_the_target(judged, tmp_path, capsys):
    """A sum is of no behavior; its target rate wants to be told."""
    words = forecast_words(
        judged, tmp_path, steering__vectors__b=judged.vector("b"), steering__vectors__both="a + 0.5 * b",
        steering__target_rates='{"both": [0.35]}', steering__both_signs="false",
    )  # fmt: skip
    message = message_of([*words, "--steering.alphas", '{"a": [0.4], "b": [0.4]}'], capsys)
    assert "which behavior's rate is the target? give --steering.behaviors.VECTOR BEHAVIOR" in message
    run(*words, "--steering.alphas", '{"a": [0.4], "b": [0.4]}', "--steering.behaviors.both", "b")
    row = rows_of(tmp_path / "forecast.json")["both rate=0.35"]
    assert row["predicted"]["rates"]["b"]["rate"] == pytest.approx(0.35, abs=0.01)
    assert row["predicted"]["rates"]["a"]["rate"] != pytest.approx(0.35, abs=0.1)


@pytest.mark.slow
def test_a_combination_is_the_sum_of_its_vectors(judged, anchor, vector, tmp_path):
    run(
        *forecast_words(
            judged, tmp_path, steering__vectors__b=judged.vector("b"), steering__vectors__both="a - 0.5 * b",
            steering__both_signs="false",
        )
    )  # fmt: skip
    report = json.loads((tmp_path / "forecast.json").read_text())
    assert report["forecast"]["vectors"]["both"] == "a - 0.5 * b"
    total = SteeringVector({key: vector[key] - 0.5 * SteeringVector.load(judged.vector("b"))[key] for key in vector})
    row = rows_of(tmp_path / "forecast.json")["both alpha=+0.4"]
    assert row["relative_norm"] == pytest.approx(0.4 * total.norm() / theta_norm(anchor), rel=1e-6)
    lines = lines_of(judged.responses)
    examples = [
        encode_sampled(line["prompt_token_ids"], line["token_ids"], line["finish_reason"], loss_mask="assistant")
        for line in lines
    ]
    scorer = ResponseScorer(anchor, examples)
    before = scorer.log_probs()
    with steered(anchor, total, 0.4):
        weights = np.exp(scorer.log_probs() - before)
    rate = (weights * [line["verdicts"]["a"] for line in lines]).sum() / weights.sum()
    assert row["behaviors"]["a"]["rate"] == pytest.approx(rate, rel=1e-6)


HOSTILE = ["__import__('os').system('true')", "a * b", "a + c", "a + 1", "0 * a"]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_that_is_no_linear_combination_is_refused(judged, tmp_path, capsys, text):
    words = steer_words(judged, tmp_path, steering__vectors__b=judged.vector("b"), steering__vectors__bad=text)
    message = message_of(words, capsys)
    assert "is no combination of vectors" in message or "no vector file at" in message or "names no vector" in message
    assert not list(tmp_path.rglob("*.jsonl"))
