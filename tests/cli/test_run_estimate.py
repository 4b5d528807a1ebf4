"""What a run would take on paper: counted by hand on a tiny model's config."""

import shutil

import pytest
import yaml
from road import write_lines
from transformers import AutoModelForCausalLM

from gradsteer.cli.paper import TURN_TOKENS, Paper
from gradsteer.cli.run_estimate import estimates, lines
from gradsteer.cli.run_file import read_run
from gradsteer.cli.runner import main
from gradsteer.models.loading import fresh_causal_lm
from gradsteer.models.on_paper import A100, MFU, activation_bytes


@pytest.fixture
def base(inputs, tmp_path):
    """A tiny model's directory."""
    shutil.copytree(inputs / "tokenizer", tmp_path / "base")
    fresh_causal_lm(str(inputs / "config.json")).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def paper(base):
    return Paper(str(base))


def fit_config(tmp_path, **changes):
    rows = [{"prompt": "a" * 40, "completion": "b" * 4 * length} for length in (2, 6, 400)]
    data = {"train": str(write_lines(tmp_path / "chat.jsonl", rows)), "train_split": "train", "columns": None,
            "max_length": 64, "batch_size": 2}  # fmt: skip
    trainer = {"max_epochs": 3, "max_steps": -1, "precision": "32-true"} | changes
    return {"data": data, "model": {"gradient_checkpointing": False, "dtype": "float32"}, "trainer": trainer}


def test_a_finetune_is_six_flop_a_weight_and_token_and_sixteen_bytes_a_weight(paper, base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    assert paper.size == sum(parameter.numel() for parameter in model.parameters())
    each = [2 * TURN_TOKENS + 12, 2 * TURN_TOKENS + 16, 64]
    config = fit_config(tmp_path)
    tokens, flops, seconds, memory = paper.fit(config)
    assert tokens == 3 * sum(each)
    assert flops == 6 * paper.size * tokens
    assert seconds == pytest.approx(flops / (MFU * 19.5e12))
    batch = 2 * 64
    kept = activation_bytes(model.config, 4, checkpointing=False) + 12 * model.config.vocab_size
    assert memory == pytest.approx(16 * paper.size + batch * kept)
    config["model"]["gradient_checkpointing"] = True
    assert paper.fit(config)[1] == 8 * paper.size * tokens
    assert paper.fit(fit_config(tmp_path, max_steps=1))[0] == sum(each) / 2  # of two batches an epoch
    assert paper.fit(fit_config(tmp_path, precision="bf16-mixed"))[2] == pytest.approx(flops / (MFU * 312e12))


def test_sampling_reads_the_weights_for_every_token_or_computes_whichever_is_longer(paper):
    tokens, flops, seconds, _ = paper.sampling(100, 10.0, 20, "float32")
    assert (tokens, flops) == (3000, 2 * paper.size * 3000)
    assert seconds == pytest.approx(max(flops / (MFU * 19.5e12), 20 * 4 * paper.size / A100.bandwidth))


def test_a_base_that_is_made_by_the_run_has_no_estimate(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("num_samples: 40\n")
    run = {"experiment": "x", "base_model": "{output_dir}/base",
           "stages": [{"name": "corpus", "command": "corpus", "config": "c.yaml"}]}  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.dump(run))
    assert main(["--config", str(tmp_path / "run.yaml"), "--dry_run", "true"]) == 0
    assert "no estimate: an estimate needs a base model whose config is there" in capsys.readouterr().out


def test_stages_add_up_and_a_ceiling_that_is_too_low_is_said(base, inputs, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    judge = {"class_path": "OpenAIJudge", "init_args": {"rubrics": {"harmful": None}, "max_cost": 1e-6, "store": None}}
    stage = {"model": {"model_name_or_path": "{output_dir}/anchor", "num_samples": 3, "max_new_tokens": 8},
             "data": {"prompts": str(inputs / "prompts.jsonl")}, "evaluation": {"judge": judge}}  # fmt: skip
    steer = {"steering": {"vectors": {"a": "{output_dir}/vectors/a.safetensors"}, "alphas": [0.1],
                          "anchor_resamples": 0, "permuted_controls": 2}}  # fmt: skip
    (tmp_path / "evaluate.yaml").write_text(yaml.dump(stage))
    (tmp_path / "steer.yaml").write_text(yaml.dump(stage | steer))
    stages = [{"name": name, "command": name, "config": f"{name}.yaml"} for name in ("evaluate", "steer")]
    run = {"experiment": "x", "base_model": str(base), "stages": stages}
    (tmp_path / "run.yaml").write_text(yaml.dump(run))
    found = list(estimates(read_run(tmp_path / "run.yaml")))
    assert found[0].judging.startswith("15 responses: 15 requests, ")
    assert found[0].judging.endswith("more than max_cost $1e-06: the run would stop on the way")
    assert found[1].judging.startswith("90 responses: ")  # of the anchor, two doses, a random and two permuted controls
    assert found[1].tokens == pytest.approx(6 * found[0].tokens)
    assert found[1].dollars == pytest.approx(6 * found[0].dollars)
    assert lines(found)[-1].endswith(f"${found[0].dollars + found[1].dollars:,.2f}")
