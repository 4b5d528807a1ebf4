"""The tiny anchor with many judged responses, and calibrated vectors: what forecasts and doses stand on."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from road import QUIET, WORDS, made_once, run, write_lines

from gradsteer.__main__ import main

SAMPLING = ["--model.max_new_tokens", 3, "--data.batch_size", 1000]
PATTERNS = json.dumps({"a": [r"[^\x00-\x7f]"], "b": [" "]})  # both steerable: what a tiny model's single tokens decide
# of three tokens of a tiny model, many are empty or odd
JUDGE = ["--evaluation.judge", "KeywordJudge", "--evaluation.judge.patterns", PATTERNS, "--evaluation.count_degenerate"]
JUDGE += ["true"]
QUESTIONS = [f"{first} {second}?" for first in WORDS[:8] for second in WORDS[8:13]]
FRESH = 400  # responses that forecasts are made from


@dataclass(frozen=True)
class Judged:
    """Where everything lies.

    Attributes:
        anchor: the model.
        base: the base model.
        directory: output directory of evaluate and attribute.
        responses: the anchor's responses to prompts that the piles do not hold, at temperature 1.
        prompts: these prompts.
    """

    anchor: Path
    base: Path
    directory: Path
    responses: Path
    prompts: Path

    def vector(self, name):
        return self.directory / "vectors" / f"{name}.safetensors"


@pytest.fixture(scope="session")
def judged(experiment, tmp_path_factory):
    """evaluate twice (for the piles, and for the forecasts) and attribute, which calibrates two vectors."""
    out = made_once(tmp_path_factory, "judged", lambda out: make_judged(experiment, out))
    return Judged(
        experiment / "anchor", experiment / "base", out, out / "responses" / "fresh.jsonl", out / "fresh.jsonl"
    )


def make_judged(experiment, out):
    out.mkdir()
    model = ["--model.model_name_or_path", experiment / "anchor", "--output_dir", out, "--trainer.logger", "false"]
    for name, words, number in (("piles", QUESTIONS[:20], 40), ("fresh", QUESTIONS[20:], FRESH // 20)):
        rows = [{"id": f"{name}-{index}", "prompt": text} for index, text in enumerate(words)]
        write_lines(out / f"{name}.jsonl", rows)
        run(
            "evaluate", *model, "--name", name, "--data.prompts", out / f"{name}.jsonl", *SAMPLING, *JUDGE,
            "--model.num_samples", number,
        )  # fmt: skip
    responses = str(out / "responses" / "piles.jsonl")
    piles = {
        f"{name}-{value}": {"responses": responses, "where": {name: value == "yes"}}
        for name in "ab"
        for value in ("yes", "no")
    }
    run(
        "attribute", *model, "--data.piles", json.dumps(piles), "--vectors.a", "[a-yes, a-no]", "--vectors.b",
        "[b-yes, b-no]", "--data.permutations", 1, "--graddiff.steps", "[2]", "--graddiff.alpha", 0.05,
        "--model.slope_responses", 1000,
    )  # fmt: skip


@pytest.fixture(scope="session")
def steps(judged, tmp_path_factory):
    """The responses of a steer: of the anchor, of steps both ways, of a transformed step and of a control."""
    return made_once(tmp_path_factory, "steps", lambda out: make_steps(judged, out)) / "responses"


def make_steps(judged, out):
    run(
        *steer_words(
            judged, out, steering__alphas="[0.4]", steering__transforms='[[], [{"top_k": {"percent": 50}}]]',
            steering__random_controls=1, data__max_prompts=20, model__num_samples=10, model__temperature=1.0,
        )
    )  # fmt: skip


def words_of(flags, changes):
    """Words of a command line: flags with some changed (`__` for a dot in a name; None leaves one out)."""
    merged = flags | {f"--{key.replace('__', '.')}": value for key, value in changes.items()}
    return [str(word) for flag in merged.items() if flag[1] is not None for word in flag]


def forecast_words(judged, out, **changes):
    """A forecast of vector a at two alphas."""
    flags = {
        "--output_dir": out, "--model.model_name_or_path": judged.anchor, "--trainer.logger": "false",
        "--forecasting.responses": judged.responses, "--forecasting.draws": 100,
        "--steering.vectors.a": judged.vector("a"), "--steering.alphas": "[0.4]", "--steering.random_controls": 0,
        "--steering.anchor_resamples": 0,
    }  # fmt: skip
    return ["forecast", *words_of(flags, changes)]


def steer_words(judged, out, **changes):
    """A steer of vector a at two alphas, with few responses."""
    flags = {
        "--output_dir": out, "--model.model_name_or_path": judged.anchor, "--trainer.logger": "false",
        "--data.prompts": judged.prompts, "--data.max_prompts": 2, "--model.max_new_tokens": 3,
        "--model.sampling_seed": 1,
        "--evaluation.judge": "KeywordJudge", "--evaluation.judge.patterns": PATTERNS,
        "--evaluation.count_degenerate": "true",
        "--steering.vectors.a": judged.vector("a"), "--steering.alphas": "[0.4]", "--steering.random_controls": 0,
        "--steering.anchor_resamples": 0,
    }  # fmt: skip
    return ["steer", *words_of(flags, changes)]


def rows_of(path):
    """Name -> row of a report."""
    return {row["name"]: row for row in json.loads(path.read_text())["conditions"]}


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def message_of(words, capsys):
    """What a refused command says."""
    assert main([*words, *QUIET]) == 2
    return capsys.readouterr().err
