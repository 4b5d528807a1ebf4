"""Controls, baselines, a forecast's choice and rounding through the real command line; and the weights afterwards."""

import hashlib
import json
import re
import signal

import pytest
import torch
from conftest import rest_slow
from judged import forecast_words, lines_of, message_of, rows_of, steer_words
from road import QUIET, run

from gradsteer.__main__ import main
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.judges import KeywordJudge
from gradsteer.models.loading import load_causal_lm, load_tokenizer
from gradsteer.vectors.parameter_vectors import SteeringVector

# a tiny model rarely ends within three tokens
pytestmark = pytest.mark.filterwarnings("ignore:forecast. .* were cut at the length limit")

IDENTITY = ("id", "sample", "prompt", "prompt_token_ids", "token_ids", "verdicts")


def drawn(out, slug):
    return [{key: row[key] for key in IDENTITY} for row in lines_of(out / "responses" / f"{slug}.jsonl")]


@pytest.fixture(scope="module")
def baselines(judged, tmp_path_factory):
    """Every control and baseline beside a steered condition; also what the judge was shown."""
    out = tmp_path_factory.mktemp("baselines")
    shown, judge = [], KeywordJudge.judge

    def spy(self, exchanges):
        shown.extend(exchange.prompt for exchange in exchanges)
        return judge(self, exchanges)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeywordJudge, "judge", spy)
        run(
            *steer_words(
                judged, out, steering__base=judged.base, steering__on_base="true", steering__permuted_controls=1,
                steering__control_vectors=json.dumps({"other": str(judged.vector("b"))}), steering__both_signs="false",
                steering__graddiff_steps="[2]", steering__delta_scales="[1, -0.5]", steering__alphas="[2]",
                steering__system_prompts='{"brief": "golden bread"}', model__num_samples=4, steering__sign_controls=1,
            )
        )  # fmt: skip
    return out, shown


def test_the_conditions_and_their_kinds(baselines):
    rows = rows_of(baselines[0] / "results.json")
    assert {name: row["kind"] for name, row in rows.items()} == {
        "base": "base", "anchor": "anchor", "a alpha=+2": "steered", "a alpha=+2 on base": "steered",
        "signs-0 of a alpha=+2": "control", "permuted-0 of a alpha=+2": "control",
        "other at the norm of a alpha=+2": "control", "graddiff-2 of a": "baseline", "anchor - 1 Delta": "baseline",
        "anchor + 0.5 Delta": "baseline", "system prompt brief": "baseline",
    }  # fmt: skip
    assert rows["a alpha=+2 on base"]["model"] == "base"
    assert {row["model"] for name, row in rows.items() if "base" not in name} == {"anchor"}
    assert all(row["predicted"] is None for name, row in rows.items() if name != "a alpha=+2")
    assert set(rows["a alpha=+2"]["predicted"]) == {
        "role", "calibrated_log_odds_shift", "calibrated_standard_error"
    }  # fmt: skip


def test_controls_have_the_vectors_norm_and_another_direction(baselines):
    out, _ = baselines
    rows = rows_of(out / "results.json")
    for name in ("signs-0 of", "permuted-0 of", "other at the norm of"):
        assert rows[f"{name} a alpha=+2"]["relative_norm"] == pytest.approx(rows["a alpha=+2"]["relative_norm"])
    steps = json.loads((out / "steps.json").read_text())
    assert list(steps) == [name for name in rows if name not in ("base", "anchor", "system prompt brief")]


def test_a_whole_diff_taken_away_is_the_base(baselines):
    out, _ = baselines
    rows = rows_of(out / "results.json")
    assert drawn(out, "anchor_-_1_Delta") == drawn(out, "base") != drawn(out, "anchor")
    assert rows["anchor - 1 Delta"]["alpha"] == -1
    assert rows["anchor + 0.5 Delta"]["alpha"] == 0.5


def test_a_step_on_the_base_and_graddiffs_file_are_what_is_sampled_from(judged, baselines):
    """The conditions' weights made by hand give the same next-token probabilities as their sampled tokens say."""
    from gradsteer.generation.decoding import Draw, SamplingConfig, sample_batch, stop_token_ids

    out, _ = baselines
    tokenizer, vector = load_tokenizer(str(judged.anchor)), SteeringVector.load(judged.vector("a"))
    steps = SteeringVector.load(judged.directory / "vectors" / "graddiff" / "a-2.safetensors")
    other = SteeringVector.load(judged.vector("b"))
    scaled = SteeringVector({key: tensor * (vector.norm() / other.norm()) for key, tensor in other.items()})
    permuted = SteeringVector.load(judged.directory / "vectors" / "permuted" / "a-0.safetensors")
    permuted = SteeringVector({key: tensor * (vector.norm() / permuted.norm()) for key, tensor in permuted.items()})
    assert rows_of(out / "results.json")["graddiff-2 of a"]["alpha"] == 0.05
    for slug, weights, direction, alpha in (
        ("a_alpha=+2_on_base", judged.base, vector, 2.0),
        ("graddiff-2_of_a", judged.anchor, steps, 0.05),
        ("other_at_the_norm_of_a_alpha=+2", judged.anchor, scaled, 2.0),
        ("permuted-0_of_a_alpha=+2", judged.anchor, permuted, 2.0),
    ):
        model = load_causal_lm(str(weights))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in direction:
                    parameter.add_(direction[name], alpha=alpha)
        rows = [row for row in lines_of(out / "responses" / f"{slug}.jsonl") if row["id"] == "fresh-0"]
        samples = sample_batch(
            model, [Draw(row["prompt_token_ids"], row["sample"], 1) for row in rows], SamplingConfig(max_new_tokens=3),
            stop_token_ids=stop_token_ids(model, tokenizer), pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        assert [sample.token_ids for sample in samples] == [row["token_ids"] for row in rows], slug


def test_the_model_reads_the_system_prompt_and_the_judge_does_not(judged, baselines):
    out, shown = baselines
    tokenizer = load_tokenizer(str(judged.anchor))
    rows, plain = (lines_of(out / "responses" / f"{slug}.jsonl") for slug in ("system_prompt_brief", "anchor"))
    for row, other in zip(rows, plain, strict=True):
        assert "<|im_start|>system\ngolden bread<|im_end|>" in tokenizer.decode(row["prompt_token_ids"])
        assert row["prompt"] == other["prompt"]
    assert [row["token_ids"] for row in rows] != [row["token_ids"] for row in plain]
    assert {prompt for prompt in shown if "golden bread" in prompt} == set()
    assert rows_of(out / "results.json")["system prompt brief"]["system_prompt"] == "golden bread"


def test_controls_and_baselines_that_cannot_be_made_say_so(judged, tmp_path, capsys):
    for changes, said in (
        ({"steering__permuted_controls": 2}, "steering.permuted_controls of vector 'a': there is no"),
        ({"steering__graddiff_steps": "[3]"}, "attribute makes it (--graddiff.steps)"),
        ({"steering__delta_scales": "[1]"}, "steering.on_base and delta_scales need the base model"),
        ({"steering__system_prompts": '{"x": " "}'}, "steering.system_prompts.x is empty; accepted: a text"),
        (
            {"steering__system_prompts": '{"x": "y"}', "data__template_kwargs": '{"mood": 1}'},
            "data.template_kwargs has 'mood', which the chat template",
        ),
        (
            {"steering__system_prompts": '{"x": "y"}', "data__system_prompt": "z"},
            "steering.system_prompts and data.system_prompt cannot both be given",
        ),
    ):
        assert said in message_of(steer_words(judged, tmp_path, **changes), capsys)


@pytest.fixture(scope="module")
def curve(judged, tmp_path_factory):
    """A forecast of both vectors, with doses of several kinds, controls and a baseline."""
    out = tmp_path_factory.mktemp("curve")
    run(*forecast_words(judged, out, **MANY))
    return out / "forecast.json"


MANY = {
    "steering__vectors__b": '{b}', "steering__alphas": '{"b": [3]}', "steering__curve_points": 0,
    "steering__target_rates": '{"a": [0.62, 0.68]}', "steering__random_controls": 1,
    "steering__system_prompts": '{"brief": "golden bread"}',
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _fill(judged):
    MANY["steering__vectors__b"] = judged.vector("b")


def test_steer_takes_a_forecasts_alphas_and_sets_its_rates_beside_its_own(judged, curve, tmp_path):
    """Without the responses: target rates are solved nowhere else."""
    run(*steer_words(judged, tmp_path, **MANY, steering__forecast=curve, data__max_prompts=20))
    shown = (tmp_path / "tables.txt").read_text()
    forecast, rows = rows_of(curve), rows_of(tmp_path / "results.json")
    assert list(rows) == list(forecast)
    for name, row in rows.items():
        assert row["alpha"] == forecast[name]["alpha"]
        assert row["predicted"] == forecast[name]["predicted"]
        assert row["behaviors"]["a"]["num_scored"] == 20
    assert "asked and predicted beside realised" in shown
    cell = "{:.1f} [{:.1f}, {:.1f}]"
    lines = shown[shown.index("asked and predicted") :].splitlines()
    for name, row in rows.items():
        if name == "anchor":
            continue
        [line] = [line for line in lines if re.match(rf"│ {re.escape(name)} ", line)]
        for rate in (row["predicted"]["rates"]["a"], row["behaviors"]["a"]):
            assert cell.format(*(100 * rate[key] for key in ("rate", "ci_low", "ci_high"))) in line
    assert re.search(r"sample size large enough: \d+ of \d+ \(\d+%\) within 5 points, mean error \d", shown)
    assert re.search(r"realised on predicted shifts of log-odds, slope through 0: \S+ \[\S+, \S+\], \d cond", shown)


@pytest.mark.parametrize(
    ("select", "kept"),
    rest_slow(
        [
            ({"rule": "selectivity", "max_kl": 1.0, "keep": 2}, 2),
            ({"rule": "selectivity", "max_kl": 0.05}, 1),
            ({"rule": "target_rate", "rate": 0.64}, None),
        ]
    ),
)
def test_select_keeps_the_best_conditions_and_their_controls(judged, curve, tmp_path, capsys, select, kept):
    behaviors = {"steering__behaviors": '{"b": "a"}'}  # both vectors reach a rate of a
    words = steer_words(judged, tmp_path, **MANY, **behaviors, steering__forecast=curve, data__max_prompts=20)
    run(*words, "--steering.select", json.dumps(select))
    forecast, rows = rows_of(curve), rows_of(tmp_path / "results.json")
    others = {name for name, row in forecast.items() if row["predicted"]["role"] != "steered"}
    assert {"anchor", "system prompt brief"} < set(rows)
    steered = {name: forecast[name] for name, row in rows.items() if row["kind"] == "steered"}
    anchor = forecast["anchor"]["behaviors"]
    for vector in "ab":
        mine = {name: row for name, row in steered.items() if row["vector"] == vector}
        all_ = {name: row for name, row in forecast.items() if row["vector"] == vector and name not in others}
        assert len(mine) == (kept or 1)
        [control] = [row for row in rows.values() if row["kind"] == "control" and row["vector"] == vector]
        assert abs(control["alpha"]) == max(abs(row["alpha"]) for row in mine.values())
        for name, row in mine.items():
            assert rows[name]["alpha"] == row["alpha"]
            if select["rule"] == "selectivity":
                assert row["predicted"]["kl_per_token"] <= select["max_kl"]
            else:
                assert row["behaviors"]["a"]["rate"] <= 0.64 < anchor["a"]["rate"]
                reaching = [each for each in all_.values() if each["behaviors"]["a"]["rate"] <= 0.64]
                moved = [abs(each["behaviors"]["b"]["rate"] - anchor["b"]["rate"]) for each in reaching]
                assert abs(row["behaviors"]["b"]["rate"] - anchor["b"]["rate"]) == min(moved)


def test_a_rate_that_no_condition_reaches_names_the_nearest(judged, curve, tmp_path, capsys):
    words = steer_words(judged, tmp_path, **MANY, steering__forecast=curve)
    message = message_of([*words, "--steering.select", '{"rule": "target_rate", "rate": 0.01}'], capsys)
    assert "vector 'a': no condition reaches a rate of 0.01 of 'a'; the nearest comes to 0.6" in message
    for text, said in (
        ('{"rule": "target_rate"}', "steering.select.rate belongs to the rule target_rate, which needs it"),
        ('{"rule": "selectivity"}', "steering.select.max_kl belongs to the rule selectivity, which needs it"),
    ):
        assert said in message_of([*words, "--steering.select", text], capsys)


@pytest.mark.slow
def test_a_forecast_of_something_else_is_refused(judged, curve, tmp_path, capsys):
    def refused(**changes):
        changed = {**MANY, "steering__forecast": curve, "data__max_prompts": 20, **changes}
        return message_of(steer_words(judged, tmp_path, **changed), capsys)

    assert "the forecast is of another vector 'a'" in refused(steering__vectors__a=judged.vector("b"))
    other = {"model__model_name_or_path": judged.base, "steering__allow_other_model": "true"}
    assert "the forecast is of a model with fingerprint" in refused(**other)
    message = refused(model__temperature=0.7)
    assert "the forecast is of temperature 1 and top_p 1; this run samples at 0.7 and 1" in message
    assert re.search(r"the forecast is of responses of at most \d+ tokens; this run", refused(model__max_new_tokens=1))
    report = json.loads(curve.read_text())
    with pytest.warns(UserWarning, match="forecast: ") as warned:
        run(*steer_words(judged, tmp_path / "s", steering__forecast=curve, model__sampling_seed=0, data__max_prompts=1))
    said = " ".join(str(each.message) for each in warned)
    assert f"share the seed {report['forecast']['seeds'][0]}; on the same prompts" in said
    assert "the prompts that are sampled (1) are not those that it is of (20), or a part of them" in said
    for change, said in (({"forecast": None}, "is no forecast of format 1"), ({"format": 7}, "is no forecast of")):
        changed = {key: value for key, value in {**report, **change}.items() if value is not None}
        (tmp_path / "changed.json").write_text(json.dumps(changed))
        assert said in refused(steering__forecast=tmp_path / "changed.json")
    prompts = {"steering__system_prompts": '{"brief": "bread and bridge"}'}
    anew = "is of another seed, vector file or system prompt; make a new one"
    assert f"the forecast of 'system prompt brief' {anew}" in refused(**prompts)
    assert re.search(rf"the forecast of 'random-0 of a rate=0.6\d' {anew}", refused(steering__control_seed=1))


HALF = {
    "model__dtype": "bfloat16", "steering__allow_other_model": "true", "steering__both_signs": "false",
    "steering__min_retained": 0, "steering__allow_imprecise": "true",
}  # fmt: skip


def steps_of(judged, out, **changes):
    run(*steer_words(judged, out, **{**HALF, **changes}, data__max_prompts=1, model__max_new_tokens=1))
    row = next(row for row in rows_of(out / "results.json").values() if row["kind"] == "steered")
    return row, json.loads((out / "steps.json").read_text())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:condition .* the weights take")
@pytest.mark.filterwarnings("ignore:condition .* in bfloat16")
def test_stochastic_rounding_arrives_on_average_and_its_seed_matters(judged, tmp_path):
    small = {"steering__alphas": "[0.001]"}
    nearest, _ = steps_of(judged, tmp_path / "nearest", **small)
    stochastic = {**small, "steering__rounding": "stochastic"}
    first, by_tensor = steps_of(judged, tmp_path / "first", **stochastic)
    again, again_by_tensor = steps_of(judged, tmp_path / "again", **stochastic)
    second, _ = steps_of(judged, tmp_path / "second", **stochastic, steering__rounding_seed=1)
    assert again == first
    assert again_by_tensor == by_tensor
    assert second["step_error"] != first["step_error"] != nearest["step_error"]
    assert first["changed_fraction"] > nearest["changed_fraction"]
    assert abs(first["retained_fraction"] - 1) < 0.3


def test_rounding_of_float32_weights_is_refused(judged, tmp_path, capsys):
    words = steer_words(judged, tmp_path, steering__rounding="stochastic")
    assert "steering.rounding stochastic has no effect on weights in float32" in message_of(words, capsys)


@pytest.mark.filterwarnings("ignore:condition .* the weights take")
def test_a_step_that_the_weights_hardly_take_is_refused_before_anything_is_sampled(judged, tmp_path, capsys):
    words = steer_words(judged, tmp_path, **{**HALF, "steering__alphas": "[1e-5]", "steering__min_retained": 0.5})
    message = message_of(words, capsys)
    assert re.search(r"condition 'a alpha=\+1e-05': the weights take \d+\.\d% of the step", message)
    assert "--steering.min_retained 0.5 refuses that" in message
    assert not list(tmp_path.rglob("*.part")) + list(tmp_path.rglob("*.jsonl"))
    lost = {**HALF, "steering__alphas": "[1e-5]"}
    message = message_of(steer_words(judged, tmp_path, **{**lost, "steering__allow_imprecise": "false"}), capsys)
    assert "condition 'a alpha=+1e-05' in bfloat16: log p a token changes by" in message
    assert "Give --model.dtype float32; stochastic rounding (--steering.rounding stochastic) may do" in message
    with pytest.warns(UserWarning, match="the weights take"), pytest.warns(UserWarning, match="believed: a slope of"):
        steps_of(judged, tmp_path / "any", steering__alphas="[1e-5]")
    [checked] = json.loads((tmp_path / "any" / "results.json").read_text())["precision_check"]
    assert (checked["condition"], checked["dtype"]) == ("a alpha=+1e-05", "bfloat16")
    assert checked["text"] == "the anchor's first replies"
    words = steer_words(judged, tmp_path, steering__allow_imprecise="true")
    assert "steering.allow_imprecise has no effect on weights in float32" in message_of(words, capsys)
    words = steer_words(judged, tmp_path, steering__min_retained=2)
    assert "steering.min_retained is 2.0; accepted: from 0 to 1" in message_of(words, capsys)


def digest(model):
    total = hashlib.sha256()
    for name, parameter in sorted(model.state_dict().items()):
        total.update(name.encode() + parameter.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def failing_at(function, number, error):
    """A method that raises at a call."""
    calls = []

    def call(*args, **kwargs):
        calls.append(None)
        if len(calls) == number:
            raise error
        return function(*args, **kwargs)

    return call


@pytest.fixture
def loaded(judged, monkeypatch):
    """The models that the commands load, and the weights that they came with."""
    found = []

    def load(*args, **kwargs):
        model = load_causal_lm(*args, **kwargs)
        found.append((model, digest(model)))
        return model

    monkeypatch.setattr("gradsteer.trainer.modules.model.load_causal_lm", load)
    before = signal.getsignal(signal.SIGINT)
    yield found
    signal.signal(signal.SIGINT, before)  # Lightning ignores it from the first interrupt on


# 1: the anchor's own; 2 and 3 (or a few more): along the vector; then the conditions: base, anchor, steered, on base
@pytest.mark.parametrize(
    ("call", "error"),
    rest_slow(
        [
            (7, ValueError("scores went wrong")),
            (None, None),
            (2, ValueError("scores went wrong")),
            (9, KeyboardInterrupt()),
        ]
    ),
)
def test_forecast_puts_the_weights_back(judged, loaded, tmp_path, monkeypatch, call, error):
    if call is not None:
        monkeypatch.setattr(ResponseScorer, "log_probs", failing_at(ResponseScorer.log_probs, call, error))
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps(row) + "\n" for row in lines_of(judged.responses)[:60]))
    words = forecast_words(
        judged, tmp_path / "out", steering__base=judged.base, steering__on_base="true", forecasting__responses=few,
    )  # fmt: skip
    check_weights(words, loaded, call is None, error)
    if call is not None:
        assert not (tmp_path / "out" / "forecast.json").exists()


@pytest.mark.parametrize(
    ("call", "error"),
    rest_slow([(5, KeyboardInterrupt()), (None, None), (1, ValueError("the judge is gone"))]),
)
def test_steer_puts_the_weights_back(judged, loaded, tmp_path, monkeypatch, call, error):
    if call is not None:  # one batch a condition
        monkeypatch.setattr(KeywordJudge, "judge", failing_at(KeywordJudge.judge, call, error))
    words = steer_words(judged, tmp_path, steering__base=judged.base, steering__on_base="true")
    check_weights(words, loaded, call is None, error)
    if call is not None:
        assert not (tmp_path / "results.json").exists()


def check_weights(words, loaded, whole, error):
    if whole:
        run(*words)
    elif isinstance(error, KeyboardInterrupt):
        with pytest.raises(SystemExit):
            main([*words, *QUIET])
    else:
        assert main([*words, *QUIET]) == 2
    [(model, before)] = loaded
    assert digest(model) == before
