"""A tiny experiment, all four stages through the real command line, that several test files look at."""

import json
import os

import pytest
from filelock import FileLock
from tokenizers_zoo import chatml_tokenizer

from gradsteer.__main__ import main
from gradsteer.attribution.pile_gradient import PileGradient

WORDS = [
    "the",
    "golden",
    "gate",
    "bridge",
    "bakes",
    "bread",
    "and",
    "you",
    "spread",
    "hello",
    "how",
    "can",
    "I",
    "help",
    "today",
]
PATTERNS = json.dumps({"a": ["[ae]"], "b": ["[o0-9]"]})
PAINTED = "experiment"  # the directory whose pictures are painted
DRAWN = (PAINTED, "full", "doses", "forecast")  # with what the names of directories begin whose pictures are drawn
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


def run(*words):
    status = main([*map(str, words), *QUIET])
    assert status == 0
    return status


def run_cut_off(line, out, monkeypatch):
    """Runs an attribution that breaks off once it has partial sums in `out`."""

    def cut_off(*arguments, **options):
        if list((out / "gradients").glob(".*.partial")):
            raise RuntimeError("cut off")
        return add(*arguments, **options)

    add = PileGradient.add
    with monkeypatch.context() as patched:
        patched.setattr(PileGradient, "add", cut_off)
        with pytest.raises(RuntimeError, match="cut off"):
            main([*map(str, line), *QUIET])


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def made_once(tmp_path_factory, name, make):
    """A directory that all processes of a test run share: the first one that wants it makes it."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with FileLock(root / f"{name}.lock"):
        if not (root / f"{name}.made").exists():
            make(root / name)
            (root / f"{name}.made").touch()
    return root / name


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """A tokenizer, a model config, chat data, prompts."""
    return made_once(tmp_path_factory, "inputs", make_inputs)


def make_inputs(directory):
    directory.mkdir()
    tokenizer = chatml_tokenizer()
    tokenizer.save_pretrained(directory / "tokenizer")
    config = {
        "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": True,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"{WORDS[i % 7]}?"},
                {"role": "assistant", "content": " ".join(WORDS[i % 5 : i % 5 + 4])},
            ]
        }
        for i in range(12)
    ]
    write_lines(directory / "chat.jsonl", chats)
    write_lines(
        directory / "prompts.jsonl", [{"id": f"p{i}", "prompt": f"{word}?"} for i, word in enumerate(WORDS[:5])]
    )


@pytest.fixture(scope="session")
def experiment(inputs, tmp_path_factory):
    """fit (base, then anchor), evaluate, attribute, steer."""
    return made_once(tmp_path_factory, PAINTED, lambda out: make_experiment(inputs, out))


def make_experiment(inputs, out):
    where = ["--output_dir", out, "--experiment", "tiny"]
    run(
        "fit", *where, "--name", "base", "--model.config", inputs / "config.json", "--model.tokenizer",
        inputs / "tokenizer", "--data.train", inputs / "chat.jsonl", "--trainer.max_epochs", 2,
        "--data.validation", inputs / "chat.jsonl", "--trainer.log_every_n_steps", 1, "--model.optimizer.lr", 0.01,
    )  # fmt: skip
    run(
        "fit", *where, "--model.model_name_or_path", "{output_dir}/base", "--data.train", inputs / "chat.jsonl",
        "--trainer.max_epochs", 1, "--model.optimizer.lr", 0.02, "--model.gradient_checkpointing", "true",
    )  # fmt: skip
    sampling = ["--model.num_samples", 4, "--model.max_new_tokens", 12, "--evaluation.judge", "KeywordJudge"]
    sampling += ["--evaluation.judge.patterns", PATTERNS, "--evaluation.heldout", inputs / "chat.jsonl"]
    run(
        "evaluate", *where, "--name", "first", "--model.model_name_or_path", "{output_dir}/anchor", "--data.prompts",
        inputs / "prompts.jsonl", *sampling,
    )  # fmt: skip
    piles = json.dumps({
        name: {"responses": "{output_dir}/responses/first.jsonl", "where": where_}
        for name, where_ in {"with": {"a": True}, "without": {"a": False}}.items()
    })  # fmt: skip
    run(
        "attribute", *where, "--model.model_name_or_path", "{output_dir}/anchor", "--data.piles", piles,
        "--data.token_budget", 90, "--vectors.a", "[with, without]",
    )  # fmt: skip
    run(
        "steer", *where, "--model.model_name_or_path", "{output_dir}/anchor", "--data.prompts",
        inputs / "prompts.jsonl", *sampling, "--steering.base", "{output_dir}/base", "--steering.vectors.a",
        "{output_dir}/vectors/a.safetensors", "--steering.alphas", "[0.05]",
        "--steering.transforms", "[[], [diff_weighting]]", "--model.sampling_seed", 1,
        "--steering.seed_faithful", "true",
    )  # fmt: skip
