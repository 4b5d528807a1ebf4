"""What steer says of its conditions beside their rates, through the real command line, each against an oracle."""

import json
import logging
import math
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO

import pytest
import torch
from conftest import rest_slow
from judged import PATTERNS, forecast_words, lines_of, message_of, rows_of, steer_words
from road import run, write_lines
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gradsteer.evaluation.comparisons import compare, holm
from gradsteer.evaluation.condition_comparisons import ComparisonOptions, compare_conditions
from gradsteer.evaluation.condition_result import ConditionResult
from gradsteer.evaluation.counting import Counts
from gradsteer.evaluation.judge_error import JudgeError, corrected_rate
from gradsteer.evaluation.refusals import looks_like_refusal
from gradsteer.evaluation.specificity import measure_specificity
from gradsteer.generation.response_store import ResponseStore
from gradsteer.models.fingerprints import model_fingerprint, weights_digest
from gradsteer.models.loading import load_causal_lm
from gradsteer.reports.cells import condition_text
from gradsteer.steering.conditions import Condition, slug_of
from gradsteer.trainer.trainer import GradsteerTrainer
from gradsteer.vectors.contrast import Contrast
from gradsteer.vectors.parameter_vectors import SteeringVector
from gradsteer.vectors.preconditioning import SecondMoment

pytestmark = pytest.mark.filterwarnings("ignore:forecast. .* were cut at the length limit")

DRAWS, SEED = 300, 5
NAMES = [
    "base", "anchor", "anchor resampled", "anchor resampled-2", "a alpha=+4", "a alpha=-4", "b alpha=+4", "b alpha=-4",
    "a alpha=+4 on base", "a alpha=-4 on base", "b alpha=+4 on base", "b alpha=-4 on base", "random-0 of a alpha=+4",
    "random-0 of b alpha=+4",
]  # fmt: skip
RESAMPLED = NAMES[2:4]
# of a (not ASCII): 4 of 5 seen, 9 of 10 passed
LABELLED = [("é", True)] * 4 + [("e", True)] + [("e", False)] * 9 + [("é", False)]
ERROR = JudgeError(5, 4, 10, 9, 0, positive_size=5.0, negative_size=10.0)


def all_words(judged, inputs, out, **changes):
    """A steer with everything that can be measured."""
    return steer_words(
        judged, out,
        **{
            "trainer__logger": None, "steering__base": judged.base, "steering__on_base": "true",
            "steering__vectors__b": judged.vector("b"), "steering__alphas": "[4]", "steering__random_controls": 1,
            "steering__anchor_resamples": 2, "evaluation__heldout": inputs / "chat.jsonl",
            "data__benign_prompts": "gradsteer://refusal/benign.jsonl", "data__max_refusal_prompts": 2,
            "evaluation__count_degenerate": "false", "data__max_prompts": 8, "model__num_samples": 2,
            "model__sampling_seed": "[1, 2]", "model__max_new_tokens": 2, "model__temperature": 0.7,
            "comparisons__draws": DRAWS, "comparisons__seed": SEED, **changes,
        },
    )  # fmt: skip


class Full:
    """One run with everything: where it lies, what it printed, and the weights that it left.

    Args:
        directory: its output directory.
    """

    def __init__(self, directory):
        self.directory, self.printed, self.logged, self.weights = directory, StringIO(), StringIO(), ""

    @property
    def rows(self):
        return rows_of(self.directory / "results.json")

    def responses(self, name):
        return lines_of(self.directory / "responses" / f"{slug_of(name)}.jsonl")


@pytest.fixture(scope="module")
def full(judged, inputs, tmp_path_factory):
    found = Full(tmp_path_factory.mktemp("full"))
    labelled = [
        {"prompt": f"question {number}", "completion": text, "labels": {"a": label}}
        for number, (text, label) in enumerate(LABELLED)
    ]
    file = write_lines(found.directory / "labelled.jsonl", labelled)
    steer, handler = GradsteerTrainer.steer, logging.StreamHandler(found.logged)

    def watched(self, model, datamodule):
        steer(self, model, datamodule)
        found.weights = weights_digest(dict(model.model.named_parameters()))

    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addHandler(handler)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(found.printed):
        patch.setattr(GradsteerTrainer, "steer", watched)
        run(*all_words(judged, inputs, found.directory, evaluation__labelled=file))
    logger.removeHandler(handler)
    assert list(found.rows) == NAMES
    return found


@pytest.fixture
def no_model(monkeypatch):
    """Whoever loads a model fails."""

    def fail(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("gradsteer.trainer.modules.model.load_causal_lm", fail)
    monkeypatch.setattr("gradsteer.trainer.base_model.load_causal_lm", fail)


def files_of(directory):
    return {
        path: path.read_bytes()
        for path in directory.rglob("*")
        if path.suffix in (".json", ".jsonl", ".csv", ".png", ".safetensors")
    }


# comparisons and specificity


def started_from(name):
    return "base" if name.endswith("on base") else "anchor"


def refused_of(full, name):
    """Rows of the prompts for refusals, each with whether it looks like one."""
    found = {}
    for key in full.rows[name]["refusals"]:
        rows = lines_of(full.directory / "responses" / "refusals" / f"{slug_of(name)}.{key}.jsonl")
        own = f"{key}_refused"
        found[own] = [{**row, "verdicts": {own: looks_like_refusal(row["completion"])}} for row in rows]
    return found


def recomputed(full, draws, seed):
    """The comparisons and the specificity of all conditions, from the response files alone."""
    responses = {name: full.responses(name) for name in NAMES}
    refusals = {name: refused_of(full, name) for name in NAMES}
    pairs = [(name, key) for name in NAMES if name != "anchor" for key in ("a", "b", *refusals[name])]
    sides = [
        (responses[started_from(name)], responses[name])
        if key in ("a", "b")
        else (refusals[started_from(name)][key], refusals[name][key])
        for name, key in pairs
    ]
    comparisons = [compare(*rows, key, draws=draws, seed=seed) for (_, key), rows in zip(pairs, sides, strict=True)]
    table = {name: {} for name in NAMES if name != "anchor"}
    for (name, behavior), each in zip(pairs, holm(comparisons), strict=True):
        table[name][behavior] = each.to_dict()
    measured = {
        name: measure_specificity(
            responses[started_from(name)], responses[name], ["a", "b"], own=full.rows[name]["vector"],
            alpha=full.rows[name]["alpha"], draws=draws, seed=seed,
        ).to_dict()
        for name in table
    }  # fmt: skip
    return json.loads(json.dumps([table, measured]))


def test_comparisons_and_specificity_are_those_of_the_responses(full):
    comparisons, specificity = recomputed(full, DRAWS, SEED)
    rows = full.rows
    assert rows["anchor"]["comparisons"] is rows["anchor"]["specificity"] is None
    for name in comparisons:
        assert rows[name]["comparisons"] == comparisons[name]
        assert rows[name]["specificity"] == specificity[name]
        assert comparisons[name].keys() == {"a", "b", "benign_refused"}
    assert any(row["degenerate"] for name in NAMES for row in full.responses(name))  # they count in none of these
    shifts = [rows[name]["specificity"]["shifts"]["a"]["log_odds_shift"] for name in NAMES if name != "anchor"]
    assert len(set(shifts)) > 5


@pytest.mark.parametrize(("draws", "seed"), [(DRAWS, 0), (2000, SEED)])
def test_draws_and_seed_of_the_comparisons_matter(full, draws, seed):
    comparisons, _ = recomputed(full, draws, seed)
    found = {name: full.rows[name]["comparisons"] for name in comparisons}
    assert found != comparisons
    for name in comparisons:
        for behavior in "ab":
            for exact in ("difference", "p", "p_holm"):
                assert found[name][behavior][exact] == comparisons[name][behavior][exact]


def test_holm_is_over_the_whole_table(full, monkeypatch):
    """By hand: sorted, the k-th least of m times m - k + 1, never less than one before it, at most 1."""

    def smaller(*rows, **options):
        found = compare(*rows, **options)
        return replace(found, p=found.p / 100)  # or eight prompts leave nothing below 1

    monkeypatch.setattr("gradsteer.evaluation.condition_comparisons.compare", smaller)
    results = []
    for name, row in full.rows.items():
        contrast = None if row["behavior"] is None else Contrast(behavior=row["behavior"])
        condition = Condition(name, row["kind"], row["model"], alpha=row["alpha"], contrast=contrast)
        counts = Counts(behaviors=row["behaviors"], refusals=row["refusals"], metrics=row["metrics"])
        results.append(ConditionResult(condition, counts=counts))
    compare_conditions(results, ResponseStore(full.directory / "responses").rows, ComparisonOptions(draws=100))
    found = [each for result in results for each in (result.comparisons or {}).values()]
    assert len(found) == 39
    assert 0 < sum(each["num_differing"] > 0 for each in found) < 39  # all of them count
    least = 0.0
    for rank, each in enumerate(sorted(found, key=lambda each: each["p"])):
        least = max(least, min(1.0, (39 - rank) * each["p"]))
        assert each["p_holm"] == pytest.approx(least)
    assert min(each["p_holm"] for each in found) < 0.05


def test_one_screen_is_printed_and_all_tables_are_in_a_file(full):
    printed, tables = full.printed.getvalue(), (full.directory / "tables.txt").read_text()
    row = full.rows["a alpha=+4"]
    selectivity = row["specificity"]["selectivity"]
    text = f"{selectivity['value']:.2f} [{selectivity['ci_low']:.2f}, {selectivity['ci_high']:.2f}]"
    (line,) = [line for line in printed.splitlines() if line.startswith(f"{condition_text(row)}  ")]
    assert text in line
    assert {f"{row['behaviors']['a']['rate']:.0%}"[:-1], f"{100 * row['behaviors']['a']['rate']:.1f}"} & {*line.split()}
    assert "1 null of a" in printed
    assert "random-0 of a" not in printed
    assert "tables.txt" in printed
    assert f"{selectivity['value']:+.2f} [" in tables
    for said in ("p (Holm)", f"{row['comparisons']['a']['p']:.3f}", "refused benign %", "random-0 of a alpha=+4"):
        assert said in tables
    assert "p (Holm)" not in printed
    [line] = [line for line in tables.splitlines() if line.startswith("a: selectivity") and "alpha=+4 " in line]
    assert f"{selectivity['value']:.2f} [" in line
    assert len([line for line in tables.splitlines() if ": selectivity " in line]) == 8


def test_a_step_that_changes_no_response_has_no_effect_and_no_sign(judged, tmp_path, capsys):
    run(*steer_words(judged, tmp_path, steering__alphas="[0.001]", report__verbose="true"))
    for name, row in rows_of(tmp_path / "results.json").items():
        if name == "anchor":
            continue
        for found in row["comparisons"].values():
            assert (found["num_differing"], found["difference"], found["p"], found["p_holm"]) == (0, 0.0, 1.0, 1.0)
            assert found["ci_low"] < 0 < found["ci_high"]
        assert row["specificity"]["selectivity"]["value"] == 0
    shown = capsys.readouterr().out
    assert "-0.00 [" not in shown
    assert (tmp_path / "tables.txt").read_text() in shown
    assert "p (Holm)" in shown


def test_the_figures_are_files_and_in_tensorboard(full):
    events = EventAccumulator(str(full.directory / "steer" / "version_0"), size_guidance={"images": 0}).Reload()
    for name in ("specificity", "trade-offs", "rates-results"):
        assert (full.directory / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"figures/{name}" in events.Tags()["images"]
    assert "metrics/base_perplexity" in events.Tags()["scalars"]
    steps = {event.step: event.value for event in events.Scalars("metrics/base_perplexity")}
    assert steps == {
        number: pytest.approx(full.rows[name]["metrics"]["base_perplexity"]) for number, name in enumerate(NAMES)
    }


def test_corrected_rates_stand_in_every_row(full):
    for row in full.rows.values():
        rate = row["behaviors"]["a"]
        assert row["corrected"] == {
            "a": corrected_rate(rate["num_scored"], rate["num_positive"], rate["effective_n"], ERROR)
        }
    assert "a % corrected" in (full.directory / "tables.txt").read_text()


def test_every_file_is_json_without_nan(full):
    def refuse(constant):
        raise AssertionError(constant)

    files = [path for path in full.directory.rglob("*.json*") if path.is_file()]
    assert len(files) > 2 * len(NAMES)
    for path in files:
        for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(text, parse_constant=refuse)
    assert "nan" not in (full.directory / "results.csv").read_text().lower()


# the anchor resampled


def test_the_anchor_is_resampled_with_seeds_of_its_own(full):
    shared = {1, 2}
    seen = set(shared)
    for name in NAMES:
        seeds = {row["seed"] for row in full.responses(name)}
        if name not in RESAMPLED:
            assert seeds == shared
            continue
        assert len(seeds) == 2
        assert not seeds & seen
        seen |= seeds
        assert [row["id"] for row in full.responses(name)] == [row["id"] for row in full.responses("anchor")]
        fingerprints = {row["model_fingerprint"] for row in full.responses(name)}
        assert fingerprints == {row["model_fingerprint"] for row in full.responses("anchor")} != {None}
        row, anchor = full.rows[name], full.rows["anchor"]
        assert (row["kind"], row["alpha"], row["vector"]) == ("control", 0.0, None)
        assert row["metrics"]["perplexity"] == anchor["metrics"]["perplexity"]
        changed = [
            a["token_ids"] != b["token_ids"]
            for a, b in zip(full.responses(name), full.responses("anchor"), strict=True)
        ]
        assert sum(changed) > 20
        assert row["specificity"]["selectivity"] is None


# perplexity of the responses under the base, and divergence of held-out text


def test_base_perplexity_is_that_of_the_responses_under_the_base(full, judged):
    base = load_causal_lm(str(judged.base))
    for name in ("base", "anchor", RESAMPLED[1], "a alpha=-4", "b alpha=+4 on base"):
        total, count = 0.0, 0
        for row in full.responses(name):
            prompt, response = row["prompt_token_ids"], row["token_ids"]
            with torch.no_grad():
                logits = base(input_ids=torch.tensor([prompt + response])).logits[0].double()
            log_p = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            total -= float(log_p[torch.arange(len(response)), torch.tensor(response)].sum())
            count += len(response)
        assert full.rows[name]["metrics"]["base_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)


def test_the_model_has_its_own_bytes_afterwards(full, judged):
    anchor = load_causal_lm(str(judged.anchor))
    assert full.weights == weights_digest(dict(anchor.named_parameters()))
    assert full.responses("anchor")[0]["model_fingerprint"] == model_fingerprint(anchor)
    assert full.responses("base")[0]["model_fingerprint"] == model_fingerprint(load_causal_lm(str(judged.base)))
    assert {row["model_fingerprint"] for row in full.responses("a alpha=+4")} == {None}


def test_divergence_from_the_anchor(full):
    for name, row in full.rows.items():
        divergence = row["metrics"]["kl_to_anchor"]
        if name in ("anchor", *RESAMPLED):
            assert divergence == pytest.approx(0, abs=1e-6)
        else:
            assert divergence > (1e-4 if row["kind"] == "control" else 1e-2)
            assert row["metrics"]["perplexity"] != full.rows["anchor"]["metrics"]["perplexity"]


@pytest.mark.slow
def test_what_is_not_measured_is_null(judged, tmp_path):
    run(*steer_words(judged, tmp_path / "off", steering__base=judged.base, fluency__base_perplexity="false"))
    run(*steer_words(judged, tmp_path / "none"))
    for rows in (rows_of(tmp_path / "off" / "results.json"), rows_of(tmp_path / "none" / "results.json")):
        assert "anchor resampled" not in rows  # anchor_resamples 0
        for row in rows.values():
            absent = "base_perplexity", "perplexity", "kl_to_anchor", "refusal_benign", "refusal_harmful"
            assert {row["metrics"][key] for key in absent} == {None}
            assert row["corrected"] is None


# judges of one behavior, or of another than the vector's


@pytest.mark.filterwarnings("ignore:vector .. its slope was taken between classes that another judge")
def test_one_behavior_has_no_selectivity(judged, tmp_path, capsys):
    patterns = json.dumps({"a": json.loads(PATTERNS)["a"]})
    run(*steer_words(judged, tmp_path, evaluation__judge__patterns=patterns))
    for name, row in rows_of(tmp_path / "results.json").items():
        assert list(row["behaviors"]) == ["a"]
        assert row["classes"] == {}
        if name != "anchor":
            assert row["specificity"]["selectivity"] is None
            assert list(row["specificity"]["shifts"]) == ["a"]
    tables = (tmp_path / "tables.txt").read_text()
    assert "p (Holm)" in tables
    assert tables.count("selectivity") == tables.count("selectivity not measured") == 2  # the headline, for each sign
    assert "selectivity" not in capsys.readouterr().out


@pytest.fixture(scope="module", params=rest_slow([{"b": [" "], "c": ["."]}, {"c": ["."]}]))
def unknown(request, judged, tmp_path_factory):
    """The report of a vector whose behavior the judge does not judge, and what it does judge."""
    out, patterns = tmp_path_factory.mktemp("unknown"), json.dumps(request.param)
    run(*steer_words(judged, out, evaluation__judge__patterns=patterns, steering__anchor_resamples=1))
    return rows_of(out / "results.json"), list(request.param)


def test_a_judge_that_does_not_know_the_vectors_behavior(unknown):
    rows, behaviors = unknown
    for name in ("a alpha=+0.4", "a alpha=-0.4", "anchor resampled"):
        for measured in (rows[name]["behaviors"], rows[name]["comparisons"], rows[name]["specificity"]["shifts"]):
            assert list(measured) == behaviors
        assert rows[name]["specificity"]["selectivity"] is None


def test_a_shift_between_classes_that_nobody_judged_is_not_reported(unknown):
    realised = unknown[0]["a alpha=+0.4"]["realised"]
    assert realised is None or realised["log_odds_shift"] is None


# a prompt that is longer than the context


@pytest.mark.slow
def test_a_prompt_that_is_too_long_takes_no_part(judged, tmp_path, capsys):
    """The first run stops at the first condition; the second, with another limit, goes on from what it sampled."""
    rows = [*lines_of(judged.prompts)[:4], {"id": "long", "prompt": "hello " * 300}]
    changes = {
        "data__prompts": write_lines(tmp_path / "prompts.jsonl", rows), "data__max_prompts": None,
        "steering__base": judged.base, "data__batch_size": 2,
    }  # fmt: skip
    out = tmp_path / "out"
    message = message_of(steer_words(judged, out, **changes), capsys)
    assert "condition 'base': 1 of 5 verdicts on 'a' (20.0%) are unscored" in message
    kept = sorted((out / "responses" / ".unfinished" / "base").glob("0*.jsonl"))
    times = [path.stat().st_mtime_ns for path in kept]
    assert len(kept) == 3
    assert not (out / "results.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradsteer.generation.unfinished.UnfinishedCondition.clear", lambda self: None)
        run(*steer_words(judged, out, **changes, evaluation__max_unscored=0.2))
    assert [path.stat().st_mtime_ns for path in kept] == times
    for name, row in rows_of(out / "results.json").items():
        found = lines_of(out / "responses" / f"{slug_of(name)}.jsonl")
        assert [each["id"] for each in found if each["failed"]] == ["long"]
        assert row["behaviors"]["a"]["num_scored"] == 4
        assert row["behaviors"]["a"]["num_unscored"] == 1
        assert row["metrics"]["mean_length"] == sum(len(each["token_ids"]) for each in found) / 4
        assert row["metrics"]["base_perplexity"] > 1
        if name != "anchor":
            assert row["comparisons"]["a"]["num_pairs"] == 4
            shift = row["specificity"]["shifts"]["a"]
            neither = [each for each in found if set(each["verdicts"].values()) == {False}]
            assert shift["num_neither"] == len(neither)


# --dry_run


@pytest.mark.filterwarnings("ignore:vector .. its slope was taken between classes that another judge")
def test_a_dry_run_says_how_much_and_does_nothing(judged, inputs, no_model, tmp_path, caplog, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    judge = {
        "evaluation__judge": "OpenAIJudge", "evaluation__judge__rubrics": '{"a": "It is odd.", "b": "It is even."}',
        "evaluation__judge__patterns": None, "evaluation__judge__store": tmp_path / "store.sqlite",
    }  # fmt: skip
    with caplog.at_level("INFO"):
        run(*all_words(judged, inputs, tmp_path, dry_run="true", trainer__logger="false", **judge))
    # 14 conditions, 8 prompts with 2 samples of 2 seeds, and 2 for refusals
    said = "14 conditions x 34 responses = 476 responses of at most 2 tokens: at most 952 tokens sampled"
    assert said in caplog.text
    [line] = [line for line in caplog.text.splitlines() if "judging, about" in line]
    assert f": {14 * 32} requests, " in line
    assert float(line.rsplit("$", 1)[1]) > 0
    assert not files_of(tmp_path)
    assert not (tmp_path / "stages").exists()


def test_a_dry_run_of_a_finished_directory_leaves_it_as_it_is(full, judged, inputs, no_model, caplog):
    before = files_of(full.directory)
    for overwrite in ("false", "true"):
        caplog.clear()
        with caplog.at_level("INFO"):
            run(
                *all_words(judged, inputs, full.directory, dry_run="true", trainer__logger="false", overwrite=overwrite)
            )
        assert files_of(full.directory) == before
        assert "14 conditions x 34 responses" in caplog.text


# leakage


def test_prompts_that_the_vector_was_made_on_are_refused(judged, tmp_path, capsys, no_model):
    words = steer_words(judged, tmp_path, data__prompts=judged.directory / "piles.jsonl", data__max_prompts=3)
    message = message_of(words, capsys)
    assert "vector a was made on responses to 3 of the 3 prompts that it is measured on" in message
    assert "--steering.seed_faithful true" in message
    assert not files_of(tmp_path)


@pytest.mark.slow
def test_one_shared_prompt_is_enough_and_can_be_asked_for(judged, tmp_path, capsys, caplog):
    # in another place, under another id
    rows = [*lines_of(judged.prompts)[:2], lines_of(judged.directory / "piles.jsonl")[7] | {"id": "x"}]
    file = write_lines(tmp_path / "prompts.jsonl", rows)
    words = steer_words(judged, tmp_path / "out", data__prompts=file, data__max_prompts=None)
    said = "vector a was made on responses to 1 of the 3 prompts"
    assert said in message_of(words, capsys)
    with caplog.at_level("INFO"):
        run(*words, "--steering.seed_faithful", "true")
    assert said in caplog.text
    assert len(rows_of(tmp_path / "out" / "results.json")) == 3


def test_vectors_of_controls_and_of_transforms_are_checked_too(judged, tmp_path, capsys, no_model):
    vector, other = SteeringVector.load(judged.vector("a")), tmp_path / "other.safetensors"
    SteeringVector(vector, {**vector.metadata, "prompt_digests": "[]"}).save(other)
    shared = {"data__prompts": judged.directory / "piles.jsonl", "steering__vectors__a": other}
    used = judged.vector("b")
    for more in (
        {"steering__control_vectors": json.dumps({"length": str(used)})},
        {"steering__transforms": json.dumps([{"orthogonal_to": {"vector_file": str(used)}}])},
    ):
        message = message_of(steer_words(judged, tmp_path / "out", **shared, **more), capsys)
        assert f"vector {str(used)!r} was made on responses to" in message


def test_a_vector_that_does_not_say_its_prompts_is_told_of(judged, tmp_path, caplog):
    vector, other = SteeringVector.load(judged.vector("a")), tmp_path / "other.safetensors"
    SteeringVector(vector, {key: text for key, text in vector.metadata.items() if key != "prompt_digests"}).save(other)
    with caplog.at_level("INFO"):
        run(*steer_words(judged, tmp_path / "out", steering__vectors__a=other, dry_run="true"))
    assert "vector a does not say which prompts it was made on" in caplog.text


def test_a_sum_says_so_where_one_of_its_parts_does_not(judged, tmp_path, caplog, capsys):
    vector, other = SteeringVector.load(judged.vector("a")), tmp_path / "other.safetensors"
    SteeringVector(vector, {key: text for key, text in vector.metadata.items() if key != "prompt_digests"}).save(other)
    words = steer_words(judged, tmp_path / "out", steering__vectors__c="a + b", steering__vectors__a=None)
    words += ["--steering.vectors.a", str(other), "--steering.vectors.b", str(judged.vector("b"))]
    with caplog.at_level("INFO"):
        run(*words, "--dry_run", "true")
    assert "vector c does not say which prompts it was made on, not all of them" in caplog.text
    assert "vector b does not say" not in caplog.text
    shared = [*words, "--data.prompts", str(judged.directory / "piles.jsonl")]
    assert "was made on responses to" in message_of(shared, capsys)  # what is known is refused


def test_second_moments_of_piles_are_checked_too(judged, tmp_path, capsys, caplog):
    vector, used = SteeringVector.load(judged.vector("a")), judged.vector("a")
    other = SteeringVector(vector, {**vector.metadata, "prompt_digests": "[]"}).save(tmp_path / "other.safetensors")
    prompts = {"prompt_digests": vector.metadata["prompt_digests"]}
    moments = {
        name: SecondMoment(vector.map(lambda _, tensor: tensor.square(), ""), metadata).save(tmp_path / name)
        for name, metadata in (("fisher", {"source": "fisher", **prompts}), ("adam", {"source": "adam"}), ("who", {}))
    }

    def words(name):
        transforms = json.dumps([{"preconditioned": {"second_moment": str(moments[name])}}])
        shared = {"data__prompts": judged.directory / "piles.jsonl", "steering__vectors__a": other}
        return steer_words(judged, tmp_path / "out", **shared, steering__transforms=transforms, dry_run="true")

    assert SteeringVector.read_header(used)["prompt_digests"] != "[]"
    message = message_of(words("fisher"), capsys)
    assert f"second moment {str(moments['fisher'])!r} was made on responses to 2 of the 2 prompts" in message
    for name, told in (("adam", False), ("who", True)):
        caplog.clear()
        with caplog.at_level("INFO"):
            run(*words(name))
        assert ("does not say which prompts it was made on" in caplog.text) is told


def test_a_sum_of_vectors_was_made_on_the_prompts_of_each(judged, tmp_path, capsys, no_model):
    other = tmp_path / "other.safetensors"
    vector = SteeringVector.load(judged.vector("a"))
    SteeringVector(vector, {**vector.metadata, "prompt_digests": "[]"}).save(other)
    shared = {"data__prompts": judged.directory / "piles.jsonl", "steering__vectors__a": other}
    words = steer_words(judged, tmp_path / "out", **shared, steering__vectors__c="a + 0.5 * b")
    words += ["--steering.vectors.b", str(judged.vector("b"))]
    message = message_of(words, capsys)
    assert "vector a " not in message
    assert "vector c was made on" in message or "vector b was made on" in message


@pytest.fixture(scope="module")
def refusals(judged, tmp_path_factory):
    """A run whose prompts for refusals are those that the vector was made on, as was asked for."""
    out, piles = tmp_path_factory.mktemp("refusals"), judged.directory / "piles.jsonl"
    shared = {"data__benign_prompts": piles, "data__harmful_prompts": piles}
    run(*steer_words(judged, out, **shared, steering__seed_faithful="true"))
    return out


@pytest.mark.parametrize("kind", ["benign", "harmful"])
def test_prompts_for_refusals_that_a_vector_was_made_on_are_refused(judged, tmp_path, capsys, no_model, kind):
    words = steer_words(judged, tmp_path, **{f"data__{kind}_prompts": judged.directory / "piles.jsonl"})
    said = f"vector a was made on responses to 20 of the 20 {kind} prompts that it is measured on"
    message = message_of(words, capsys)
    assert said in message
    assert "--steering.seed_faithful true" in message


def test_refusals_on_prompts_that_a_vector_was_made_on_can_be_asked_for(refusals):
    assert rows_of(refusals / "results.json")["anchor"]["metrics"]["refusal_harmful"] == 0
    assert len(list((refusals / "responses" / "refusals").iterdir())) == 6


def test_refusals_of_a_report_that_is_replaced_do_not_stay(judged, refusals):
    run(*steer_words(judged, refusals, steering__alphas="[0.2]", overwrite="true"))
    names = {path.name for path in (refusals / "responses").glob("*.jsonl")}
    assert names == {"anchor.jsonl", "a_alpha=+0.2.jsonl", "a_alpha=-0.2.jsonl"}
    assert not list((refusals / "responses" / "refusals").glob("*"))


def test_forecasts_from_responses_that_the_vector_was_made_on_are_refused(judged, tmp_path, capsys, no_model):
    responses = judged.directory / "responses" / "piles.jsonl"
    message = message_of(forecast_words(judged, tmp_path, forecasting__responses=responses), capsys)
    assert "vector a was made on responses to 20 of the 20 prompts that it is measured on" in message
    assert "--steering.seed_faithful true" in message


@pytest.mark.slow
def test_such_forecasts_can_be_asked_for(judged, tmp_path):
    responses = judged.directory / "responses" / "piles.jsonl"
    run(*forecast_words(judged, tmp_path, forecasting__responses=responses, steering__seed_faithful="true"))
    assert len(rows_of(tmp_path / "forecast.json")) == 3


def test_piles_of_plain_chat_data_are_known_by_their_prompts_too(judged, tmp_path, capsys):
    completions = [{"prompt": f"ask {number}?", "completion": "so it is"} for number in range(3)]
    chats = [
        {"messages": [{"role": "user", "content": f"ask {number}?"}, {"role": "assistant", "content": "no"}]}
        for number in range(3, 6)
    ]
    piles = {
        "p": str(write_lines(tmp_path / "p.jsonl", completions)),
        "m": str(write_lines(tmp_path / "m.jsonl", chats)),
    }
    model = ["--model.model_name_or_path", judged.anchor, "--output_dir", tmp_path, "--trainer.logger", "false"]
    run("attribute", *model, "--data.piles", json.dumps(piles), "--vectors.v", "[p, m]")
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"ask {number}?"} for number in (0, 4, 9)])
    words = steer_words(
        judged, tmp_path / "out", data__prompts=prompts, data__max_prompts=None, steering__vectors__a=None,
        steering__vectors__v=tmp_path / "vectors" / "v.safetensors",
    )  # fmt: skip
    assert "vector v was made on responses to 2 of the 3 prompts" in message_of(words, capsys)
