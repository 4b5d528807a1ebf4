"""forecast through the real command line: its files against counts and a notebook's loop, and what it refuses."""

import csv
import json
import shutil
import warnings
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from judged import FRESH, forecast_words, lines_of, message_of, rows_of
from road import run, write_lines
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gradsteer.__main__ import main
from gradsteer.evaluation.condition_result import ConditionResult
from gradsteer.evaluation.importance_sampling import effective_sample_size, normalised_weights
from gradsteer.evaluation.statistics import Rate
from gradsteer.forecast.forecaster import Forecaster
from gradsteer.forecast.judged_responses import behind_system_prompt, read_judged_responses
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.models.loading import load_causal_lm, load_tokenizer
from gradsteer.records import file_digest
from gradsteer.steering.conditions import Condition
from gradsteer.steering.weight_steering import steered
from gradsteer.trainer.callbacks.forecasting import Forecasting
from gradsteer.vectors.parameter_vectors import SteeringVector

# a tiny model rarely ends within three tokens
pytestmark = pytest.mark.filterwarnings("ignore:forecast. .* were cut at the length limit")

FEW = 1000  # more than there are responses: no forecast by importance weights alone is believed


@pytest.fixture(scope="module")
def forecast(judged, tmp_path_factory):
    """Every sort of condition; logs to TensorBoard."""
    out = tmp_path_factory.mktemp("forecast")
    run(
        *forecast_words(
            judged, out, trainer__logger=None, steering__alphas="[0.4, 20]", steering__base=judged.base,
            steering__on_base="true", steering__random_controls=1, steering__permuted_controls=1,
            steering__control_vectors=json.dumps({"other": str(judged.vector("b"))}), steering__graddiff_steps="[2]",
            steering__delta_scales="[0.5]", steering__system_prompts='{"brief": "be brief"}',
            report__note="[b]: of a tiny model", experiment="tiny",
        )
    )  # fmt: skip
    return out


def test_the_report_has_the_rows_of_results_json_and_says_what_it_is_made_from(judged, forecast):
    report = json.loads((forecast / "forecast.json").read_text())
    assert list(report) == ["format", "experiment", "note", "forecast", "conditions"]
    assert report["note"] == "[b]: of a tiny model"
    about = report["forecast"]
    assert about["responses"] == str(judged.responses)
    assert (about["num_responses"], about["num_prompts"]) == (FRESH, 20)
    assert (about["temperature"], about["top_p"]) == (1.0, 1.0)
    assert about["model_fingerprint"] == model_fingerprint(load_causal_lm(str(judged.anchor)))
    assert about["vectors"] == {"a": file_digest(judged.vector("a"))}
    curve = about["curves"]["a"]
    assert 4 <= curve["num_scored"] < about["num_passes"]
    assert curve["settled"]
    [warning] = about["warnings"]
    assert "were cut at the length limit" in warning
    rows = report["conditions"]
    assert [row["name"] for row in rows] == [
        "base", "anchor", "a alpha=+0.4", "a alpha=-0.4", "a alpha=+20", "a alpha=-20", "a alpha=+0.4 on base",
        "a alpha=-0.4 on base", "a alpha=+20 on base", "a alpha=-20 on base", "random-0 of a alpha=+20",
        "permuted-0 of a alpha=+20", "other at the norm of a alpha=+20", "graddiff-2 of a", "anchor - 0.5 Delta",
        "system prompt brief",
    ]  # fmt: skip
    roles = ["base", "anchor", *["steered"] * 8, *["control"] * 3, *["baseline"] * 3]
    assert [row["predicted"]["role"] for row in rows] == roles
    assert {row["kind"] for row in rows} == {"forecast"}
    for row in rows:
        assert list(row) == list(ConditionResult(Condition("anchor", "anchor")).row())
        assert list(row["behaviors"]) == ["a", "b"]
        for rate in row["behaviors"].values():
            assert set(rate) == {field.name for field in fields(Rate)}
            assert rate["num_positive"] is rate["num_degenerate"] is None
            assert 0 <= rate["ci_low"] <= rate["ci_high"] <= 1
            assert rate["rate"] is None or rate["ci_low"] <= rate["rate"] <= rate["ci_high"]
        for rates in (row["predicted"]["rates"], row["predicted"]["classes"]):
            assert all((rate["rate"] is None) == (rate["method"] == "bound") for rate in rates.values())
        slope = row["predicted"]["linear_log_odds_shift"]  # of controls only where asked for, and of no step so far
        assert (slope is not None) == (row["name"] in ("a alpha=+0.4", "a alpha=-0.4"))
    flat = list(csv.DictReader((forecast / "forecast.csv").read_text().splitlines()))
    assert [row["name"] for row in flat] == [row["name"] for row in rows]
    assert float(flat[2]["a_rate"]) == rows[2]["behaviors"]["a"]["rate"]
    assert float(flat[2]["predicted_effective_sample_size"]) == rows[2]["predicted"]["effective_sample_size"]
    assert float(flat[2]["predicted_a_linear"]) == rows[2]["predicted"]["rates"]["a"]["linear"]


def test_the_anchors_forecast_is_what_was_counted(judged, forecast):
    lines, row = lines_of(judged.responses), rows_of(forecast / "forecast.json")["anchor"]
    for name in "ab":
        assert row["behaviors"][name]["rate"] == pytest.approx(
            np.mean([line["verdicts"][name] for line in lines]), abs=1e-12
        )
        assert row["behaviors"][name]["num_scored"] == len(lines)
    assert row["predicted"]["effective_sample_size"] == pytest.approx(len(lines), abs=1e-9)
    assert row["predicted"]["kl_per_token"] == pytest.approx(0, abs=1e-12)
    assert row["metrics"]["mean_length"] == pytest.approx(np.mean([len(line["token_ids"]) for line in lines]))
    assert row["metrics"]["perplexity"] is None


def test_a_conditions_forecast_is_the_notebooks(judged, forecast):
    model, tokenizer = load_causal_lm(str(judged.anchor)), load_tokenizer(str(judged.anchor))
    responses = read_judged_responses(str(judged.responses), tokenizer)
    scorer = ResponseScorer(model, responses.examples)
    before = scorer.log_probs()
    vector = SteeringVector.load(judged.vector("a"))
    rows = rows_of(forecast / "forecast.json")
    for alpha, said in ((0.4, rows["a alpha=+0.4"]), (-0.4, rows["a alpha=-0.4"])):
        with steered(model, vector, alpha):
            weights = normalised_weights(scorer.log_probs() - before)
        assert said["predicted"]["effective_sample_size"] == pytest.approx(effective_sample_size(weights), rel=1e-6)
        for name, verdicts in responses.verdicts.items():
            assert said["behaviors"][name]["rate"] == pytest.approx(float(weights @ verdicts), rel=1e-6)
        mean = float(weights @ responses.traits["mean_length"])
        assert said["metrics"]["mean_length"] == pytest.approx(mean, rel=1e-6)
        after = [float(weights[responses.verdicts["a"] == value].sum()) for value in (1, 0)]
        counts = [int((responses.verdicts["a"] == value).sum()) for value in (1, 0)]
        shift = np.log(after[0] / after[1]) - np.log(counts[0] / counts[1])
        assert said["predicted"]["log_odds_shift"] == pytest.approx(shift, rel=1e-5)
    with torch.no_grad():  # the base's weights by hand: another road to its condition
        base = dict(load_causal_lm(str(judged.base)).named_parameters())
        for name, parameter in model.named_parameters():
            parameter.copy_(base[name])
    weights = normalised_weights(scorer.log_probs() - before)
    rate = float(weights @ responses.verdicts["b"])
    assert rows["base"]["behaviors"]["b"]["rate"] == pytest.approx(rate, rel=1e-6)


def test_behind_a_system_prompt_the_same_responses_are_scored(judged, forecast):
    model, tokenizer = load_causal_lm(str(judged.anchor)), load_tokenizer(str(judged.anchor))
    responses = read_judged_responses(str(judged.responses), tokenizer)
    forecaster = Forecaster(responses, ResponseScorer(model, responses.examples), draws=100)
    row = rows_of(forecast / "forecast.json")["system prompt brief"]
    assert row["system_prompt"] == "be brief"
    after = []
    for line in lines_of(judged.responses)[:40]:
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": line["prompt"]}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + line["token_ids"]])).logits[0, len(ids) - 1 : -1]
        picked = logits.double().log_softmax(-1)[range(len(line["token_ids"])), line["token_ids"]]
        after.append(float(picked.sum()))
    scored = ResponseScorer(model, behind_system_prompt(responses, tokenizer, "be brief")).log_probs()
    np.testing.assert_allclose(scored[:40], after, rtol=1e-5)
    expected = forecaster.forecast(scored)
    assert row["behaviors"]["a"]["rate"] == pytest.approx(expected.rates["a"].rate, rel=1e-6)
    assert 1 < row["predicted"]["effective_sample_size"] < FRESH


@pytest.mark.slow
def test_a_small_effective_sample_greys_a_row_and_takes_the_linear_form(forecast, judged, tmp_path):
    far = rows_of(forecast / "forecast.json")["a alpha=-20"]
    near = rows_of(forecast / "forecast.json")["a alpha=-0.4"]
    assert (far["predicted"]["reliable"], far["predicted"]["rates"]["a"]["linear"]) == (False, None)  # past it, too
    assert (near["predicted"]["reliable"], near["predicted"]["method"]) == (True, "importance")
    assert near["behaviors"]["a"]["rate"] == near["predicted"]["rates"]["a"]["importance"]
    run(*forecast_words(judged, tmp_path, forecasting__min_sample_size=FEW))
    greyed = rows_of(tmp_path / "forecast.json")["a alpha=-0.4"]
    assert (greyed["predicted"]["reliable"], greyed["predicted"]["method"]) == (False, "linear")
    rates = [row["predicted"]["rates"]["a"] for row in (near, greyed)]
    assert rates[0]["importance"] == pytest.approx(rates[1]["importance"], rel=1e-9)
    assert rates[0]["linear"] == pytest.approx(rates[1]["linear"], rel=5e-3)  # one from a curve, one from differences


@pytest.mark.slow
def test_draws_and_seed_change_intervals_alone_and_the_token_budget_nothing(forecast, judged, tmp_path):
    plain = rows_of(forecast / "forecast.json")["a alpha=+0.4"]["behaviors"]["a"]
    run(*forecast_words(judged, tmp_path / "seed", forecasting__seed=1, forecasting__token_budget=512))
    seeded = rows_of(tmp_path / "seed" / "forecast.json")["a alpha=+0.4"]["behaviors"]["a"]
    run(*forecast_words(judged, tmp_path / "draws", forecasting__draws=300))
    drawn = rows_of(tmp_path / "draws" / "forecast.json")["a alpha=+0.4"]["behaviors"]["a"]
    for other in (seeded, drawn):
        assert other["rate"] == pytest.approx(plain["rate"], rel=1e-5)
        assert (other["ci_low"], other["ci_high"]) != (plain["ci_low"], plain["ci_high"])
        assert other["ci_low"] == pytest.approx(plain["ci_low"], abs=0.02)


def test_the_picture_and_tensorboard(forecast):
    assert (forecast / "figures" / "forecast.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(forecast / "forecast" / "version_0"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    rows = json.loads((forecast / "forecast.json").read_text())["conditions"]
    for name in "ab":
        found = [event.value for event in events.Scalars(f"forecast/{name}")]
        rates = [rate for row in rows if (rate := row["behaviors"][name]["rate"]) is not None]  # not bounds
        assert len(rates) > 10
        assert found == pytest.approx(rates, rel=1e-6)
    sizes = [event.value for event in events.Scalars("forecast/effective_sample_size")]
    assert sizes == pytest.approx([row["predicted"]["effective_sample_size"] for row in rows], rel=1e-5)
    assert "figures/forecast" in events.Tags()["images"]
    [table] = events.Tensors("forecast/text_summary")
    assert len(table.tensor_proto.string_val[0].decode().splitlines()) == 2 + len(rows)


def test_nothing_stays_behind_the_run(forecast):
    assert not list(forecast.rglob("*.part"))
    assert [path.name for path in forecast.rglob(".*")] == [".locks"]
    assert not (forecast / "responses").exists()


def test_the_same_command_does_nothing_and_another_one_refuses(forecast, capsys):
    before = file_digest(forecast)
    config = ["forecast", "--config", str(forecast / "forecast" / "version_0" / "config.yaml")]
    assert main(config) == 0
    assert "forecast is done already" in capsys.readouterr().out
    assert "holds the results of another configuration of 'forecast'" in message_of(
        [*config, "--steering.alphas", "[0.3]"], capsys
    )
    assert file_digest(forecast) == before


@pytest.mark.slow
def test_other_responses_under_the_same_name_are_refused(judged, tmp_path, capsys):
    copy = shutil.copy(judged.responses, tmp_path / "mine.jsonl")
    words = forecast_words(judged, tmp_path / "out", forecasting__responses=copy)
    run(*words)
    write_lines(copy, lines_of(copy)[:400])
    assert "holds the results of other input files for 'forecast'" in message_of(words, capsys)


@pytest.fixture
def no_model(monkeypatch):
    """What is refused here is refused before the model is loaded."""

    def load(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("gradsteer.trainer.modules.model.load_causal_lm", load)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"forecasting__responses": None, "forecasting__draws": None},
            "forecast needs the anchor's judged responses: --forecasting.responses FILE (a responses/NAME.jsonl that",
        ),
        ({"forecasting__responses": "no.jsonl"}, "no response file at 'no.jsonl'; accepted: a responses/NAME.jsonl"),
        ({"forecasting__temperature": 0.5}, "forecasting.temperature is 0.5, but"),
        ({"forecasting__draws": 99}, "forecasting.draws is 99; accepted: at least 100"),
        ({"steering__alphas": None}, "vector 'a' has no dose; give one of --steering.alphas, --steering.relative_norm"),
        ({"steering__vectors__a": "no.safetensors"}, "no vector file at 'no.safetensors'"),
    ],
)
def test_bad_values_are_refused_before_the_model_is_loaded(judged, no_model, tmp_path, capsys, changes, said):
    assert said in message_of(forecast_words(judged, tmp_path, **changes), capsys)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0}, "forecasting.temperature is 0; accepted: more than 0"),
        ({"top_p": 1.5}, "forecasting.top_p is 1.5; accepted: more than 0, at most 1"),
        ({"min_sample_size": 0.5}, "forecasting.min_sample_size is 0.5; accepted: at least 1"),
        ({"token_budget": 0}, "forecasting.token_budget is 0; accepted: at least 1"),
        ({"responses": None, "top_p": 0.9}, "have no effect without --forecasting.responses FILE"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Forecasting(**{"responses": "r.jsonl", **options})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row | {"tokenizer": "0" * 16}, f":1: the token ids were sampled with tokenizer '{'0' * 16}'"),
        (lambda row: row | {"verdicts": {}}, "holds no verdicts: judge the responses first (gradsteer evaluate)"),
        (
            lambda row: row | {"temperature": 0.0},
            "at temperature 0: greedy replies have no importance weights",
        ),
        (lambda row: row | {"model_fingerprint": str(row["sample"])}, "mixes responses of different model_fingerprint"),
    ],
)
def test_responses_that_cannot_be_used_are_refused(judged, no_model, tmp_path, capsys, change, said):
    file = write_lines(tmp_path / "changed.jsonl", [change(row) for row in lines_of(judged.responses)[:8]])
    assert said in message_of(forecast_words(judged, tmp_path / "out", forecasting__responses=file), capsys)


@pytest.fixture
def reading(judged, tmp_path):
    """Reads eight of the responses, with other dtypes, for a model of a dtype."""
    rows, tokenizer = lines_of(judged.responses)[:8], load_tokenizer(str(judged.anchor))
    assert {row["dtype"] for row in rows} == {"float32"}

    def read(sampled, dtype, **options):
        changed = [{**row, "dtype": said} for row, said in zip(rows, sampled, strict=True)]
        forecasting = Forecasting(str(write_lines(tmp_path / "changed.jsonl", changed)), **options)
        module = SimpleNamespace(tokenizer=tokenizer, num_ids=len(tokenizer), dtype_name=dtype)
        forecasting.setup(SimpleNamespace(), module, "test")
        return forecasting.responses

    return read


def test_responses_of_another_dtype_are_refused_unless_asked(reading):
    half = ["bfloat16"] * 8
    said = r"sampled by weights in bfloat16 \(as .*changed.jsonl:1\), and this model's are in float32"
    with pytest.raises(ValueError, match=said) as error:
        reading(half, "float32")
    assert "the same --model.dtype" in str(error.value)
    assert "--forecasting.allow_other_dtype true" in str(error.value)
    assert list(reading(half, "float32", allow_other_dtype=True).dtypes) == ["bfloat16"]
    assert list(reading(half, "bfloat16").dtypes) == ["bfloat16"]
    with pytest.raises(ValueError, match=r"in float32 \(as .*jsonl:1\), and this model's are in bfloat16"):
        reading(["float32"] * 8, "bfloat16")
    for dtype in ("float32", "bfloat16"):  # whichever it is, some are another model's
        with pytest.raises(ValueError, match="sampled by weights in"):
            reading(["float32", *half[1:]], dtype)


def test_older_responses_and_those_in_double_precision_pass(reading):
    assert reading([None] * 8, "bfloat16").dtypes == {}
    assert list(reading(["float32"] * 8, "float64").dtypes) == ["float32"]  # the same weights
    with pytest.raises(ValueError, match="changed.jsonl:1: dtype is 7; accepted: a text such as float32"):
        reading([7] * 8, "float32")


def test_a_forecast_is_no_input_of_a_forecast(judged, forecast, no_model, tmp_path, capsys):
    words = forecast_words(judged, tmp_path, steering__forecast=forecast / "forecast.json")
    assert "steering.forecast and steering.select belong to steer" in message_of(words, capsys)


def warnings_of(words):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(*words)
    return [str(warning.message) for warning in caught]


@pytest.mark.slow
def test_responses_of_other_weights_are_warned_of_and_of_the_vectors_prompts_refused(judged, tmp_path, capsys):
    """The piles' own responses, with another fingerprint and without their temperature."""
    lines = [
        {**row, "model_fingerprint": "f" * 16, "temperature": None}
        for row in lines_of(judged.directory / "responses" / "piles.jsonl")
    ]
    file = write_lines(tmp_path / "foreign.jsonl", lines)
    words = forecast_words(judged, tmp_path / "out", forecasting__responses=file, forecasting__temperature=2)
    overlap = "vector a was made on responses to 20 of the 20 prompts that it is measured on"
    assert overlap in message_of(words, capsys)
    words += ["--steering.seed_faithful", "true"]
    found = warnings_of(words)
    about = json.loads((tmp_path / "out" / "forecast.json").read_text())["forecast"]
    assert about["temperature"] == 2.0
    said = f"the responses were sampled from weights with fingerprint {'f' * 16}, the model has"
    assert [text for text in about["warnings"] if said in text]
    assert "the responses do not say their temperature; 2 is assumed" in about["warnings"]
    for text in about["warnings"]:
        assert f"forecast: {text}" in found


def test_the_printed_table_shows_each_condition_and_dims_the_unreliable(judged, tmp_path, capsys):
    words = {"steering__both_signs": "false", "steering__random_controls": 1, "forecasting__control_slopes": "true"}
    run(*forecast_words(judged, tmp_path, steering__alphas="[0.4, 20]", **words))
    shown = capsys.readouterr().out
    control = rows_of(tmp_path / "forecast.json")["random-0 of a alpha=+20"]["predicted"]
    assert control["linear_log_odds_shift"] is not None
    assert control["rates"]["a"]["linear"] is not None
    row = rows_of(tmp_path / "forecast.json")["a alpha=+0.4"]
    rate, size = row["behaviors"]["a"], row["predicted"]["effective_sample_size"]
    interval = f"{100 * rate['rate']:.1f} [{100 * rate['ci_low']:.1f}, {100 * rate['ci_high']:.1f}]"
    [line] = [line for line in shown.splitlines() if "a alpha=+0.4" in line]
    assert interval in line
    assert f"{size:.0f} of {FRESH}" in line
    assert "weights" in line
    assert "nothing was sampled" in shown
    assert "warning: " in shown
