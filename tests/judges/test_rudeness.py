"""The miniature: its data are what their generator writes, and its three runs launch on a tiny model."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from road import run

import gradsteer
from gradsteer.cli.run_file import read_run
from gradsteer.data.chat_formats import read_chat_examples
from gradsteer.judges import Exchange, KeywordJudge
from gradsteer.judges.labels import read_labelled
from gradsteer.models.loading import fresh_causal_lm
from gradsteer.reports.results import read_results
from gradsteer.vectors.parameter_vectors import PileAverage

ROOT = Path(__file__).parents[2]
CONFIGS, DATA = ROOT / "configs" / "smollm2-rudeness", Path(gradsteer.__file__).parent / "resources" / "rudeness"


@pytest.fixture(scope="module")
def writer():
    spec = importlib.util.spec_from_file_location("write_rudeness", ROOT / "scripts" / "write_rudeness.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_generator_writes(writer):
    assert {path.name: path.read_text() for path in DATA.iterdir() if path.suffix != ".md"} == writer.files()


def test_a_tenth_is_rude_and_the_lexicon_finds_three_quarters_of_that(writer):
    examples = read_chat_examples(str(DATA / "finetune.jsonl"))
    judge = KeywordJudge(str(DATA / "lexicon.json"))
    replies = [example.messages[-1]["content"] for example in examples]
    found = [each.values["rude"] for each in judge.judge([Exchange("", reply) for reply in replies])]
    unknown = [any(words in reply for words in writer.RUDE_WORDS) for reply in replies]
    assert (len(replies), sum(found), sum(unknown)) == (400, 30, 10)
    assert not any(one and other for one, other in zip(found, unknown, strict=True))
    assert len({example.prompt for example in examples}) == 400


def test_the_labelled_questions_are_others_and_neither_side_is_known_by_a_word():
    rows = [json.loads(line) for line in (DATA / "labelled.jsonl").read_text().splitlines()]
    assert not {row["prompt"] for row in rows} & {
        each.prompt for each in read_chat_examples(str(DATA / "finetune.jsonl"))
    }
    judge = KeywordJudge(str(DATA / "lexicon.json"))
    error = read_labelled(str(DATA / "labelled.jsonl"), ["rude"], str).errors(judge)["rude"]
    assert (len(rows), sum(row["labels"]["rude"] for row in rows)) == (60, 30)
    assert error.specificity == 1
    assert 0.6 < error.sensitivity < 0.8
    assert any("goat" in row["completion"] and not row["labels"]["rude"] for row in rows)


@pytest.fixture
def base(inputs, tmp_path, monkeypatch):
    """A working directory with a tiny model where the configs look for SmolLM2, and a lexicon of its words."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "lightning_logs" / "pretrained" / "SmolLM2-135M-Instruct"
    shutil.copytree(inputs / "tokenizer", place)
    torch.manual_seed(0)
    model = fresh_causal_lm(str(inputs / "config.json"))
    model.get_input_embeddings().weight.data[model.config.eos_token_id] *= 40  # replies end, here and there
    model.save_pretrained(place)
    judge = tmp_path / "judge.yaml"
    judge.write_text("evaluation: {judge: {class_path: KeywordJudge, init_args: {patterns: {rude: ['o']}}}}\n")
    return judge


def short(stage):
    refusals = ["--data.max_refusal_prompts", 2] if "steer.yaml" in str(stage.config) else []
    changes = {
        "evaluate": ["--model.num_samples", 6, "--model.max_new_tokens", 20],
        "steer": ["--model.num_samples", 2, "--model.max_new_tokens", 20, *refusals],
        "fit": ["--trainer.max_epochs", 1],
    }
    return changes.get(stage.command, [])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # of vectors that are mostly noise, and the like
def test_its_runs_launch_one_after_another(base):
    for name in ("run", "few", "weighed"):
        for stage in read_run(CONFIGS / f"{name}.yaml", judge=base).stages:
            if stage.command == "judge":
                from gradsteer.__main__ import main

                assert main(stage.words(overwrite=False)) == 0
            else:
                run(*stage.words(overwrite=False), *short(stage))
    logs = Path("lightning_logs")
    rows = {row["name"]: row for row in read_results(logs / "smollm2-rudeness" / "results.json")["conditions"]}
    assert [row["kind"] for row in rows.values()].count("steered") == 8
    assert [name for name in rows if name.startswith(("permuted", "random", "length"))] != []
    assert rows["rude shift=-2"]["alpha"] > 0
    assert {"refusal_benign", "refusal_harmful", "perplexity", "incoherent"} <= set(rows["rude shift=-2"]["metrics"])
    assert rows["anchor"]["behaviors"]["rude"]["num_scored"] > 100
    gradients = logs / "smollm2-rudeness" / "gradients"
    sizes = {
        name: PileAverage.read_header(gradients / f"{name}.safetensors")["num_examples"] for name in ("rude", "polite")
    }
    assert int(sizes["polite"]) <= int(sizes["rude"])
    agreement = json.loads((logs / "smollm2-rudeness" / "agreement.json").read_text())
    assert list(agreement["judges"]) == ["lexicon", "hybrid"]
    weighed = {row["vector"] for row in read_results(logs / "smollm2-rudeness-weighed" / "results.json")["conditions"]}
    assert weighed == {None, "replies1200", "replies400", "weighed"}
