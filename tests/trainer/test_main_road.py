"""The four stages, one after the other, through the real command line in one process."""

import csv
import json
import math
import shutil

import pytest
import torch
import yaml
from road import PATTERNS, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tokenizers_zoo import chatml_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradsteer.__main__ import main
from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.data.chat import collate, encode_sampled
from gradsteer.evaluation.condition_result import METRICS
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.models.loading import load_causal_lm
from gradsteer.records import file_digest
from gradsteer.reports.results import read_results
from gradsteer.vectors.parameter_vectors import PileAverage, SteeringVector
from gradsteer.vectors.weight_diff import WeightDiff, named_weights


def events(directory):
    accumulator = EventAccumulator(str(directory), size_guidance={"images": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def test_fit_leaves_a_directory_that_transformers_loads(experiment):
    model = AutoModelForCausalLM.from_pretrained(experiment / "anchor")
    tokenizer = AutoTokenizer.from_pretrained(experiment / "anchor")
    assert tokenizer.chat_template == chatml_tokenizer().chat_template
    assert model.config.use_cache is True  # a training setting must not leak into generation
    base = AutoModelForCausalLM.from_pretrained(experiment / "base")
    assert WeightDiff.between(named_weights(model), named_weights(base)).norm() > 0
    assert [path.name for path in experiment.glob(".*")] == []  # no temporary names left


def test_responses_have_every_documented_key(experiment):
    rows = [json.loads(line) for line in (experiment / "responses" / "first.jsonl").read_text().splitlines()]
    assert len(rows) == 5 * 4
    assert [(row["id"], row["sample"]) for row in rows] == [(f"p{i}", s) for i in range(5) for s in range(4)]
    keys = (
        "id prompt completion prompt_token_ids token_ids finish_reason tokenizer model condition sample seed "
        "temperature top_p max_new_tokens dtype model_fingerprint judge verdicts unscored degenerate incoherent failed "
        "decided"
    )
    assert list(rows[0]) == keys.split()
    assert rows[0]["condition"] == "first"
    assert {row["finish_reason"] for row in rows} <= {"stop", "length"}
    assert len({tuple(row["token_ids"]) for row in rows}) > 10


@pytest.mark.parametrize("pile", ["with", "without"])
def test_the_written_gradient_is_that_of_the_filtered_responses(experiment, pile):
    """attribute on the Trainer equals the plain notebook loop on the same responses."""
    gradient = PileAverage.load(experiment / "gradients" / f"{pile}.safetensors")
    rows = [json.loads(line) for line in (experiment / "responses" / "first.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["verdicts"]["a"] is (pile == "with")]
    model = load_causal_lm(str(experiment / "anchor"))
    plain = PileGradient(model)
    for row in kept:
        encoded = encode_sampled(row["prompt_token_ids"], row["token_ids"], row["finish_reason"], loss_mask="assistant")
        plain.add(collate([encoded], 0))
    for name, expected in plain.average().items():
        torch.testing.assert_close(gradient[name], expected, rtol=1e-4, atol=1e-7)
    assert gradient.metadata["num_examples"] == str(len(kept))
    assert gradient.metadata["num_tokens"] == str(sum(len(row["token_ids"]) for row in kept))
    assert gradient.metadata["reduction"] == "example"
    assert gradient.metadata["loss_mask"] == "assistant"
    assert gradient.metadata["model_fingerprint"] == model_fingerprint(model)
    assert json.loads(gradient.metadata["prompt_digests"])


def test_the_vector_is_the_contrast(experiment):
    vector = SteeringVector.load(experiment / "vectors" / "a.safetensors")
    sides = [PileAverage.load(experiment / "gradients" / f"{pile}.safetensors") for pile in ("with", "without")]
    for name in vector:
        assert torch.equal(vector[name], sides[0][name] - sides[1][name])


def test_results_hold_every_condition_in_order_with_every_key(experiment):
    results = read_results(experiment / "results.json")
    assert results["experiment"] == "tiny"
    rows = results["conditions"]
    assert [row["name"] for row in rows] == [
        "base", "anchor", "anchor resampled", "a alpha=+0.05", "a alpha=-0.05", "a|diff_weighting alpha=+0.05",
        "a|diff_weighting alpha=-0.05", "random-0 of a alpha=+0.05", "random-0 of a|diff_weighting alpha=+0.05",
    ]  # fmt: skip
    assert [row["kind"] for row in rows] == ["base", "anchor", "control", *["steered"] * 4, *["control"] * 2]
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    assert [row["alpha"] for row in rows[:4]] == [None, 0.0, 0.0, 0.05]
    again = rows.pop(2)
    assert again["metrics"]["perplexity"] == rows[1]["metrics"]["perplexity"]  # the same weights, other responses
    assert again["behaviors"] != rows[1]["behaviors"]
    assert rows[4]["transforms"] == ["diff_weighting"]
    assert rows[1]["transforms"] == []
    for row in rows:
        rate = row["behaviors"]["a"]
        counts = {"num_scored", "num_unscored", "num_degenerate", "num_positive", "effective_n"}
        assert set(rate) == {*counts, "rate", "ci_low", "ci_high"}
        assert rate["num_scored"] + rate["num_degenerate"] == 20
        assert rate["ci_low"] <= rate["rate"] <= rate["ci_high"]
        assert list(row["metrics"]) == list(METRICS)
        assert row["metrics"]["perplexity"] > 1
        assert row["metrics"]["base_perplexity"] > 1
        assert (row["metrics"]["kl_to_anchor"] == pytest.approx(0, abs=1e-6)) == (row is rows[1])
        assert (row["comparisons"] is None) == (row is rows[1])
        steered = row["kind"] in ("steered", "control")
        assert (row["retained_fraction"] is not None) == steered
        assert (row["relative_norm"] is not None) == steered
    assert rows[2]["relative_norm"] == pytest.approx(-rows[3]["relative_norm"])
    assert rows[2]["retained_fraction"] == pytest.approx(1, abs=1e-3)
    assert rows[2]["metrics"]["perplexity"] != rows[1]["metrics"]["perplexity"]  # the weights really moved
    assert rows[4]["metrics"]["perplexity"] != rows[2]["metrics"]["perplexity"]  # diff weighting is no no-op
    for steered_row, control in ((rows[2], rows[6]), (rows[4], rows[7])):  # matched in size, transforms included
        assert control["relative_norm"] == pytest.approx(steered_row["relative_norm"], rel=1e-5)
    assert "NaN" not in (experiment / "results.json").read_text()


def test_each_condition_is_computed_from_the_originals(experiment, inputs):
    """The second steered condition's responses are those of its weights alone, not of what came before it."""
    rows = read_results(experiment / "results.json")["conditions"]
    assert all(
        (experiment / "responses" / f"{row['name'].replace(' ', '_').replace('|', '_')}.jsonl").is_file()
        for row in rows
    )
    model = load_causal_lm(str(experiment / "anchor"))
    vector = SteeringVector.load(experiment / "vectors" / "a.safetensors")
    from gradsteer.steering.weight_steering import steered

    with steered(model, vector, -0.05) as step:
        assert step.relative_norm == pytest.approx(rows[4]["relative_norm"])
        row = json.loads((experiment / "responses" / "a_alpha=-0.05.jsonl").read_text().splitlines()[0])
        from gradsteer.generation.decoding import Draw, SamplingConfig, sample_batch, stop_token_ids

        tokenizer = AutoTokenizer.from_pretrained(experiment / "anchor")
        [drawn] = sample_batch(
            model, [Draw(row["prompt_token_ids"], 0, 1)], SamplingConfig(max_new_tokens=12),
            stop_token_ids=stop_token_ids(model, tokenizer), pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
    assert drawn.token_ids == row["token_ids"]


def test_results_csv_is_the_same_table_flat(experiment):
    rows = read_results(experiment / "results.json")["conditions"]
    flat = list(csv.DictReader((experiment / "results.csv").read_text().splitlines()))
    assert [row["name"] for row in flat] == [row["name"] for row in rows]
    assert float(flat[2]["a_rate"]) == rows[2]["behaviors"]["a"]["rate"]
    assert float(flat[2]["perplexity"]) == rows[2]["metrics"]["perplexity"]
    compared, specific = rows[3]["comparisons"]["a"], rows[3]["specificity"]["shifts"]["a"]
    assert float(flat[3]["a_difference"]) == compared["difference"]
    assert float(flat[3]["a_difference_low"]) == compared["ci_low"] <= compared["difference"]
    assert float(flat[3]["a_p_holm"]) == compared["p_holm"]
    assert float(flat[3]["a_against_none_log_odds_shift"]) == specific["log_odds_shift"]
    assert flat[0]["alpha"] == ""
    columns = list(flat[0])
    assert columns[:7] == ["name", "kind", "model", "vector", "behavior", "transforms", "alpha"]
    asked_for = ["a_rate", "selectivity", "perplexity", "asked", "a_p_holm"]
    assert sorted(asked_for, key=columns.index) == asked_for
    assert "a_behavior" not in columns


def test_tensorboard_shows_losses_norms_rates_texts_and_figures(experiment):
    fit = events(experiment / "fit" / "version_0")
    losses = [event.value for event in fit.Scalars("train/loss")]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    perplexity = fit.Scalars("val/perplexity")[-1].value
    assert perplexity == pytest.approx(math.exp(fit.Scalars("val/loss")[-1].value), rel=1e-4)
    attribute = events(experiment / "attribute" / "version_0")
    assert attribute.Scalars("pile/with/loss")[-1].value > 0
    gradient = PileAverage.load(experiment / "gradients" / "with.safetensors")
    assert attribute.Scalars("pile/with/gradient_norm")[0].value == pytest.approx(gradient.norm(), rel=1e-5)
    assert {"figures/vectors-sumsq", "figures/vectors-l2"} <= set(attribute.Tags()["images"])
    steer = events(experiment / "steer" / "version_0")
    rates = [row["behaviors"]["a"]["rate"] for row in read_results(experiment / "results.json")["conditions"]]
    assert [event.value for event in steer.Scalars("rates/a")] == pytest.approx(rates)
    assert {"figures/rates-results", "figures/delta-sumsq", "figures/delta-l2"} <= set(steer.Tags()["images"])
    assert "responses/a_alpha=+0.05/text_summary" in steer.Tags()["tensors"]
    [table] = steer.Tensors("results/text_summary")
    assert b"| 3 | a alpha=" in table.tensor_proto.string_val[0]


def test_figures_are_written_as_png_files(experiment):
    pictures = {path.name for path in (experiment / "figures").iterdir()}
    assert {"rates-results.png", "vectors-sumsq.png", "vectors-l2.png", "delta-sumsq.png", "delta-l2.png"} <= pictures
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (experiment / "figures").iterdir())


def test_the_same_command_again_changes_nothing(experiment, inputs, capsys):
    before = file_digest(experiment)
    config = experiment / "steer" / "version_0" / "config.yaml"
    assert main(["steer", "--config", str(config)]) == 0
    assert "steer is done already" in capsys.readouterr().out
    assert file_digest(experiment) == before


def test_another_configuration_is_refused_unless_told_to_overwrite(experiment, capsys):
    config = experiment / "steer" / "version_0" / "config.yaml"
    before = file_digest(experiment)
    assert main(["steer", "--config", str(config), "--steering.alphas", "[0.07]"]) == 2
    said = capsys.readouterr().err
    assert (
        "holds the results of another configuration of 'steer', which differs in steering.alphas.0 (now 0.07, " in said
    )
    assert file_digest(experiment) == before


@pytest.mark.slow
def test_a_saved_config_replays_its_run_bit_for_bit(experiment, tmp_path):
    copy = shutil.copytree(experiment, tmp_path / "copy")
    config = copy / "steer" / "version_0" / "config.yaml"
    assert config.read_text().startswith("# replay: python -m gradsteer steer --config ")
    again = copy / "steer" / "version_1" / "config.yaml"
    results, responses = (copy / "results.json").read_bytes(), (copy / "responses" / "a_alpha=+0.05.jsonl").read_bytes()
    run("steer", "--config", config, "--output_dir", copy, "--overwrite", "true", "--data.batch_size", 3)
    assert yaml.safe_load(again.read_text())["overwrite"] is False  # a replay replaces nothing unasked
    assert (copy / "responses" / "a_alpha=+0.05.jsonl").read_bytes() == responses
    assert json.loads((copy / "results.json").read_bytes()) == json.loads(results)


def test_no_logger_still_runs_twice(experiment, inputs, tmp_path):
    words = [
        "evaluate", "--model.model_name_or_path", experiment / "anchor", "--data.prompts", inputs / "prompts.jsonl",
        "--evaluation.judge", "KeywordJudge", "--evaluation.judge.patterns", PATTERNS, "--model.max_new_tokens", 3,
        "--trainer.logger", "false", "--output_dir", tmp_path / "out",
    ]  # fmt: skip
    run(*words)
    run(*words, "--overwrite", "true")
    assert (tmp_path / "out" / "evaluate" / "config.yaml").is_file()


def test_validate_reports_the_validation_loss(experiment, inputs, tmp_path):
    run(
        "validate", "--model.model_name_or_path", experiment / "base", "--data.validation", inputs / "chat.jsonl",
        "--output_dir", tmp_path / "out",
    )  # fmt: skip
    logged = events(tmp_path / "out" / "validate" / "version_0")
    assert logged.Scalars("val/loss")[0].value == pytest.approx(
        events(experiment / "fit" / "version_0").Scalars("val/loss")[-1].value, rel=1e-5
    )


def test_steer_never_overwrites_the_responses_that_piles_come_from(experiment, inputs, tmp_path, capsys):
    copy = shutil.copytree(experiment, tmp_path / "copy")
    (copy / "stages" / "evaluate-first.json").rename(copy / "stages" / "evaluate-anchor.json")
    before = file_digest(copy / "responses")
    config = copy / "steer" / "version_0" / "config.yaml"
    assert main(["steer", "--config", str(config), "--output_dir", str(copy), "--overwrite", "true"]) == 2
    assert "would overwrite the responses of `evaluate --name anchor`" in capsys.readouterr().err
    assert file_digest(copy / "responses") == before
