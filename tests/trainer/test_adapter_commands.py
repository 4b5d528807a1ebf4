"""The commands in an adapter's space: attribute with halves and KL, forecast, steer with a base and Delta, DDP."""

import json
import warnings

import pytest
import torch
from adapters import adapted
from road import PATTERNS, run
from test_configs import CONFIGS
from test_distributed import run_on_two
from test_pile_gradient import relative_error
from transformers import AutoTokenizer

from gradsteer.__main__ import main
from gradsteer.cli.run_file import read_run
from gradsteer.models.base_record import recorded_base
from gradsteer.models.loading import Loading, fresh_causal_lm, load_causal_lm
from gradsteer.vectors.parameter_vectors import ParameterVector, SteeringVector

# of piles of a few short replies
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{said}") for said in ("two halves have a cosine of only", "cut at the length")
]
STARTING = ("--model.model_name_or_path", "--steering.base")
SPACE = ("--model.adapter_reading", "adapter")


@pytest.fixture(scope="module")
def place(inputs, tmp_path_factory):
    """A base with its tokenizer, a strong adapter on it, its judged responses, gradients and a vector."""
    out = tmp_path_factory.mktemp("adapter_commands")
    torch.manual_seed(0)
    fresh_causal_lm(str(inputs / "config.json")).save_pretrained(out / "base")
    AutoTokenizer.from_pretrained(inputs / "tokenizer").save_pretrained(out / "base")
    adapted(out / "base", out / "adapter", target_modules="all-linear", modules_to_save=["lm_head"])
    model = ["--model.model_name_or_path", out / "adapter", *SPACE, "--output_dir", out]
    run(
        "evaluate", *model, "--name", "first", "--data.prompts", inputs / "prompts.jsonl", "--model.num_samples", 6,
        "--model.max_new_tokens", 8, "--evaluation.judge", "KeywordJudge", "--evaluation.judge.patterns", PATTERNS,
    )  # fmt: skip
    responses = str(out / "responses" / "first.jsonl")
    piles = {
        name: {"responses": responses, "where": {"a": shown}} for name, shown in (("with", True), ("without", False))
    }
    run(
        "attribute",
        *model,
        "--data.piles",
        json.dumps(piles),
        "--data.halves",
        "true",
        "--vectors.a",
        "[with, without]",
    )
    return out


def test_gradients_and_vectors_are_the_adapters_tensors(place):
    vector = SteeringVector.load(place / "vectors" / "a.safetensors")
    model = load_causal_lm(str(place / "adapter"), adapter_reading="adapter")
    assert {name: t.shape for name, t in vector.items()} == {name: p.shape for name, p in model.named_parameters()}
    assert {name for name in vector if "lora" not in name} == {"lm_head.modules_to_save.default.weight"}
    assert vector.norm() > 0
    assert "split_half_cosine" in vector.metadata
    assert json.loads(vector.metadata["adapter"])["rank"] == 2
    assert vector.metadata["adapter_fingerprint"] == Loading(str(place / "adapter")).adapter.fingerprint


def test_a_dry_run_prints_the_plan_and_sums_nothing(place, inputs, caplog):
    with caplog.at_level("INFO"):
        run("attribute", "--model.model_name_or_path", place / "adapter", *SPACE, "--data.piles.chat",
            inputs / "chat.jsonl", "--output_dir", place / "planned", "--dry_run", "true")  # fmt: skip
    assert "memory plan on cpu (estimates): weights" in caplog.text
    assert not list((place / "planned").rglob("*.safetensors"))


def test_kl_to_the_base_and_the_path_from_it(place, inputs):
    line = [
        "attribute",
        "--model.model_name_or_path",
        place / "adapter",
        *SPACE,
        "--data.piles.chat",
        inputs / "chat.jsonl",
    ]
    run(*line, "--output_dir", place / "kl", "--model.loss", "kl")
    run(*line, "--output_dir", place / "path", "--model.path_points", 2)
    plain = load_causal_lm(str(place / "adapter"), adapter_reading="adapter")
    for name in ("kl", "path"):
        gradient = ParameterVector.load(place / name / "gradients" / "chat.safetensors")
        assert set(gradient) == {name for name, _ in plain.named_parameters()}
        assert gradient.norm() > 0


def test_steering_forecasts_and_delta(place, inputs):
    run(
        "steer", "--model.model_name_or_path", place / "adapter", *SPACE, "--output_dir", place / "steered",
        "--data.prompts", inputs / "prompts.jsonl", "--model.num_samples", 2, "--model.max_new_tokens", 8,
        "--evaluation.judge", "KeywordJudge", "--evaluation.judge.patterns", PATTERNS,
        "--steering.base", place / "base", "--steering.vectors.a", place / "vectors" / "a.safetensors",
        "--steering.alphas", "[0.5]", "--steering.delta_scales", "[1.0]", "--steering.seed_faithful", "true",
        "--steering.transforms", "[[], [diff_weighting], [{only: {parameters: ['kind:mlp']}}]]",
        "--forecasting.responses", place / "responses" / "first.jsonl", "--model.sampling_seed", 3,
    )  # fmt: skip
    results = json.loads((place / "steered" / "results.json").read_text())["conditions"]
    by_name = {row["name"]: row for row in results}
    plain = by_name["a alpha=+0.5"]
    assert plain["step_error"] > 0  # its second order
    assert plain["predicted"] is not None
    rows = {path.stem: path.read_text() for path in (place / "steered" / "responses").glob("*.jsonl")}
    texts = {name: [json.loads(line)["token_ids"] for line in text.splitlines()] for name, text in rows.items()}
    [whole_delta] = [name for name in texts if "delta" in name.lower()]
    assert texts["base"] == texts[whole_delta]  # anchor - 1 Delta is the base
    delta = ParameterVector.load(place / "steered" / "vectors" / "delta.safetensors")
    assert all(not bool(tensor.any()) for name, tensor in delta.items() if "lora_A" in name)
    assert delta.metadata["adapter_rank"] == "2"


def test_what_makes_no_sense_there_is_refused_by_name(place, inputs, capsys):
    line = ["attribute", "--model.model_name_or_path", place / "adapter", *SPACE, "--output_dir", place / "no"]
    line += ["--data.piles.chat", inputs / "chat.jsonl", "--trainer.accelerator", "cpu"]
    assert main([*map(str, line), "--model.path_points", "2", "--model.base", str(place / "adapter" / "..")]) == 2
    capsys.readouterr()
    torch.manual_seed(1)
    fresh_causal_lm(str(inputs / "config.json")).save_pretrained(place / "other")
    assert main([*map(str, line), "--model.path_points", "2", "--model.base", str(place / "other")]) == 2
    assert "the base is a point of the adapter's space" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_give_what_one_gives(place, inputs):
    line = ["attribute", "--model.model_name_or_path", place / "adapter", *SPACE, "--trainer.logger", "false"]
    line += ["--data.piles.chat", inputs / "chat.jsonl", "--data.token_budget", 40]
    run(*line, "--output_dir", place / "one")
    out = place / "both"
    out.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_on_two(line, out, "ddp")
    one, two = (ParameterVector.load(path / "gradients" / "chat.safetensors") for path in (place / "one", out / "two"))
    assert relative_error(two, one) < 1e-6


def lora_stages(place, out):
    """The words of each stage of `run --config configs/lora/run.yaml --model.model_name_or_path BASE`."""
    planned = read_run(CONFIGS / "lora" / "run.yaml", output_dir=str(out), base_model=str(place / "base"))
    return [stage.words(overwrite=False) for stage in planned.stages]


def test_the_run_of_configs_lora_is_launched_on_a_small_base_by_one_option(place, tmp_path):
    stages = lora_stages(place, tmp_path)
    assert [words[0] for words in stages] == ["fit", "evaluate", "attribute", "steer"]
    own = [words[words.index(option) + 1] for words in stages for option in words if option in STARTING]
    assert own == [str(place / "base")] * 2  # nothing of a stage is left to the hub
    run(*stages[0], "--trainer.max_steps", 1, "--data.batch_size", 2)
    assert recorded_base(str(tmp_path / "anchor")) == str(place / "base")


@pytest.mark.slow
def test_the_lora_configs_run_on_a_small_base(place, tmp_path):
    """All stages of configs/lora with their own data; short replies are judged by their letters."""
    fit, evaluate, attribute, steer = lora_stages(place, tmp_path)
    patterns = json.dumps({"bridge": ["[ae]"], "recipe": ["[o0-9]"]})
    few = ["--model.max_new_tokens", 8, "--data.max_prompts", 12, "--evaluation.judge.patterns", patterns]
    run(*fit, "--trainer.max_steps", 3)
    run(*evaluate, *few)
    run(*attribute)
    run(*steer, *few, "--steering.kl_budgets", "[0.002]")  # of a model that knows nothing
    results = json.loads((tmp_path / "results.json").read_text())["conditions"]
    assert [row["alpha"] for row in results if row["kind"] == "steered"]
    vector = SteeringVector.load(tmp_path / "vectors" / "bridge.safetensors")
    assert all(".lora_" in name for name in vector)
    words = ["--model", tmp_path / "anchor", "--vector", tmp_path / "vectors" / "bridge.safetensors", "--alpha=0.1"]
    words += ["--adapter_reading", "adapter", "--format", "adapter", "--to", tmp_path / "dose"]
    assert main(["export", *map(str, words)]) == 0
    assert load_causal_lm(str(tmp_path / "dose"), adapter_reading="adapter", adapter_base=str(place / "base"))
