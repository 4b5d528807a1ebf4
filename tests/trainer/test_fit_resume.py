"""A finetune that is killed is resumed by the same command and ends with the same weights."""

import shutil
from pathlib import Path

import pytest
from processes import kill_when
from tokenizers_zoo import chatml_tokenizer

from gradsteer.__main__ import main
from gradsteer.records import file_digest
from gradsteer.trainer.callbacks.saving import save_pretrained
from gradsteer.trainer.modules.finetune import FinetuneModule


@pytest.fixture
def words(experiment, inputs):
    return [
        "fit", "--model.model_name_or_path", str(experiment / "base"), "--data.train", str(inputs / "chat.jsonl"),
        "--trainer.max_epochs", "8", "--data.batch_size", "1", "--saving.checkpoint_minutes", "0",
        "--model.optimizer.lr", "0.01", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
        "--trainer.logger", "false",
    ]  # fmt: skip


def killed_after_a_checkpoint(words, out):
    kill_when([*words, "--output_dir", str(out)], (out / ".anchor.resume.ckpt").is_file)
    assert not (out / "anchor").exists()


def test_a_killed_fit_is_resumed_and_ends_with_the_same_weights(words, tmp_path, caplog):
    assert main([*words, "--output_dir", str(tmp_path / "whole")]) == 0
    assert not (tmp_path / "whole" / ".anchor.resume.ckpt").exists()
    out = tmp_path / "killed"
    killed_after_a_checkpoint(words, out)
    with caplog.at_level("INFO"):
        assert main([*words, "--output_dir", str(out)]) == 0
    assert f"resuming from {out / '.anchor.resume.ckpt'}" in caplog.text
    weights = "anchor/model.safetensors"
    assert file_digest(out / weights) == file_digest(tmp_path / "whole" / weights)
    assert sorted(path.name for path in out.glob(".*")) == []


def test_a_fit_that_broke_off_within_an_epoch_goes_on_there(words, tmp_path, monkeypatch):
    words = [{"12": "2", "0": "0.00001"}.get(word, word) for word in words] + ["--trainer.accumulate_grad_batches", "2"]
    assert main([*words, "--output_dir", str(tmp_path / "whole")]) == 0
    out, seen = tmp_path / "broken", []

    def breaking(self, batch, batch_idx):
        seen.append((self.current_epoch, batch["index"].tolist()))
        if len(seen) == 18:  # the sixth batch of the second epoch
            raise RuntimeError("a fault")
        return step(self, batch, batch_idx)

    step = FinetuneModule.training_step
    monkeypatch.setattr(FinetuneModule, "training_step", breaking)
    with pytest.raises(RuntimeError, match="a fault"):
        main([*words, "--output_dir", str(out)])
    assert (out / ".anchor.resume.ckpt").is_file()
    before = seen[:16]  # a checkpoint holds whole steps, of two batches
    assert main([*words, "--output_dir", str(out)]) == 0
    epochs = [sorted(row for epoch, [row] in [*before, *seen[18:]] if epoch == number) for number in (0, 1)]
    assert epochs == [list(range(12))] * 2
    weights = "anchor/model.safetensors"
    assert file_digest(out / weights) == file_digest(tmp_path / "whole" / weights)


@pytest.mark.slow
def test_a_checkpoint_of_another_configuration_is_not_resumed(words, tmp_path, caplog):
    out = tmp_path / "killed"
    killed_after_a_checkpoint(words, out)
    with caplog.at_level("INFO"):
        assert main([*words, "--trainer.max_epochs", "1", "--output_dir", str(out)]) == 0
    assert "resuming from" not in caplog.text


def test_a_directory_that_fit_did_not_make_is_never_replaced(words, experiment, tmp_path, capsys):
    precious = shutil.copytree(experiment / "base", tmp_path / "anchor")
    before = file_digest(precious)
    assert main([*words, "--output_dir", str(tmp_path), "--overwrite", "true"]) == 2
    assert f"{str(precious)!r} exists and was not made by fit" in capsys.readouterr().err
    assert file_digest(precious) == before


def test_a_model_that_cannot_be_put_in_its_place_is_kept_and_so_is_the_one_before(llama, tmp_path, monkeypatch):
    tokenizer = chatml_tokenizer()
    save_pretrained(llama, tokenizer, tmp_path / "anchor")
    rename, renamed = Path.rename, []

    def failing(self, target):
        renamed.append(self)
        if len(renamed) == 2:
            raise OSError("the disk went away")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="went away"):
        save_pretrained(llama, tokenizer, tmp_path / "anchor")
    monkeypatch.undo()
    assert (tmp_path / "anchor" / "model.safetensors").is_file()
    [kept] = [path for path in tmp_path.iterdir() if path.name.endswith(".part")]
    assert (kept / "model.safetensors").is_file()
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".old")]
