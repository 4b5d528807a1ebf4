"""Model judges through the real command line: what they are asked, what comes of it, and what is never told."""

import json
import os

import pytest
import yaml
from commanded import (  # noqa: F401
    RUBRICS,
    TOTAL,
    by_content,
    different,
    environment_fixture,
    lines_of,
    num_stored,
    play_fixture,
    prompts_fixture,
    sampled_fixture,
    truth,
    words_fixture,
)
from conftest import rest_slow
from judging import KEY, script
from road import QUIET, run
from server import error, says, verdicts

from gradsteer.__main__ import main
from gradsteer.judges.rubrics import BUILT_IN
from gradsteer.reports.results import read_results
from gradsteer.trainer.modules.model import ModelModule


def report_of(out, file="evaluations/anchor"):
    return {row["name"]: row for row in read_results(out / f"{file}.json")["conditions"]}


@pytest.fixture
def said(capfd, caplog):
    """Gives what was shown since the last call; Lightning's own stream, made earlier, is seen through its logger."""

    def take():
        shown = capfd.readouterr()
        text = "\n".join([shown.out, shown.err, caplog.text])
        caplog.clear()
        return text

    return take


@pytest.fixture
def refused(said):
    """Runs a command that is refused; gives what it shows."""

    def run_refused(line):
        assert main(line if line[0] == "judge" else [*line, *QUIET]) == 2
        shown = said()
        assert "Traceback" not in shown
        return shown

    return run_refused


def test_rates_are_the_servers_answers_and_the_store_answers_the_second_time(words, play, tmp_path, sampled):
    server, store = play(by_content), tmp_path / "shared" / "mine.sqlite"
    first, second = tmp_path / "first", tmp_path / "second"
    run(*words("evaluate", first, server, evaluation__judge__store=store))
    rows = lines_of(first / "responses" / "anchor.jsonl")
    assert len(rows) == TOTAL
    assert [row["verdicts"] for row in rows] == [truth(row["completion"]) for row in rows]
    assert 0 < sum(row["verdicts"]["bridge"] for row in rows) < TOTAL
    for behavior, rate in report_of(first)["anchor"]["behaviors"].items():
        assert rate["rate"] == sum(row["verdicts"][behavior] for row in rows) / TOTAL
        assert rate["num_unscored"] == 0
    assert len(server.requests) == len(different(rows)) == num_stored(store)
    assert not list(first.rglob("*.sqlite*"))

    run(*words("evaluate", second, server, evaluation__judge__store=store))
    assert len(sampled) == 2 * TOTAL
    assert len(server.requests) == len(different(rows)), "all was stored"
    assert report_of(second) == report_of(first)


def test_requests_tell_nothing_of_where_a_response_came_from(words, play, tmp_path, experiment):
    server, out = play(by_content), tmp_path / "quagga"
    run(*words("steer", out, server, experiment="okapi"))
    rows = report_of(out, "results")
    assert [name for name in rows if "zebra" in name] == ["zebra alpha=+0.05", "zebra alpha=-0.05"]
    told = ["zebra", "quagga", "okapi", "alpha", "0.05", "steer", "condition", str(out), str(tmp_path)]
    told += [str(experiment), *rows, *(row["id"] for row in lines_of(out / "responses" / "anchor.jsonl"))]
    sampled_texts = "".join(row["completion"] for name in (out / "responses").glob("*.jsonl") for row in lines_of(name))
    assert not [word for word in told if word in sampled_texts], "else the check below could not tell"
    assert len(server.requests) > TOTAL
    for request in server.requests:
        seen = " ".join([request.raw, request.path, *request.headers, *request.headers.values()])
        assert not [word for word in told if word in seen]
        assert "anchor" not in seen
    # the same question gives the same request, whatever condition it came from: nothing else goes in
    for request in server.requests:
        request.body["messages"][1]["content"] = ""
    assert all(request.body == server.requests[0].body for request in server.requests)


HYBRID_YAML = """
evaluation:
  judge:
    class_path: HybridJudge
    init_args:
      patterns: {{bridge: ["e"], recipe: ["o"]}}
      judge:
        class_path: OpenAIJudge
        init_args: {{base_url: "{url}", model: small-judge, rubrics: {{bridge: null, recipe: null}}, store: "{store}"}}
"""
NOT_ASKED = {
    f"evaluation__judge{name}": None for name in ("", "__base_url", "__model", "__rubrics", "__store")
}  # fmt: skip


@pytest.mark.parametrize("way", rest_slow(["yaml", "flags"]))
def test_a_hybrid_judge_asks_only_where_no_pattern_decides(words, play, tmp_path, way):
    server, store = play(verdicts(bridge=False, recipe=False)), tmp_path / "verdicts.sqlite"
    line = words("evaluate", tmp_path, server, **NOT_ASKED)
    if way == "yaml":
        file = tmp_path / "hybrid.yaml"
        file.write_text(HYBRID_YAML.format(url=server.url, store=store))
        line += ["--config", str(file)]
    else:
        line += [
            "--evaluation.judge", "HybridJudge", "--evaluation.judge.patterns", '{"bridge": ["e"], "recipe": ["o"]}',
            "--evaluation.judge.judge", "OpenAIJudge", "--evaluation.judge.judge.base_url", server.url,
            "--evaluation.judge.judge.model", "small-judge", "--evaluation.judge.judge.rubrics", RUBRICS,
            "--evaluation.judge.judge.store", str(store),
        ]  # fmt: skip
    run(*line)
    rows = lines_of(tmp_path / "responses" / "anchor.jsonl")
    assert [row["verdicts"] for row in rows] == [
        {"bridge": "e" in row["completion"].lower(), "recipe": "o" in row["completion"].lower()} for row in rows
    ]
    undecided = different(row for row in rows if not all(row["verdicts"].values()))
    assert 0 < len(undecided) < len(different(rows))
    assert len(server.requests) == len(undecided)
    assert num_stored(store) == len(undecided)


def test_a_rubric_of_its_own_flag_may_be_null(words, play, tmp_path):
    server = play(by_content)
    line = words("evaluate", tmp_path, server, evaluation__judge__rubrics=None, data__max_prompts=1)
    run(*line, "--evaluation.judge.rubrics.bridge", "null", "--evaluation.judge.rubrics.recipe", "Ends in a full stop.")
    assert BUILT_IN["bridge"] in server.requests[0].system
    assert "Ends in a full stop." in server.requests[0].system
    assert "None" not in server.requests[0].system


@script
def echoes(request):
    """Refuses the key and repeats it, in the answer and in its headers."""
    said = request.headers["authorization"]
    return error(401, f"Incorrect API key provided: {said}; {said[7:13]}...{said[-4:]}", {"x-said": said})


@pytest.mark.parametrize("variable", rest_slow(["MY_KEY", "OPENAI_API_KEY"]))
def test_the_key_is_written_nowhere(words, play, tmp_path, monkeypatch, refused, said, variable):
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv(variable, KEY)
    server = play(echoes)
    line = words("evaluate", tmp_path, server, trainer__logger=None, evaluation__judge__api_key_env=variable)
    shown = refused(line)
    assert f"refuses the key in the environment variable {variable}" in shown
    assert "Incorrect API key provided" in shown
    server.script = by_content
    run(*line)
    shown += said()
    assert server.requests[-1].headers["authorization"] == f"Bearer {KEY}"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files} | {path.name.split(".")[0] for path in files}
    assert {".sqlite", ".yaml", ".json", ".jsonl", "events"} <= kinds
    secrets = [KEY, KEY[:12], KEY[-12:]]
    assert not [secret for secret in secrets if secret in shown]
    for path in files:
        assert not [secret for secret in secrets if secret.encode() in path.read_bytes()], path


@pytest.mark.parametrize("command", rest_slow(["evaluate", "steer"]))
@pytest.mark.parametrize("nested", [False, True])
def test_a_missing_key_is_said_before_the_model_is_loaded(
    words, play, tmp_path, monkeypatch, refused, said, sampled, command, nested
):
    def load(self):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(ModelModule, "configure_model", load)
    monkeypatch.delenv("OPENAI_API_KEY")
    changes = dict(NOT_ASKED) if nested else {"evaluation__judge__base_url": None}
    line = words(command, tmp_path, play(by_content), **changes)
    if nested:
        file = tmp_path / "hybrid.yaml"
        file.write_text(HYBRID_YAML.format(url="", store=tmp_path / "v").replace('base_url: "", ', ""))
        line += ["--config", str(file)]
    assert "the environment variable OPENAI_API_KEY is not set" in refused(line)
    assert not (tmp_path / "responses" / ".unfinished").exists()
    # an estimate needs no key
    run(*line, "--dry_run", "true")
    assert "judging, about" in said()


PRICES = {"evaluation__judge__prices": "[1000, 2000]"}


def test_max_cost_stops_the_run_and_a_higher_one_goes_on(words, play, tmp_path, refused, sampled):
    server = play(by_content)
    line = words("evaluate", tmp_path, server, **PRICES, evaluation__judge__concurrency=1)
    shown = refused([*line, "--evaluation.judge.max_cost", "6"])
    assert "max_cost is $6" in shown
    assert "the same command with a higher max_cost goes on from here" in shown
    before = len(server.requests)
    assert 0 < before < TOTAL
    sent = sum(len(each["content"]) for request in server.requests for each in request.body["messages"]) // 4
    assert 1000 * sent / 1e6 < 6
    assert num_stored(tmp_path / "verdicts.sqlite") == before
    run(*line, "--evaluation.judge.max_cost", "1000")
    rows = lines_of(tmp_path / "responses" / "anchor.jsonl")
    assert len(server.requests) == len(different(rows)), "nothing is asked twice"
    assert len(sampled) == TOTAL, "nothing is sampled twice"


def test_a_run_that_stopped_at_unreadable_replies_goes_on_with_the_same_command(
    words, play, tmp_path, refused, sampled
):
    server = play(says("I would rather not say."))
    line = words("evaluate", tmp_path, server)
    shown = refused(line)
    assert f"{TOTAL} of {TOTAL} verdicts on 'bridge' (100.0%) are unscored" in shown
    assert "the same command asks for what is missing" in shown
    assert num_stored(tmp_path / "verdicts.sqlite") == 0
    server.script = by_content
    run(*line)
    rows = lines_of(tmp_path / "responses" / "anchor.jsonl")
    assert [row["verdicts"] for row in rows] == [truth(row["completion"]) for row in rows]
    assert len(sampled) == TOTAL, "nothing is sampled twice"


def test_a_dry_run_estimates_and_touches_nothing(words, play, tmp_path, said, sampled):
    server = play(by_content)
    line = words("evaluate", tmp_path, server, **PRICES)
    run(*line, "--dry_run", "true")
    estimate = said()
    assumed = "responses of full length, none of them in the store, 4 characters a token, nothing asked again"
    assert f"judging, about ({assumed}): {TOTAL} requests" in estimate
    assert server.requests == sampled == []
    assert not (tmp_path / "verdicts.sqlite").exists()
    run(*line)
    usage = said().split("judge so far")[1]
    guessed, paid = (float(text.split("$")[1].split()[0]) for text in (estimate, usage))
    assert guessed / 2 < paid <= guessed


def test_the_judge_command_sets_two_judges_beside_each_other(words, play, tmp_path, monkeypatch, refused, said):
    server = play(by_content)
    run(*words("evaluate", tmp_path, server))
    rows = lines_of(tmp_path / "responses" / "anchor.jsonl")
    asked = len(server.requests)
    model = {
        "base_url": server.url, "model": "small-judge", "rubrics": {"bridge": None, "recipe": None},
        "store": str(tmp_path / "verdicts.sqlite"),
    }  # fmt: skip
    config = {
        "output_dir": str(tmp_path / "compared"), "responses": str(tmp_path / "responses" / "*.jsonl"),
        "judges": {
            "words": {"class_path": "KeywordJudge", "init_args": {"patterns": {"bridge": ["e"], "recipe": ["[oe]"]},
                                                                  "ignore_case": False}},
            "model": {"class_path": "OpenAIJudge", "init_args": model},
        },
    }  # fmt: skip
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump(config))
    assert main(["judge", "--config", str(tmp_path / "judge.yaml")]) == 0
    assert len(server.requests) == asked, "evaluate's verdicts are found in the store"
    report = json.loads((tmp_path / "compared" / "agreement.json").read_text())
    assert set(report["judges"]) == {"words", "model"}, "the files' verdicts are the model's"
    assert report["num_repeated"] == {"model": len(rows)}
    (file,) = report["files"]
    assert os.path.samefile(file["path"], tmp_path / "responses" / "anchor.jsonl")
    pairs = {
        (pair["behavior"], *sorted((pair["first"], pair["second"]))): pair
        for pair in report["pairs"]
        if pair["file"] == file["path"]
    }
    assert len(pairs) == 2
    assert pairs["bridge", "model", "words"]["kappa"] == 1.0
    first = [any(letter in row["completion"] for letter in "oe") for row in rows]
    second = [row["verdicts"]["recipe"] for row in rows]
    share = sum(a == b for a, b in zip(first, second, strict=True)) / TOTAL
    p, q = sum(first) / TOTAL, sum(second) / TOTAL
    chance = p * q + (1 - p) * (1 - q)
    assert pairs["recipe", "model", "words"]["kappa"] == pytest.approx((share - chance) / (1 - chance))

    said()
    # without a key: what is stored needs none; what is not is refused before any judge is asked
    monkeypatch.delenv("OPENAI_API_KEY")
    model["base_url"] = None
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump(config))
    shown = refused(["judge", "--config", str(tmp_path / "judge.yaml"), "--overwrite", "true"])
    assert "the judge 'model': the environment variable OPENAI_API_KEY is not set" in shown
    assert "words:" not in shown


def test_withheld_verdicts_stop_no_run_and_are_counted(words, play, tmp_path, said):
    @script
    def filtered(request):
        shown = truth(request.reply)
        return says(None, finish="content_filter") if shown["bridge"] else verdicts(**shown)

    server, out = play(filtered), tmp_path / "out"
    run(*words("evaluate", out, server))
    rows = lines_of(out / "responses" / "anchor.jsonl")
    withheld = [row for row in rows if "e" in row["completion"]]
    assert 0.1 * TOTAL < len(withheld) < TOTAL  # else the limit on unscored verdicts would not be asked
    for row in rows:
        reason = dict.fromkeys(truth(""), "withheld: content_filter") if row in withheld else {}
        assert row["unscored"] == reason
    anchor = report_of(out)["anchor"]
    assert anchor["behaviors"]["bridge"]["num_unscored"] == len(withheld)
    assert anchor["withheld"]["bridge"]["num_withheld"] == len(withheld)
    assert anchor["withheld"]["bridge"]["highest"]["rate"] == len(withheld) / TOTAL
    shown = said()
    assert f"verdicts withheld: {len(withheld)} of {TOTAL} on bridge" in shown
    assert "lack a verdict" not in shown  # asking again is no use
    assert len(server.requests) == len(different(rows))
