"""What a model's generation_config would serve, against what is sampled: said in the results, the card, the export."""

import json
import re
import shutil

import pytest
from anchors import anchor
from anchors import export as exported
from road import PATTERNS, run
from transformers import GenerationConfig

from gradsteer.generation.sampling import SamplingConfig
from gradsteer.generation.served import served_otherwise

SET = {"top_k": 20, "repetition_penalty": 1.1, "min_p": 0.05, "do_sample": True, "temperature": 0.7}


def served(sampling=None, stops=(), **settings):
    return served_otherwise(GenerationConfig(**settings), sampling, stops)


@pytest.mark.parametrize(
    ("settings", "sampling", "found"),
    [
        ({}, {}, []),
        ({"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}, {}, []),
        ({"do_sample": True, "temperature": 0.7}, {"temperature": 0.7}, []),
        ({"do_sample": True, "temperature": 0.7}, {}, ["temperature 0.7 (here 1.0)"]),
        ({"top_p": 0.9, "do_sample": True}, {"top_p": 0.95}, ["top_p 0.9 (here 0.95)"]),
        ({"top_k": 20, "no_repeat_ngram_size": 3}, {}, ["top_k 20 (here off)", "no_repeat_ngram_size 3 (here off)"]),
        ({"max_new_tokens": 9}, {}, ["max_new_tokens 9 (here 8)"]),
        ({"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.0}, []),  # greedy both
        ({"do_sample": True}, {"temperature": 0.0}, ["do_sample True (here False)"]),
    ],
)  # fmt: skip
def test_each_setting_that_differs_is_named(settings, sampling, found):
    assert sorted(served(SamplingConfig(max_new_tokens=8, **sampling), **settings)) == sorted(found)


def test_stop_tokens_that_it_lacks_and_no_config():
    assert served(stops=[2, 7], eos_token_id=2) == ["no stop at token 7 (here it ends a response)"]
    assert served(stops=[2, 7], eos_token_id=[7, 2]) == served_otherwise(None) == []
    assert served(max_new_tokens=9) == []  # an export does not know how long responses were


def test_card_and_export_say_it(tmp_path, capsys):
    path, file = anchor(tmp_path)
    assert "generation_config" not in (exported(tmp_path / "plain", path, file, "model") and capsys.readouterr().out)
    assert "How it is served" not in (tmp_path / "plain" / "README.md").read_text()
    config = path / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | SET))
    report = exported(tmp_path / "to", path, file, "model")
    assert "top_k 20 (here off)" in report["generation_config"]
    assert "repetition_penalty 1.1 (here off)" in capsys.readouterr().out
    assert re.search(r"How it is served.*min_p 0.05", (tmp_path / "to" / "README.md").read_text(), re.DOTALL)
    assert json.loads((tmp_path / "to" / "generation_config.json").read_text())["top_k"] == 20


def test_results_and_screen_say_it(tmp_path, experiment, inputs, capsys):
    shutil.copytree(experiment / "anchor", tmp_path / "model")
    words = ("--model.model_name_or_path", tmp_path / "model", "--data.prompts", inputs / "prompts.jsonl")
    words += ("--evaluation.judge", "KeywordJudge", "--evaluation.judge.patterns", PATTERNS, "--output_dir", tmp_path)
    words += ("--model.max_new_tokens", 4, "--data.max_prompts", 2)
    run("evaluate", "--name", "plain", *words)
    assert "generation_config" not in capsys.readouterr().out
    assert json.loads((tmp_path / "evaluations" / "plain.json").read_text())["note"] is None
    config = tmp_path / "model" / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | SET))
    run("evaluate", "--name", "set", *words, "--report.note", "Mine.")
    said = "The model's generation_config would serve it otherwise: "
    assert said in " ".join(capsys.readouterr().out.split())
    note = json.loads((tmp_path / "evaluations" / "set.json").read_text())["note"]
    assert note.startswith(f"Mine.\n{said}")
    assert "temperature 0.7 (here 1.0)" in note
