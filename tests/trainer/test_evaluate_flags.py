"""The flags of evaluate and steer through the real command line: each does what it says, and nothing else."""

import json
import re
import warnings

import numpy as np
import pytest
import torch
from road import PATTERNS, run, write_lines
from torch.nn import functional

from gradsteer.data.chat import encode_chat
from gradsteer.models.loading import load_causal_lm, load_tokenizer
from gradsteer.reports.results import read_results

IDENTITY = ("id", "sample", "prompt", "prompt_token_ids", "token_ids", "completion", "finish_reason", "verdicts")


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def evaluated(experiment, inputs, tmp_path_factory):
    """Runs evaluate with some flags changed; gives the responses and the one row of the report."""

    def evaluate(file="anchor", **changes):
        out = tmp_path_factory.mktemp("evaluated")
        flags = {
            "--output_dir": out, "--model.model_name_or_path": experiment / "anchor", "--trainer.logger": "false",
            "--data.prompts": inputs / "prompts.jsonl", "--evaluation.judge": "KeywordJudge",
            "--evaluation.judge.patterns": PATTERNS, "--model.num_samples": 2, "--model.max_new_tokens": 6,
        } | {f"--{key.replace('__', '.')}": value for key, value in changes.items()}  # fmt: skip
        run("evaluate", *(word for flag in flags.items() for word in flag))
        report = read_results(out / "evaluations" / f"{file}.json")
        return lines_of(out / "responses" / f"{file}.jsonl"), report

    return evaluate


@pytest.fixture(scope="module")
def plain(evaluated):
    rows, _ = evaluated()
    assert len(rows) == 10
    return rows


@pytest.fixture(scope="module")
def greedy(evaluated):
    rows, _ = evaluated(model__temperature=0)
    return rows


def drawn(rows):
    return [{key: row[key] for key in IDENTITY} for row in rows]


def test_num_samples_adds_samples_and_keeps_the_others(evaluated, plain):
    rows, _ = evaluated(model__num_samples=3)
    assert len(rows) == 15
    assert drawn(row for row in rows if row["sample"] < 2) == drawn(plain)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_responses_do_not_depend_on_the_batch(evaluated, plain, batch_size):
    rows, _ = evaluated(data__batch_size=batch_size)
    assert drawn(rows) == drawn(plain)


def test_temperature_zero_is_greedy(plain, greedy):
    assert all(
        first["token_ids"] == second["token_ids"] for first, second in zip(greedy[::2], greedy[1::2], strict=True)
    )
    assert drawn(greedy) != drawn(plain)


def test_a_small_top_p_is_greedy(evaluated, greedy):
    rows, _ = evaluated(model__top_p=1e-6)
    assert drawn(rows) == drawn(greedy)


def test_max_new_tokens_cuts(evaluated, plain):
    rows, _ = evaluated(model__max_new_tokens=3)
    assert [row["token_ids"] for row in rows] == [row["token_ids"][:3] for row in plain]


def test_another_sampling_seed_gives_other_responses(evaluated, plain):
    rows, _ = evaluated(model__sampling_seed=1)
    assert {row["seed"] for row in rows} == {1}
    assert sum(ours["token_ids"] != theirs["token_ids"] for ours, theirs in zip(rows, plain, strict=True)) > 5


def test_the_system_prompt_is_read_by_the_model(evaluated, experiment, plain):
    rows, _ = evaluated(data__system_prompt="bakes bread")
    tokenizer = load_tokenizer(str(experiment / "anchor"))
    assert "<|im_start|>system\nbakes bread<|im_end|>" in tokenizer.decode(rows[0]["prompt_token_ids"])
    assert rows[0]["prompt"] == "system: bakes bread\nuser: the?"
    assert rows[0]["token_ids"] != plain[0]["token_ids"]


def test_max_prompts_takes_the_first(evaluated, plain):
    rows, _ = evaluated(data__max_prompts=2)
    assert drawn(rows) == drawn(plain[:4])


def test_columns_name_a_sets_own_columns(evaluated, plain, inputs, tmp_path):
    prompts = [{"question": row["prompt"], "key": row["id"]} for row in lines_of(inputs / "prompts.jsonl")]
    file = write_lines(tmp_path / "questions.jsonl", prompts)
    rows, _ = evaluated(data__prompts=file, data__columns='{"prompt": "question", "id": "key"}')
    assert drawn(rows) == drawn(plain)


def heldout_perplexity(directory, file):
    """exp of the mean token loss, one example at a time."""
    model, tokenizer = load_causal_lm(str(directory)), load_tokenizer(str(directory))
    total, count = 0.0, 0
    for chat in lines_of(file):
        example = encode_chat(tokenizer, chat["messages"], loss_mask="assistant")
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1].double()
        total += float(functional.cross_entropy(logits, torch.tensor(example.labels[1:]), reduction="sum"))
        count += example.num_target_tokens
    return np.exp(total / count)


def test_heldout_text_gives_the_perplexity_and_dtype_changes_it(evaluated, experiment, inputs):
    few = {"data__max_prompts": 1, "model__max_new_tokens": 1}
    expected = heldout_perplexity(experiment / "anchor", inputs / "chat.jsonl")
    perplexities = [
        evaluated(**few, **flags)[1]["conditions"][0]["metrics"]["perplexity"]
        for flags in (
            {}, {"evaluation__heldout": inputs / "chat.jsonl"},
            {"evaluation__heldout": inputs / "chat.jsonl", "model__dtype": "bfloat16"},
        )
    ]  # fmt: skip
    assert perplexities[0] is None
    assert perplexities[1] == pytest.approx(expected, rel=1e-5)
    assert 1e-5 < abs(perplexities[2] / expected - 1) < 0.1


def test_name_and_note_reach_the_files(evaluated, capsys):
    rows, report = evaluated("base-small", name="base-small", report__note="[a]: two prompts only", data__max_prompts=1)
    assert {row["condition"] for row in rows} == {"base-small"}
    assert report["conditions"][0] | {"kind": "base", "name": "base-small", "alpha": None} == report["conditions"][0]
    assert report["note"] == "[a]: two prompts only"
    assert "[a]: two prompts only" in capsys.readouterr().out


@pytest.fixture(scope="module")
def steered_runs(experiment, inputs, tmp_path_factory):
    """Runs steer with some flags changed; gives the report's rows."""

    def steer(**changes):
        out = tmp_path_factory.mktemp("steered")
        flags = {
            "--output_dir": out, "--model.model_name_or_path": experiment / "anchor", "--trainer.logger": "false",
            "--data.prompts": inputs / "prompts.jsonl", "--evaluation.judge": "KeywordJudge",
            "--evaluation.judge.patterns": PATTERNS, "--data.max_prompts": 1, "--model.max_new_tokens": 1,
            "--steering.vectors.a": experiment / "vectors" / "a.safetensors", "--steering.alphas": "[0.05]",
            "--evaluation.heldout": inputs / "chat.jsonl", "--steering.seed_faithful": "true",
            "--steering.anchor_resamples": 0,
        } | {f"--{key.replace('__', '.')}": value for key, value in changes.items()}  # fmt: skip
        run("steer", *(word for flag in flags.items() if flag[1] is not None for word in flag))
        return {row["name"]: row for row in read_results(out / "results.json")["conditions"]}

    return steer


def test_signs_and_controls_of_steer(steered_runs):
    """A control's direction belongs to the seed plus its number, so one seed's second is the next seed's first."""
    many = steered_runs(steering__random_controls=2, steering__sign_controls=1)
    first, second, signs = (f"{name} of a alpha=+0.05" for name in ("random-0", "random-1", "signs-0"))
    assert list(many) == ["anchor", "a alpha=+0.05", "a alpha=-0.05", first, second, signs]
    control, steered = many[signs], many["a alpha=+0.05"]
    assert control["kind"] == "control"
    assert control["relative_norm"] == pytest.approx(steered["relative_norm"])
    assert control["metrics"]["perplexity"] != steered["metrics"]["perplexity"]
    one_sign = steered_runs(
        steering__both_signs="false", steering__alphas="[-0.05, 0.1]", steering__random_controls=0,
        evaluation__heldout=None,
    )  # fmt: skip
    assert list(one_sign) == ["anchor", "a alpha=-0.05", "a alpha=+0.1"]
    assert all(row["metrics"]["perplexity"] is None for row in one_sign.values())
    both = steered_runs(steering__control_seed=1, steering__controls_both_signs="true")
    assert list(both) == ["anchor", "a alpha=+0.05", "a alpha=-0.05", first, first.replace("+", "-")]
    seeded = both[first]["metrics"]["perplexity"]
    assert seeded == many[second]["metrics"]["perplexity"]
    assert seeded != many[first]["metrics"]["perplexity"]
    # one direction, there and back
    assert both[first.replace("+", "-")]["relative_norm"] == pytest.approx(-both[first]["relative_norm"])


def test_bfloat16_weights_lose_part_of_the_step_and_say_so(steered_runs):
    said = {"steering__alphas": "[0.002]", "steering__allow_other_model": "true", "steering__min_retained": 0.1}
    exact = steered_runs(**said, model__dtype="float32")["a alpha=+0.002"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        forced = {"model__dtype": "bfloat16", "steering__allow_imprecise": "true"}
        rounded = steered_runs(**said, **forced)["a alpha=+0.002"]
    found = [str(each.message) for each in caught if "the weights take" in str(each.message)]
    assert re.match(r"condition 'a alpha=\+0.002': the weights take 9\d\.\d% of the step, in \d\.\d% of", found[0])
    assert exact["step_error"] < 1e-3
    assert rounded["step_error"] > 0.1
