"""The command line of discover, on the tiny experiment: what it leaves, goes on with, and hands on."""

import json

import numpy as np
import pytest
from road import QUIET, run, write_lines
from test_distributed import run_on_two

from gradsteer.__main__ import main
from gradsteer.discovery import material
from gradsteer.discovery.group_file import GroupFile
from gradsteer.discovery.judge import GroupJudge
from gradsteer.judges import Exchange
from gradsteer.reports.discovery_figures import discovery_figures
from gradsteer.reports.discovery_tables import forecasts_table, groups_table
from gradsteer.vectors.parameter_vectors import SteeringVector

# a tiny model rarely ends within so few tokens
pytestmark = pytest.mark.filterwarnings("ignore:forecast of groups. .* were cut at the length limit")

# the tiny models say noise: a group is whatever half of it is, and taught or not does not matter
LOOSE = ["--discovery.threshold", "-100", "--discovery.number", 2, "--discovery.min_size", 2]
LOOSE += ["--discovery.keep_topics", "true", "--discovery.size", 100, "--discovery.shifts", "[0.2]"]
LOOSE += ["--discovery.features", "gradient", "--discovery.method", "ward"]


def line(experiment, out, *more):
    rows = [json.loads(text) for text in (experiment / "responses" / "anchor.jsonl").read_text().splitlines()]
    others = [{**row, "prompt": f"{row['prompt']} And then?"} for row in rows]
    heldout = write_lines(experiment.parent / "elsewhere.jsonl", others)  # to prompts that no vector is made from
    return [
        "discover", "--input_dir", experiment, "--output_dir", out, "--model.model_name_or_path", "{input_dir}/anchor",
        "--data.responses", "{input_dir}/responses/first.jsonl", "--data.base", "{input_dir}/responses/base.jsonl",
        "--data.heldout", heldout, "--discovery.base", "{input_dir}/base", *LOOSE, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def found(experiment, tmp_path_factory):
    out = tmp_path_factory.mktemp("discovered")
    run(*line(experiment, out))
    return out


def rows_of(path):
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_it_leaves_groups_rows_vectors_forecasts_and_pictures(found):
    record = json.loads((found / "discovery" / "discovery.json").read_text())
    names = [group["name"] for group in record["groups"]]
    assert names == ["group-1", "group-2"]
    rows = rows_of(found / "discovery" / "responses.jsonl")
    assert len(rows) == record["num_responses"] == 20
    assert all(set(row["verdicts"]) == {*names} and len(row["log_ratios"]) == len(row["token_ids"]) for row in rows)
    assert all(row["spans"] == [[0, len(row["token_ids"])]] for row in rows)
    for group in record["groups"]:
        assert sum(row["verdicts"][group["name"]] for row in rows) == group["anchor"]["num_positive"]
        assert sum(record["layers"][group["name"]].values()) == pytest.approx(1)
    assert {row["vector"] for row in record["forecasts"]} == {*names}
    assert [name for name, _ in discovery_figures(record)] == ["discovery-map", "discovery-layers"]
    assert all(table(record) is not None for table in (groups_table, forecasts_table))
    assert not (found / "discovery" / ".unfinished").exists()


def test_its_vectors_are_those_of_attribute(experiment, found, tmp_path):
    rows = found / "discovery" / "responses.jsonl"
    piles = {name: {"responses": str(rows), "where": {"group-1": shows}} for name, shows in (("a", True), ("b", False))}
    run(
        "attribute", "--output_dir", tmp_path, "--model.model_name_or_path", experiment / "anchor", "--data.piles",
        json.dumps(piles), "--vectors.v", "[a, b]", "--model.calibrate", "false",
    )  # fmt: skip
    theirs = SteeringVector.load(tmp_path / "vectors" / "v.safetensors")
    ours = SteeringVector.load(found / "vectors" / "group-1.safetensors")
    assert ours.cosine(theirs) == pytest.approx(1, abs=1e-5)
    assert ours.norm() == pytest.approx(theirs.norm(), rel=1e-4)
    for key in ("plus_where", "minus_where", "model_fingerprint", "plus_num_examples", "prompt_digests", "reduction"):
        assert ours.metadata[key] == theirs.metadata[key], key


def test_the_judge_places_responses_as_discover_did(found):
    rows = rows_of(found / "discovery" / "responses.jsonl")
    judge = GroupJudge(str(found / "discovery"))
    judge.check()
    groups = GroupFile.read(found / "discovery")
    assert judge.behaviors == groups.names
    verdicts = judge.judge([*(Exchange(row["prompt"], row["completion"]) for row in rows), Exchange("hello?", "  ")])
    assert not any(verdicts[-1].values.values())
    same = [each.values == row["verdicts"] for each, row in zip(verdicts, rows, strict=False)]
    assert np.mean(same) > 0.5  # texts are encoded again, and the farthest of a group are in none
    assert all(sum(each.values.values()) <= 1 for each in verdicts)
    assert judge.fingerprint() == GroupJudge(str(found / "discovery")).fingerprint()
    assert judge.fingerprint() != GroupJudge(str(found / "discovery"), by="patterns").fingerprint()
    judge.close()
    with pytest.raises(ValueError, match="by is 'words'; accepted: nearest, patterns"):
        GroupJudge(str(found), by="words")
    with pytest.raises(ValueError, match="no groups at"):
        GroupJudge(str(found)).check()


def test_the_same_command_does_nothing(experiment, found, capsys):
    run(*line(experiment, found))
    assert "nothing to do" in capsys.readouterr().out


def test_degenerate_responses_and_vectors_of_an_earlier_discover_are_left_out(experiment, tmp_path, monkeypatch):
    rows = rows_of(experiment / "responses" / "first.jsonl")
    broken = {**rows[0], "token_ids": rows[0]["token_ids"][:1] * 40, "completion": "", "finish_reason": "length"}
    responses = write_lines(tmp_path / "responses.jsonl", [broken, *rows])
    out = tmp_path / "out"
    words = line(experiment, out, "--data.responses", responses)
    run(*words)
    record = json.loads((out / "discovery" / "discovery.json").read_text())
    assert record["num_degenerate"]["responses"] == 1
    assert record["num_responses"] == len(rows)
    written = rows_of(out / "discovery" / "responses.jsonl")
    assert [row["token_ids"] for row in written] == [row["token_ids"] for row in rows]
    assert (out / "vectors" / "group-2.safetensors").exists()
    with pytest.warns(UserWarning, match="no group counts as taught"):
        run(*words, "--discovery.keep_topics", "false", "--discovery.number", "1", "--overwrite", "true")
    assert not [*out.glob("*/*group-2.safetensors")]
    monkeypatch.setenv("GRADSTEER_TRACEBACK", "1")
    only = write_lines(tmp_path / "broken.jsonl", [broken] * 3)
    with pytest.raises(ValueError, match="all 3 responses are degenerate"):
        main([*map(str, line(experiment, tmp_path / "none", "--data.responses", only)), *QUIET])
    assert not (tmp_path / "none" / "discovery").exists()


@pytest.mark.slow
def test_one_that_was_cut_off_goes_on_and_batches_do_not_matter(experiment, found, tmp_path, monkeypatch):
    calls = []
    real = material.ResponseReader.sketches

    def cut_off(self, *args, **options):
        calls.append("sketches")
        if len(calls) == 1:
            raise RuntimeError("cut off")
        return real(self, *args, **options)

    scored = []
    log_probs = material.token_log_probs
    monkeypatch.setattr(material, "token_log_probs", lambda *a, **o: scored.append(1) or log_probs(*a, **o))
    monkeypatch.setattr(material.ResponseReader, "sketches", cut_off)
    with pytest.raises(RuntimeError, match="cut off"):
        main([*map(str, line(experiment, tmp_path)), *QUIET])
    before = len(scored)
    run(*line(experiment, tmp_path))
    assert len(scored) == before  # what was scored is kept
    ours, theirs = (json.loads((out / "discovery" / "discovery.json").read_text()) for out in (tmp_path, found))
    assert ours["groups"] == theirs["groups"]
    # and whatever the batches
    other = tmp_path / "other"
    run(*line(experiment, other, "--data.token_budget", 30))
    groups = [rows_of(out / "discovery" / "responses.jsonl") for out in (other, found)]
    assert [row["verdicts"] for row in groups[0]] == [row["verdicts"] for row in groups[1]]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--discovery.shifts", "[0.0]"], "none of them 0"),
        (["--discovery.reach", "-1"], "discovery.reach is -1; accepted: 0 or more tokens"),
        (["--discovery.number", 0], "discovery.number is 0"),
        (["--data.token_budget", 0], "data.token_budget is 0"),
        (["--discovery.token_weights", "log_ratio", "--discovery.base", "null"], "needs the base model"),
    ],
)
def test_wrong_options_are_refused_before_any_work(words, text, experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADSTEER_TRACEBACK", "1")
    with pytest.raises(ValueError, match=text):
        main([*map(str, line(experiment, tmp_path, *words)), *QUIET])
    assert not (tmp_path / "discovery").exists()


@pytest.mark.distributed
@pytest.mark.timeout(120)
def test_two_processes_find_the_same(experiment, found, tmp_path):
    run_on_two(line(experiment, tmp_path), tmp_path, "ddp")
    groups = [rows_of(out / "discovery" / "responses.jsonl") for out in (tmp_path / "two", found)]
    assert [row["verdicts"] for row in groups[0]] == [row["verdicts"] for row in groups[1]]
    ours, theirs = (SteeringVector.load(out / "vectors" / "group-1.safetensors") for out in (tmp_path / "two", found))
    assert ours.cosine(theirs) == pytest.approx(1, abs=1e-5)
    assert ours.norm() == pytest.approx(theirs.norm(), rel=1e-4)
    forecasts = [
        json.loads((out / "discovery" / "discovery.json").read_text())["forecasts"] for out in (tmp_path / "two", found)
    ]
    alphas = [[row["alpha"] for row in each] for each in forecasts]
    assert alphas[0] == pytest.approx(alphas[1], rel=0.02)
