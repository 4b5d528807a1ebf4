"""Killed at any moment and started again with the same command: bit for bit the results of an undisturbed run."""

import json
import shutil

import pytest
from judged import message_of
from processes import kill_when
from road import PATTERNS, QUIET, run, write_lines

from gradsteer.trainer.datamodules.prompts import PromptDataModule
from gradsteer.trainer.modules.generation import GenerationModule
from gradsteer.vectors.parameter_vectors import SteeringVector

BATCHES = 4  # of each condition: 12 responses, 3 at once
TOTAL = 3 * BATCHES
CONDITIONS = ["base", "anchor", "anchor_resampled", "a_alpha=+0.05", "a_alpha=-0.05", "random-0_of_a_alpha=+0.05"]


@pytest.fixture(scope="module")
def words(experiment, inputs, tmp_path_factory):
    prompts = [{"id": f"q{index}", "prompt": f"hello {index} golden"} for index in range(6)]
    file = write_lines(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", prompts)
    return [
        "steer", "--model.model_name_or_path", experiment / "anchor", "--steering.base", experiment / "base",
        "--steering.vectors.a", experiment / "vectors" / "a.safetensors", "--steering.alphas", "[0.05]",
        "--data.prompts", file, "--data.batch_size", 3, "--model.num_samples", 2, "--model.max_new_tokens", 20,
        "--evaluation.judge", "KeywordJudge", "--evaluation.judge.patterns", PATTERNS,
        "--evaluation.heldout", inputs / "chat.jsonl", "--trainer.logger", "false",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(words, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    run(*words, "--output_dir", out)
    return out


def files_of(directory):
    """The bytes of all that a run leaves, but for the logs and what says when it ran."""
    found = {path.relative_to(directory): path for path in directory.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in found.items() if name.suffix in (".json", ".jsonl", ".csv")}


def lines(directory):
    return [json.loads(line) for line in (directory / "responses" / "base.jsonl").read_text().splitlines()]


@pytest.fixture
def sampled(monkeypatch):
    """Counts the rows that are sampled from here on."""
    count, sample = [], GenerationModule._sample

    def counting(self, rows, dataloader_idx):
        count.extend(rows)
        return sample(self, rows, dataloader_idx)

    monkeypatch.setattr(GenerationModule, "_sample", counting)
    return count


def batch(out, condition, number):
    return out / "responses" / ".unfinished" / CONDITIONS[condition] / f"{number:06d}.jsonl"


_SLOW = pytest.mark.slow
# killed after this condition's batch: in the middle, the first of all, the last
KILLS = [(3, 2), pytest.param((0, 0), marks=_SLOW), pytest.param((5, BATCHES - 1), marks=_SLOW)]


@pytest.mark.parametrize("kill", KILLS, ids=str)
def test_a_killed_run_goes_on_where_it_stopped(words, undisturbed, sampled, tmp_path, kill):
    kill_when([*map(str, [*words, "--output_dir", tmp_path]), *QUIET], batch(tmp_path, *kill).is_file)
    kept = [len(list(batch(tmp_path, number, 0).parent.glob("0*.jsonl"))) for number in range(6)]
    assert kept[: kill[0]] == [BATCHES] * kill[0]
    assert kept[kill[0]] > kill[1]
    assert not (tmp_path / "results.json").exists()
    run(*words, "--output_dir", tmp_path)
    assert len(sampled) == 3 * (6 * BATCHES - sum(kept))
    assert files_of(tmp_path) == files_of(undisturbed)
    assert not (tmp_path / "responses" / ".unfinished").exists()


def evaluating(words):
    """The command line that samples the anchor alone, as a condition of its own."""
    vectors, prompts = words.index("--steering.base"), words.index("--data.prompts")
    return ["evaluate", *words[1:vectors], *words[prompts:], "--name", "anchor-again"]


@pytest.mark.slow
def test_a_killed_evaluate_goes_on_where_it_stopped(words, sampled, tmp_path):
    evaluate, out, other = evaluating(words), tmp_path / "killed", tmp_path / "undisturbed"
    batches = out / "responses" / ".unfinished" / "anchor-again"
    kill_when([*map(str, [*evaluate, "--output_dir", out]), *QUIET], (batches / "000002.jsonl").is_file)
    kept = len(list(batches.glob("0*.jsonl")))
    assert 3 <= kept <= BATCHES
    assert not (out / "evaluations" / "anchor-again.json").exists()
    run(*evaluate, "--output_dir", out)
    assert len(sampled) == 3 * (BATCHES - kept)
    run(*evaluate, "--output_dir", other)
    assert len(sampled) == 3 * (2 * BATCHES - kept)
    assert files_of(out) == files_of(other)
    assert {"evaluations/anchor-again.json", "responses/anchor-again.jsonl"} <= set(files_of(out))


def interrupted(words, out, monkeypatch, *, after):
    """A run in this process that breaks when so many batches have been sampled."""
    calls, sample = [], GenerationModule._sample

    def breaking(self, rows, dataloader_idx):
        calls.append(rows)
        if len(calls) > after:
            raise RuntimeError("the machine went away")
        return sample(self, rows, dataloader_idx)

    with monkeypatch.context() as patch:
        patch.setattr(GenerationModule, "_sample", breaking)
        with pytest.raises(RuntimeError, match="went away"):
            run(*words, "--output_dir", out)


@pytest.mark.slow
def test_another_configuration_is_refused_and_can_start_afresh(words, sampled, tmp_path, monkeypatch, capsys):
    interrupted(words, tmp_path, monkeypatch, after=BATCHES + 3)
    sampled.clear()
    words = [*map(str, words), "--output_dir", str(tmp_path)]
    hotter = [*words, "--model.temperature", "1.5"]
    assert "differs in temperature (now 1.5, then 1.0)" in message_of(hotter, capsys)
    assert "num_batches (now 2, then 4)" in message_of([*words, "--model.num_samples", "1"], capsys)
    assert "digest" in message_of([*words, "--model.sampling_seed", "7"], capsys)
    mixed = message_of([*words, "--trainer.precision", "bf16-mixed"], capsys)
    assert 'differs in precision (now "bf16-mixed", then "32-true")' in mixed
    assert sampled == []
    run(*hotter, "--overwrite", "true")
    assert len(sampled) == 6 * TOTAL
    rows = json.loads((tmp_path / "results.json").read_text())["conditions"]
    assert {row["temperature"] for row in lines(tmp_path)} == {1.5}
    assert len(rows) == 6


@pytest.mark.slow
def test_another_vector_under_the_same_name_is_refused(words, tmp_path, monkeypatch, capsys, experiment):
    interrupted(words, tmp_path, monkeypatch, after=3 * BATCHES + 3)
    other = tmp_path / "other.safetensors"
    vector = SteeringVector.load(experiment / "vectors" / "a.safetensors")
    (vector * 2).save(other)
    words = [*map(str, words), "--output_dir", str(tmp_path), "--steering.vectors.a", str(other)]
    message = message_of(words, capsys)
    assert "a_alpha=+0.05" in message
    assert "differs in weights" in message


@pytest.mark.slow
def test_another_judge_judges_what_was_sampled(words, undisturbed, sampled, tmp_path, monkeypatch):
    interrupted(words, tmp_path, monkeypatch, after=BATCHES + 3)
    sampled.clear()
    patterns = json.dumps({"a": ["zzz"], "b": ["."]})
    run(*words, "--output_dir", tmp_path, "--evaluation.judge.patterns", patterns)
    assert len(sampled) == 3 * (5 * BATCHES - 3)
    rows = lines(tmp_path)
    theirs = lines(undisturbed)
    assert [row["token_ids"] for row in rows] == [row["token_ids"] for row in theirs]
    assert not any(row["verdicts"]["a"] for row in rows)
    assert all(row["verdicts"]["b"] for row in rows if row["completion"].strip())
    assert rows[0]["judge"] != theirs[0]["judge"]


def test_evaluate_goes_on_too_and_takes_the_batch_size_that_was_planned(words, tmp_path, sampled, monkeypatch):
    evaluate = evaluating(words)
    evaluate[evaluate.index("--data.batch_size") + 1] = "auto"
    monkeypatch.setattr(PromptDataModule, "_batch_size_by_memory", lambda self: 5)
    interrupted(evaluate, tmp_path, monkeypatch, after=2)
    sampled.clear()
    # there is more memory now: the plan stays as it was
    monkeypatch.setattr(PromptDataModule, "_batch_size_by_memory", lambda self: 11)
    run(*evaluate, "--output_dir", tmp_path)
    assert len(sampled) == TOTAL - 10
    assert len((tmp_path / "responses" / "anchor-again.jsonl").read_text().splitlines()) == TOTAL


@pytest.mark.slow
def test_another_heldout_text_is_measured_anew(words, tmp_path, monkeypatch, inputs):
    interrupted(words, tmp_path, monkeypatch, after=2 * BATCHES + 3)
    chats = [json.loads(line) for line in (inputs / "chat.jsonl").read_text().splitlines()]
    other = write_lines(tmp_path / "other.jsonl", chats[:2])
    run(*words, "--output_dir", tmp_path, "--evaluation.heldout", other)
    rows = {row["name"]: row for row in json.loads((tmp_path / "results.json").read_text())["conditions"]}
    # base was measured before the interruption, the resampled anchor has the anchor's weights
    assert rows["anchor"]["metrics"]["perplexity"] == rows["anchor resampled"]["metrics"]["perplexity"]
    alone = tmp_path / "alone"
    run(*words, "--output_dir", alone, "--evaluation.heldout", other)
    assert (alone / "results.json").read_bytes() == (tmp_path / "results.json").read_bytes()


def test_other_stop_tokens_are_another_configuration(words, tmp_path, monkeypatch, capsys, experiment):
    anchor = tmp_path / "anchor"
    shutil.copytree(experiment / "anchor", anchor)
    words = [str(anchor) if word == experiment / "anchor" else word for word in words]
    interrupted(words, tmp_path / "out", monkeypatch, after=BATCHES + 3)
    config = json.loads((anchor / "generation_config.json").read_text())
    (anchor / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": [5, 6]}))
    assert "differs in stop_token_ids" in message_of([*map(str, words), "--output_dir", str(tmp_path / "out")], capsys)


@pytest.mark.slow
def test_other_doses_are_refused_or_replace_what_was_sampled_of_the_first(
    words, sampled, tmp_path, monkeypatch, capsys
):
    interrupted(words, tmp_path, monkeypatch, after=4 * BATCHES + 3)  # in the second dose
    sampled.clear()
    words = [*map(str, words), "--output_dir", str(tmp_path), "--steering.alphas", "[0.07]"]
    message = message_of(words, capsys)
    assert "conditions that this one does not have: a_alpha=+0.05, a_alpha=-0.05" in message
    assert sampled == []
    run(*words, "--overwrite", "true")
    assert len(sampled) == 3 * 3 * BATCHES  # base, anchor and the anchor again were there
    names = {path.stem for path in (tmp_path / "responses").glob("*.jsonl")}
    assert names == {*CONDITIONS[:3], "a_alpha=+0.07", "a_alpha=-0.07", "random-0_of_a_alpha=+0.07"}


@pytest.mark.slow
def test_a_finished_run_is_judged_anew_and_extended_without_sampling_again(words, undisturbed, sampled, tmp_path):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    theirs = lines(tmp_path)
    other = ["--evaluation.judge.patterns", json.dumps({"a": ["zzz"]}), "--overwrite", "true"]
    run(*words, "--output_dir", tmp_path, *other)
    assert sampled == []
    assert [row["token_ids"] for row in lines(tmp_path)] == [row["token_ids"] for row in theirs]
    assert {value for row in lines(tmp_path) for value in row["verdicts"].values()} == {False}
    run(*words, "--output_dir", tmp_path, *other, "--steering.alphas", "[0.05, 0.06]")
    assert len(sampled) == 3 * BATCHES * 3  # two new doses, and a control at the larger one
    sampled.clear()
    vectors = ["--steering.vectors.b", words[words.index("--steering.vectors.a") + 1]]
    alphas = ["--steering.alphas", '{"a": [0.05, 0.06], "b": [0.05]}']
    run(*words, "--output_dir", tmp_path, *other, *vectors, *alphas)
    assert len(sampled) == 3 * BATCHES * 3  # both signs of the other vector, and its control


@pytest.mark.slow
def test_a_trial_leaves_nothing_that_a_run_goes_on_from(words, undisturbed, tmp_path):
    run(*words, "--output_dir", tmp_path, "--trainer.fast_dev_run", "true")
    assert not (tmp_path / "responses" / ".unfinished").exists()
    run(*words, "--output_dir", tmp_path)
    assert files_of(tmp_path) == files_of(undisturbed)
