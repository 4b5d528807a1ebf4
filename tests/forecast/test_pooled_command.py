"""A steer writes its steps into its responses; a forecast pools them with the anchor's, through the command line."""

import json

import numpy as np
import pytest
from judged import FRESH, forecast_words, lines_of, message_of, rows_of
from road import run, write_lines

from gradsteer.evaluation.mixtures import mixture_log_density
from gradsteer.forecast.pooled_responses import read_pool
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.models.loading import load_causal_lm, load_tokenizer
from gradsteer.records import file_digest
from gradsteer.steering.weight_steering import steered
from gradsteer.vectors.parameter_vectors import SteeringVector

# a tiny model rarely ends within three tokens
pytestmark = pytest.mark.filterwarnings("ignore:forecast. .* were cut at the length limit")


def test_rows_of_a_steer_say_their_step(judged, steps):
    anchor = model_fingerprint(load_causal_lm(str(judged.anchor)))
    plain = {"vector": file_digest(judged.vector("a")), "alpha": -0.4, "transforms": [], "anchor": anchor}
    assert [row["step"] for row in lines_of(steps / "a_alpha=-0.4.jsonl")] == [plain] * 200
    half = next(lines_of(path) for path in steps.glob("a_top_k*alpha=+0.4.jsonl"))
    assert half[0]["step"] == plain | {"alpha": 0.4, "transforms": [{"top_k": {"percent": 50}}]}
    for name in ("anchor", "random-0_of_a_alpha=+0.4"):
        assert all("step" not in row for row in lines_of(steps / f"{name}.jsonl"))


def test_a_forecast_of_several_files_weighs_them_from_their_mixture(judged, steps, tmp_path, capsys):
    files = [str(judged.responses), *(str(steps / f"a_alpha={alpha}.jsonl") for alpha in ("-0.4", "+0.4"))]
    run(*forecast_words(judged, tmp_path, forecasting__responses=json.dumps(files), steering__alphas="[0.4, 0.8]"))
    shown, report = capsys.readouterr().out, json.loads((tmp_path / "forecast.json").read_text())
    about, rows = report["forecast"], rows_of(tmp_path / "forecast.json")
    assert about["responses"] == files
    assert [(each["responses"], each["num_responses"]) for each in about["pool"]] == list(
        zip(files, (FRESH, 200, 200), strict=True)
    )
    assert [(each["step"] or {"alpha": 0})["alpha"] for each in about["pool"]] == [0, -0.4, 0.4]
    assert about["seeds"] == [0, 1]
    # a notebook's loop
    model, vector = load_causal_lm(str(judged.anchor)), SteeringVector.load(judged.vector("a"))
    responses = read_pool(files, load_tokenizer(str(judged.anchor)))
    scorer, scores = ResponseScorer(model, responses.examples), {}
    for alpha in (0.0, -0.4, 0.4, 0.8):
        with steered(model, vector, alpha):
            scores[alpha] = scorer.log_probs()
    mixture = mixture_log_density(np.stack([scores[0.0], scores[-0.4], scores[0.4]], axis=1), [FRESH, 200, 200])
    for name, alpha in (("anchor", 0.0), ("a alpha=+0.4", 0.4), ("a alpha=-0.4", -0.4), ("a alpha=+0.8", 0.8)):
        weights = np.exp(scores[alpha] - mixture)
        weights /= weights.sum()
        said = rows[name]["predicted"]
        assert said["effective_sample_size"] == pytest.approx(1 / np.square(weights).sum(), rel=1e-2)
        assert said["rates"]["a"]["importance"] == pytest.approx(float(weights @ responses.verdicts["a"]), abs=2e-3)
        assert 0 < said["best_source"]["effective_sample_size"] <= said["best_source"]["num_responses"]
    assert rows["anchor"]["predicted"]["best_source"]["num_responses"] == FRESH
    assert "best file alone" in shown
    assert "(alpha +0)" in shown


def test_one_file_of_a_step_is_weighed_back_to_the_anchor(judged, steps, tmp_path):
    file = steps / "a_alpha=-0.4.jsonl"
    run(*forecast_words(judged, tmp_path, forecasting__responses=file))
    report = json.loads((tmp_path / "forecast.json").read_text())
    assert report["forecast"]["responses"] == str(file)
    assert report["forecast"]["pool"][0]["step"]["alpha"] == -0.4
    rows = rows_of(tmp_path / "forecast.json")
    counted = np.mean([row["verdicts"]["a"] for row in lines_of(file)])
    assert rows["a alpha=-0.4"]["behaviors"]["a"]["rate"] == pytest.approx(counted, abs=1e-6)
    assert rows["anchor"]["behaviors"]["a"]["rate"] != pytest.approx(counted, abs=1e-3)
    assert "best_source" not in rows["anchor"]["predicted"]


def test_files_that_cannot_be_pooled_are_refused_before_a_model_is_read(judged, steps, tmp_path, capsys):
    def refused(*files, **changes):
        words = forecast_words(
            judged, tmp_path / "out", forecasting__responses=json.dumps([*map(str, files)]), **changes
        )
        return message_of(words, capsys)

    step = steps / "a_alpha=-0.4.jsonl"
    assert "forecasting.responses is []; accepted: a file, or a list of files" in refused()
    assert f"names {str(step)!r} twice" in refused(step, step)
    control = steps / "random-0_of_a_alpha=+0.4.jsonl"
    for files in ([judged.responses, control], [control]):
        assert f"{str(control)!r} holds replies of 'random-0 of a alpha=+0.4', whose weights it does not" in refused(
            *files
        )
    copy = write_lines(tmp_path / "copy.jsonl", lines_of(step))
    assert f"{str(copy)!r} holds the replies of {str(step)!r}: they would count twice" in refused(step, copy)
    narrow = write_lines(tmp_path / "narrow.jsonl", [row | {"top_p": 0.9} for row in lines_of(step)])
    assert f"{str(narrow)!r} was sampled at a step with top_p 0.9" in refused(narrow)
    halves = [row | {"step": row["step"] | {"rounding": "stochastic 3"}} for row in lines_of(step)[1:]]
    rounded = write_lines(tmp_path / "rounded.jsonl", halves)
    assert "with other transforms or rounding" in refused(step, rounded)
    blank = write_lines(tmp_path / "blank.jsonl", [row | {"verdicts": {"a": None}} for row in lines_of(step)])
    assert "no response has a verdict, all" in refused(blank)
    [half] = steps.glob("a_top_k*alpha=+0.4.jsonl")
    assert f"{str(half)!r} was sampled along another vector, or with other transforms" in refused(step, half)
    mixed = write_lines(tmp_path / "mixed.jsonl", lines_of(step)[:2] + lines_of(half)[:2])
    assert "mixed.jsonl:3: a response of another step than the first" in refused(mixed)
    # which vector it was is known once those of the run are read
    assert "was sampled along a vector whose file has digest" in refused(step, steering__vectors__a=judged.vector("b"))
