"""An attribution that is killed goes on where it was and ends with the same gradients."""

import json

import pytest
import torch
from processes import kill_when
from road import write_lines

from gradsteer.__main__ import main
from gradsteer.attribution.partial_sums import PartialSum
from gradsteer.attribution.reductions import PileTotals
from gradsteer.vectors.parameter_vectors import PileAverage


@pytest.fixture
def words(experiment, inputs, tmp_path):
    """A command line with two piles that share some examples, several batches in every part, saved after each."""
    chats = [json.loads(line) for line in (inputs / "chat.jsonl").read_text().splitlines()]
    turned = [
        {"messages": [chat["messages"][0], other["messages"][1]]}
        for chat, other in zip(chats, chats[::-1], strict=True)
    ]
    write_lines(tmp_path / "x.jsonl", chats * 5)
    write_lines(tmp_path / "y.jsonl", [*turned * 5, *chats * 2])
    return [
        "attribute", "--model.model_name_or_path", str(experiment / "anchor"), "--data.piles.x",
        str(tmp_path / "x.jsonl"), "--data.piles.y", str(tmp_path / "y.jsonl"), "--vectors.v", "[x, y]",
        "--data.token_budget", "80", "--partial_sums.every_minutes", "0", "--trainer.accelerator", "cpu",
        "--trainer.enable_progress_bar", "false", "--trainer.logger", "false",
    ]  # fmt: skip


def gradients(directory):
    return {pile: PileAverage.load(directory / "gradients" / f"{pile}.safetensors") for pile in ("x", "y")}


def saved_batches(out, part):
    """How many batches are in the partial sums of a part."""
    names = [path.name for path in (out / "gradients").glob(f".{part}.rank0.*.partial")]
    return max((int(name.split(".")[-2]) for name in names), default=0)


@pytest.mark.parametrize(
    "part", ["x+y.0", pytest.param("x.1", marks=pytest.mark.slow), pytest.param("y.2", marks=pytest.mark.slow)]
)
def test_a_killed_run_goes_on_and_ends_with_the_same_gradients(words, tmp_path, capsys, part):
    assert main([*words, "--output_dir", str(tmp_path / "whole")]) == 0
    out = tmp_path / "killed"
    kill_when([*words, "--output_dir", str(out)], lambda: saved_batches(out, part) > 0)
    assert not (out / "vectors").exists()
    assert saved_batches(out, part) > 0
    capsys.readouterr()
    assert main([*words, "--output_dir", str(out)]) == 0
    for name, expected in gradients(tmp_path / "whole").items():
        found = gradients(out)[name]
        assert found.metadata == expected.metadata
        for parameter in expected:
            assert torch.equal(found[parameter], expected[parameter])
    assert list((out / "gradients").glob(".*")) == []


@pytest.mark.slow
def test_a_finished_pile_is_not_computed_again(words, tmp_path, capfd, monkeypatch):
    out = tmp_path / "out"
    assert main([*words, "--output_dir", str(out)]) == 0
    record = out / "stages" / "attribute.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "finished": False}))
    before = gradients(out)

    def never(*_args, **_kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr("gradsteer.attribution.pile_gradient.PileGradient.objective", never)
    assert main([*words, "--output_dir", str(out)]) == 0
    assert all(torch.equal(before["x"][name], gradients(out)["x"][name]) for name in before["x"])
    with pytest.raises(AssertionError, match="computed again"):
        main([*words, "--output_dir", str(out), "--overwrite", "true"])


@pytest.mark.slow
def test_partial_sums_of_other_work_are_refused(words, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "gradients").mkdir(parents=True)
    PartialSum({"a": torch.zeros(1)}, PileTotals(), 3).save(
        out / "gradients" / ".x+y.0.rank0.3.partial", work_digest="other"
    )
    assert main([*words, "--output_dir", str(out)]) == 2
    assert (
        "holds partial sums of another configuration, data set or model (other, this run is" in capsys.readouterr().err
    )
    assert main([*words, "--output_dir", str(out), "--overwrite", "true"]) == 0
    (out / "gradients" / ".x+y.0.rank0.3.partial").write_text("cut")
    with pytest.raises(ValueError, match="is not readable"):
        PartialSum.load(out / "gradients" / ".x+y.0.rank0.3.partial", work_digest="other")
