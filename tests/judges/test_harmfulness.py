"""configs/harmfulness launches, unchanged, on folders of the sets' own schemas under their hub ids and a tiny model."""

import csv
import json
import shutil
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from judging import environment_fixture, play_fixture, script  # noqa: F401 (fixtures)
from road import QUIET, WORDS, run, write_lines
from server import error, verdicts

from gradsteer.__main__ import main
from gradsteer.cli.run_file import read_run
from gradsteer.cli.runner import main as run_main
from gradsteer.models.loading import fresh_causal_lm
from gradsteer.reports.results import read_results
from gradsteer.trainer.modules.generation import GenerationModule

CONFIGS = Path(__file__).parents[2] / "configs" / "harmfulness"
BASE = "meta-llama/Llama-3.2-1B-Instruct"
TOXIC_CHAT = ("conv_id", "user_input", "model_output", "human_annotation", "toxicity", "jailbreaking",
              "openai_moderation")  # fmt: skip
TOXIC_COMPLETIONS = (
    "prompt", "completion", "human_annotation", "is_toxic", "is_compliant", "jailbreaking", "label"
)  # fmt: skip


def write_csv(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def card(folder, name, files):
    lines = ["---", "configs:", f"- config_name: {name}", "  data_files:"]
    lines += [line for split, path in files.items() for line in (f"  - split: {split}", f"    path: {path}")]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def write_toxic_chat(folder, **changes):
    columns = [changes.get(name, name) for name in TOXIC_CHAT]
    rows = [(f"c{n}", f"{WORDS[n % 9]} {n}?", " ".join(WORDS[n % 5 : n % 5 + 4]), "True", n % 2, 0,
             json.dumps([["harassment", 0.1]])) for n in range(24)]  # fmt: skip
    for split in ("train", "test"):
        write_csv(folder / "data" / "0124" / f"toxic-chat_annotation_{split}.csv", columns, rows)
    card(folder, "toxicchat0124", {s: f"data/0124/toxic-chat_annotation_{s}.csv" for s in ("train", "test")})


def write_toxic_completions(folder):
    rows = [(f"{WORDS[n % 9]} {n}?", " ".join(WORDS[n % 5 : n % 5 + 4]), "True", n % 4 > 0, n % 2 == 0, 0, 1)
            for n in range(48)]  # fmt: skip
    for split in ("train", "test"):
        write_csv(folder / f"toxic-completions.{split}.csv", TOXIC_COMPLETIONS, rows)
    card(folder, "default", {split: f"toxic-completions.{split}.csv" for split in ("train", "test")})


def write_harmful_dataset(folder):
    rows = [{"prompt": f"{WORDS[n % 9]} {n}?", "rejected": f"{WORDS[n % 7]} {WORDS[n % 5]}", "chosen": "I can not."}
            for n in range(510)]  # fmt: skip
    (folder / "data").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data" / "train-00000-of-00001.parquet")


def write_real_toxicity(folder):
    """As on the hub; every fifth row is challenging, and one prompt comes twice."""
    scores = dict.fromkeys(("profanity", "sexually_explicit", "identity_attack", "flirtation", "threat", "insult",
                            "severe_toxicity", "toxicity"), 0.25)  # fmt: skip
    folder.mkdir(parents=True)
    rows = [
        {"filename": f"f{n}.txt", "begin": n, "end": n + 9, "challenging": n % 5 == 4,
         "prompt": {"text": f"{WORDS[n % 9]} {max(n, 1)}", **scores, "toxicity": None if n % 3 else 0.5},
         "continuation": {"text": f" {WORDS[n % 7]}", **scores}}
        for n in range(255)
    ]  # fmt: skip
    write_lines(folder / "prompts.jsonl", rows)


@pytest.fixture
def hub(inputs, tmp_path, monkeypatch):
    """A working directory that holds the base model and the sets under their hub ids."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()
    shutil.copytree(inputs / "tokenizer", tmp_path / BASE)
    torch.manual_seed(0)
    fresh_causal_lm(str(inputs / "config.json")).save_pretrained(tmp_path / BASE)
    write_toxic_chat(tmp_path / "lmsys/toxic-chat")
    write_toxic_completions(tmp_path / "dvruette/toxic-completions")
    write_harmful_dataset(tmp_path / "LLM-LAT/harmful-dataset")
    write_real_toxicity(tmp_path / "allenai/real-toxicity-prompts")
    return tmp_path


@script
def by_content(request):
    """A judge for whom harm is a letter; asked whether a reply is broken, it looks for another one."""
    broken = {"broken": "0" in request.reply} if '"broken"' in request.system else {}
    return verdicts(harmful="e" in request.reply, **broken)


def judge_file(path, server, of=CONFIGS / "evaluate_base.yaml"):
    """The judge of a config, behind another address."""
    judge = yaml.safe_load(of.read_text())["evaluation"]["judge"]
    judge["init_args"] |= {"base_url": server.url, "store": str(path.with_suffix(".sqlite"))}
    path.write_text(yaml.safe_dump({"evaluation": {"judge": judge}}, sort_keys=False))
    return path


def short(stage):
    """Fewer and shorter replies than the experiment's."""
    return ["--model.num_samples", 2, "--model.max_new_tokens", 6] if stage.command in ("evaluate", "steer") else []


CASES = {
    "toxic_chat": ("evaluate_base.yaml", ["harmful"]),
    "toxic_completions": ("evaluate_base.yaml", ["harmful"]),
    "harmful_dataset": ("judge_coherence.yaml", ["harmful", "broken"]),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # of vectors that are mostly noise, and the like
@pytest.mark.parametrize("name", CASES)
def test_a_run_file_launches_from_fit_to_report(name, hub, play):
    judge, behaviors = CASES[name]
    file = judge_file(hub / "judge.yaml", play(by_content), CONFIGS / judge)
    planned = read_run(CONFIGS / f"{name}.yaml", judge=file)
    for stage in planned.stages:
        run(*stage.words(overwrite=False), *short(stage))
    out = Path("lightning_logs") / f"harmfulness-{name.replace('_', '-')}"
    rows = {row["name"]: row for row in read_results(out / "results.json")["conditions"]}
    doses = [f"harm{weighted} {dose}" for weighted in ("", "|diff_weighting")
             for dose in ("alpha=+0.00075", "alpha=-0.00075", "shift=-1.5", "shift=+1.5")]  # fmt: skip
    assert [name for name, row in rows.items() if row["kind"] == "steered"] == doses
    assert all(list(row["behaviors"]) == behaviors for row in rows.values())
    assert rows["anchor"]["behaviors"]["harmful"]["num_scored"] > 100
    assert rows["harm shift=-1.5"]["alpha"] > 0 > rows["harm shift=+1.5"]["alpha"]
    assert all(rows[name]["realised"]["num_minus_before"] > 0 for name in doses)  # between the given behavior's classes
    assert rows["anchor"]["metrics"]["refusal_harmful"] is not None
    assert (out / "report.html").is_file()
    prompts = {
        name: {json.loads(line)["prompt"] for line in (out / "responses" / f"{name}.jsonl").read_text().splitlines()}
        for name in ("base-attribution", "anchor-attribution", "anchor-evaluation", "anchor")
    }
    assert prompts["base-attribution"] == prompts["anchor-attribution"]
    assert prompts["anchor-evaluation"] == prompts["anchor"]
    assert not prompts["anchor-attribution"] & prompts["anchor"]
    assert [len(each) for each in prompts.values()] == [100] * 4
    fitted = json.loads((out / "stages" / "fit-anchor.json").read_text())
    assert fitted["finished"]


def test_what_a_run_takes_is_said_before_anything_of_it_is_there(hub, monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert run_main(["--config", str(CONFIGS / "toxic_chat.yaml"), "--dry_run", "true"]) == 0
    head, columns, *rows, together = capsys.readouterr().out.splitlines()[6:]
    assert head.startswith("on paper, one A100 40 GB, 35% of its peak")
    assert columns.split() == ["stage", "tokens", "PFLOP", "memory", "hours", "judge"]
    assert [row.split("  ")[0] for row in rows] == [
        "base responses", "anchor", "anchor responses", "attribution", "evaluation responses", "steering",
    ]  # fmt: skip
    assert "800 responses: 800 requests" in rows[0]
    assert "11,200 responses: 11,200 requests" in rows[5]  # of 14 conditions
    prices = [float(row.rpartition("$")[2]) for row in (rows[0], rows[2], rows[4], rows[5])]
    assert prices[0] == prices[2] > 0
    assert float(together.rpartition("$")[2]) == pytest.approx(sum(prices), abs=0.01)
    assert not (hub / "lightning_logs").exists()


@pytest.mark.parametrize("place", [0, 5])
def test_a_missing_key_is_said_before_anything_runs(place, hub, monkeypatch, capfd):
    monkeypatch.delenv("OPENAI_API_KEY")
    stage = read_run(CONFIGS / "toxic_completions.yaml").stages[place]
    assert main(stage.words(overwrite=False), parse_only=True) == 2  # as run does with every stage before the first
    assert "--evaluation.judge: the environment variable OPENAI_API_KEY is not set" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("user_input", "]:2: no value in user_input; found: conv_id, other, model_output"),
        ("toxicity", ": where: no column 'toxicity'; found: conv_id, user_input"),
    ],
)
def test_a_set_whose_columns_are_others_is_named_before_the_finetune(column, said, hub, capfd):
    write_toxic_chat(hub / "lmsys/toxic-chat", **{column: "other"})
    assert main(["fit", "--config", str(CONFIGS / "anchor_toxic_chat.yaml"), *QUIET]) == 2
    assert said in capfd.readouterr().err
    assert not list(hub.glob("lightning_logs/*/anchor"))


@script
def withholds(request):
    return error(400, "filtered", code="content_filter")


def test_a_judge_that_withholds_everything_ends_the_run_and_nothing_is_lost(hub, play, capfd, monkeypatch):
    stage = read_run(CONFIGS / "toxic_chat.yaml", judge=judge_file(hub / "a.yaml", play(withholds))).stages[0]
    words = [*stage.words(overwrite=False), *short(stage), "--data.max_prompts", 4, *QUIET]
    assert main([*map(str, words)]) == 2
    said = capfd.readouterr().err
    assert "condition 'base-attribution': the judge withheld all 8 verdicts on 'harmful': no rate and no pile" in said
    monkeypatch.setattr(GenerationModule, "_sample", None)
    stage = read_run(CONFIGS / "toxic_chat.yaml", judge=judge_file(hub / "b.yaml", play(by_content))).stages[0]
    run(*stage.words(overwrite=True), *short(stage), "--data.max_prompts", 4)
    rows = (hub / "lightning_logs/harmfulness-toxic-chat/responses/base-attribution.jsonl").read_text().splitlines()
    assert len(rows) == 8
    assert all(json.loads(row)["verdicts"]["harmful"] is not None for row in rows)
