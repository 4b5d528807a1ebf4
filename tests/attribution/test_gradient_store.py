"""From sums over parts to averages on disk, against additions in float64."""

import pytest
import torch
from tiny_models import ragged_examples

from gradsteer.attribution.gradient_store import Assembly
from gradsteer.attribution.partial_sums import PartialSum
from gradsteer.attribution.pile_partition import Part, Wanted, plan_parts
from gradsteer.attribution.reductions import PileTotals
from gradsteer.data.piles import Pile
from gradsteer.vectors.parameter_vectors import PileAverage
from gradsteer.vectors.preconditioning import SecondMoment

SHAPES = {"w": (4, 3), "b": (5,)}
X, Y = Wanted("x", "x"), Wanted("y", "y")


def described(wanted):
    return {"pile": wanted.pile, "asked": wanted.name}


def sums_of(seed, *, num_examples=3, num_tokens=7, dtype=torch.float32, **totals):
    generator = torch.Generator().manual_seed(seed)
    buffers = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}
    return PartialSum(buffers, PileTotals(num_examples, num_tokens, 1.5 + seed, **totals), 9)


def parts_of(piles, **options):
    examples = ragged_examples(12)
    read = [
        Pile(name, [examples[n] for n in numbers], [str(n) for n in numbers], [f"{n:02d}" for n in numbers])
        for name, numbers in piles.items()
    ]
    return plan_parts(read, **options)


def assembly(directory, parts, *, reduction="example", digests=None):
    return Assembly(directory, parts, digests or [f"digest-{index}" for index in range(len(parts))], reduction)


def take_all(assembled, sums):
    """Takes the parts in their order; the names of what was written with each."""
    return [
        [wanted.name for wanted, _ in assembled.take(index, each, described)] for index, each in enumerate(sums)
    ]  # fmt: skip


def hidden(directory):
    return sorted(path.name for path in (directory / "gradients").glob(".*"))


@pytest.mark.parametrize(("reduction", "divisor"), [("example", 3), ("sum", 3), ("token", 7)])
def test_a_sum_of_one_part_is_written_at_once_bit_for_bit(tmp_path, reduction, divisor):
    assembled = assembly(tmp_path, parts_of({"x": [0], "y": [1]}), reduction=reduction)
    sums = sums_of(0)
    ((wanted, average),) = assembled.take(0, sums, described)
    assert wanted == X
    written = PileAverage.load(tmp_path / "gradients" / "x.safetensors")
    for name, buffer in sums.buffers.items():
        assert torch.equal(average[name], buffer / divisor)
        assert torch.equal(written[name], buffer / divisor)
    assert written.metadata == average.metadata
    said = {"pile": "x", "asked": "x", "num_examples": "3", "num_tokens": "7", "work_digest": "digest-0"}
    assert written.metadata == {**said, "mean_token_loss": repr(1.5 / 7)}
    assert hidden(tmp_path) == []
    assert not (tmp_path / "gradients" / "y.safetensors").exists()


@pytest.mark.parametrize(("reduction", "token"), [("example", False), ("sum", False), ("token", True)])
def test_sums_of_several_parts_add_up(tmp_path, reduction, token):
    parts = parts_of({"x": [0, 1], "y": [1, 2]})
    assert [part.name for part in parts] == ["x", "x+y", "y"]
    sums = [sums_of(seed, num_examples=seed + 1, num_tokens=10 - 3 * seed) for seed in range(3)]
    assembled = assembly(tmp_path, parts, reduction=reduction)
    assert take_all(assembled, sums) == [[], ["x"], ["y"]]
    for name, mine in (("x", sums[:2]), ("y", sums[1:])):
        written = PileAverage.load(tmp_path / "gradients" / f"{name}.safetensors")
        divisor = sum(part.totals.num_tokens if token else part.totals.num_examples for part in mine)
        for parameter in SHAPES:
            expected = sum(part.buffers[parameter].double() for part in mine) / divisor
            torch.testing.assert_close(written[parameter].double(), expected, rtol=1e-6, atol=1e-7)
        num_tokens = sum(part.totals.num_tokens for part in mine)
        assert written.metadata["num_examples"] == str(sum(part.totals.num_examples for part in mine))
        assert written.metadata["num_tokens"] == str(num_tokens)
        loss = sum(part.totals.token_loss_sum for part in mine) / num_tokens
        assert float(written.metadata["mean_token_loss"]) == pytest.approx(loss, rel=1e-12)


def test_float64_sums_are_added_in_float64(tmp_path):
    """A million and a thousandth: the second would be lost between the parts in float32."""
    parts = parts_of({"x": [0, 1], "y": [1]})
    large, small = sums_of(0, dtype=torch.float64), sums_of(1, dtype=torch.float64)
    for sums, value in ((large, 1e6), (small, 1e-3)):
        sums.buffers = {name: torch.full(shape, value, dtype=torch.float64) for name, shape in SHAPES.items()}
    assembled = assembly(tmp_path, parts)
    list(assembled.take(0, large, described))
    ((_, average),) = [found for found in assembled.take(1, small, described) if found[0] == X]
    torch.testing.assert_close(
        average["w"], torch.full((4, 3), (1e6 + 1e-3) / 6, dtype=torch.float64), rtol=1e-15, atol=0
    )


def test_losses_along_a_path_add_up_too(tmp_path):
    sums = [sums_of(0, objectives=[1.0, 2.0, 5.0], along_path=0.5), sums_of(1, objectives=[3.0, 4.0, 6.0])]
    assembled = assembly(tmp_path, parts_of({"x": [0, 1], "y": [1]}))
    take_all(assembled, sums)
    said = PileAverage.load(tmp_path / "gradients" / "x.safetensors").metadata
    found = [float(said[key]) for key in ("loss_at_base", "loss_at_anchor", "along_path")]
    assert found == pytest.approx([4 / 6, 11 / 6, 0.5 / 6], rel=1e-12)


def test_halves_and_second_moments_have_their_own_directories(tmp_path):
    parts = parts_of({"x": [0, 1]}, halves=True, fisher="x")
    sums = [sums_of(0), sums_of(1), sums_of(2, num_examples=4)]
    assembled = assembly(tmp_path, parts, reduction="token")
    assert take_all(assembled, sums) == [["x-1"], ["x-2", "x"], ["fisher"]]
    assembled.clean()
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    halves = {f"gradients/halves/x-{half}.safetensors" for half in (1, 2)}
    assert files == {"gradients/x.safetensors", "second_moments/fisher.safetensors", *halves}
    fisher = SecondMoment.load(tmp_path / "second_moments" / "fisher.safetensors")
    for name in SHAPES:
        assert torch.equal(fisher[name], sums[2].buffers[name] / 4)  # over examples, whatever the reduction
    half = PileAverage.load(tmp_path / "gradients" / "halves" / "x-2.safetensors")
    assert torch.equal(half["w"], sums[1].buffers["w"] / 7)


def test_what_is_written_is_known_by_its_digest(tmp_path):
    parts = parts_of({"x": [0], "y": [1, 2], "z": [2]})
    sums, assembled = [sums_of(seed) for seed in range(3)], assembly(tmp_path, parts)
    assert [part.name for part in parts] == ["x", "y", "y+z"]
    assert [assembled.has(index) for index in range(3)] == [False, False, False]
    list(assembled.take(0, sums[0], described))
    assert [assembled.has(index) for index in range(3)] == [True, False, False]
    list(assembled.take(1, sums[1], described))
    assert [assembled.has(index) for index in range(3)] == [True, True, False]  # by the part alone
    assert not (tmp_path / "gradients" / "y.safetensors").exists()
    list(assembled.take(2, sums[2], described))
    assembled.clean()
    assert [assembled.has(index) for index in range(3)] == [True, True, True]  # by the averages alone
    assert hidden(tmp_path) == []
    other = assembly(tmp_path, parts, digests=["digest-0", "digest-1", "other"])
    assert [other.has(index) for index in range(3)] == [True, False, False]


def test_a_sums_digest_changes_with_any_of_its_parts():
    parts = parts_of({"x": [0, 1], "y": [1]})
    seen = {assembly(None, parts, digests=list(digests)).digest(X) for digests in ("ab", "cb", "ad", "ba")}
    assert len(seen) == 4
    assert assembly(None, parts, digests=["a", "b"]).digest(Y) == "b"
    assert assembly(None, parts, digests=["c", "b"]).digest(Y) == "b"


def test_a_part_of_another_configuration_is_refused(tmp_path):
    parts = parts_of({"x": [0, 1], "y": [1]})
    list(assembly(tmp_path, parts).take(0, sums_of(0), described))
    other = assembly(tmp_path, parts, digests=["other", "digest-1"])
    with pytest.raises(ValueError, match=r"another configuration, data set or model \(digest-0, this run is other\)"):
        other.has(0)
    assert not other.has(1)
    (tmp_path / "gradients" / ".x.0.part").write_text("cut")
    with pytest.raises(ValueError, match="is not readable .*--overwrite true"):
        assembly(tmp_path, parts).has(0)


def test_clean_removes_parts_once_all_is_written_and_not_before(tmp_path):
    parts = parts_of({"x": [0, 1], "y": [1, 2]})
    assembled, sums = assembly(tmp_path, parts), [sums_of(seed) for seed in range(3)]
    take_all(assembled, sums[:2])
    assembled.clean()
    assert hidden(tmp_path) == [".x+y.1.part", ".x.0.part"]
    list(assembled.take(2, sums[2], described))
    assembled.clean()
    assert hidden(tmp_path) == []


def test_killed_between_the_parts_and_their_sum_it_is_written_later(tmp_path):
    parts, sums = parts_of({"x": [0, 1], "y": [1, 2]}), [sums_of(seed) for seed in range(3)]
    whole = assembly(tmp_path / "whole", parts)
    take_all(whole, sums)
    for index, each in enumerate(sums):  # the parts' sums are saved, and then the process is gone
        each.save(assembly(tmp_path / "cut", parts).part_path(index), work_digest=f"digest-{index}")
    resumed = assembly(tmp_path / "cut", parts)
    assert all(resumed.has(index) for index in range(3))
    assert [wanted for wanted, _ in resumed.write_complete(described, list(resumed.sums))] == [X, Y]
    assert list(resumed.write_complete(described, list(resumed.sums))) == []
    for name in ("x", "y"):
        ours, theirs = (PileAverage.load(tmp_path / d / "gradients" / f"{name}.safetensors") for d in ("cut", "whole"))
        assert ours.metadata == theirs.metadata
        assert all(torch.equal(ours[parameter], theirs[parameter]) for parameter in theirs)
    resumed.clean()
    assert hidden(tmp_path / "cut") == []


def test_a_sum_waits_for_all_of_its_parts_in_any_order(tmp_path):
    assembled = assembly(tmp_path, parts_of({"x": [0, 1, 2], "y": [1], "z": [2]}))
    assert [part.name for part in assembled.parts] == ["x", "x+y", "x+z"]
    orders = [[wanted.name for wanted, _ in assembled.take(index, sums_of(index), described)] for index in (2, 0, 1)]
    assert orders == [["z"], [], ["y", "x"]]


def test_long_names_make_no_long_file_names(tmp_path):
    name = "a" * 60
    sums = tuple(Wanted(f"{name}{index}", f"{name}{index}") for index in range(5))
    assembled = assembly(tmp_path, [Part(sums), Part(sums[:1])])
    assert len(assembled.part_path(0).name) < 100
    assert assembled.part_path(0) != assembled.part_path(1)
