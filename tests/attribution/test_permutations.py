"""Permuted pile labels: responses dealt by chance, their contrasts against autograd, real piles left alone."""

import math
from collections import Counter
from itertools import combinations

import pytest
import torch
from road import run
from test_attribution_options import encoded, line, models, piles, refused  # noqa: F401 (fixtures)
from test_pile_gradient import autograd_oracle, relative_error
from tiny_models import ragged_examples

from gradsteer.attribution.partial_sums import PartialSum
from gradsteer.attribution.permutations import deal, permuted_parts, sides_of_permutations
from gradsteer.attribution.pile_partition import Permutation, plan_parts
from gradsteer.data.piles import Pile
from gradsteer.trainer.datamodules.piles import PileDataModule
from gradsteer.vectors.parameter_vectors import PileAverage, SteeringVector

EXAMPLES = ragged_examples(9)


def pile(name, numbers):
    return Pile(name, [EXAMPLES[n] for n in numbers], [f"{name}:{n}" for n in numbers], [f"{n:02d}" for n in numbers])


PILES = [pile("x", [0, 1, 2, 3, 4]), pile("y", [4, 5, 6]), pile("z", [7, 8])]
VECTORS = {"v": ["x", "y"], "w": ["z", "x"]}


def numbers(part):
    return [EXAMPLES.index(example) for example in part.examples]


def load(directory, name):
    return SteeringVector.load(directory / "vectors" / f"{name}.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- dealing ---------------------------------------------------------------------------------------------------------


def test_every_response_goes_to_one_side_and_the_sizes_are_kept():
    for index in range(20):
        plus, minus = deal(11, 4, seed=3, vector="v", index=index)
        assert (len(plus), len(minus)) == (4, 7)
        assert sorted(plus + minus) == list(range(11))
        assert plus == sorted(plus)
        assert minus == sorted(minus)


def test_seed_vector_and_index_each_deal_otherwise_and_the_same_way_again():
    first = deal(40, 20, seed=0, vector="v", index=0)
    assert deal(40, 20, seed=0, vector="v", index=0) == first
    for other in ({"seed": 1}, {"vector": "w"}, {"index": 1}):
        assert deal(40, 20, **{"seed": 0, "vector": "v", "index": 0, **other}) != first


def test_the_dealing_is_the_one_that_files_were_made_with():
    """Another one would make a seed mean something else."""
    assert deal(8, 3, seed=0, vector="v", index=0) == ([1, 3, 4], [0, 2, 5, 6, 7])


def test_every_way_to_deal_is_equally_likely():
    counts = Counter(tuple(deal(5, 2, seed=0, vector="v", index=index)[0]) for index in range(2000))
    assert set(counts) == set(combinations(range(5), 2))
    squares = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert squares < 27.9  # the 0.999 quantile of chi squared with 9 degrees of freedom


def test_the_parts_are_dealt_from_the_vectors_two_piles():
    parts = permuted_parts(PILES, VECTORS, 2, seed=5)
    names = [f"permuted-{vector}-{index}-{side}" for index in (0, 1) for vector in "vw" for side in ("plus", "minus")]
    assert [part.name for part in parts] == names
    for plus, minus, (one, other) in zip(parts[::2], parts[1::2], [*VECTORS.values()] * 2, strict=True):
        real = {each.name: each for each in PILES}
        assert (len(plus.examples), len(minus.examples)) == (len(real[one].examples), len(real[other].examples))
        pool = Counter(numbers(real[one])) + Counter(numbers(real[other]))  # one in both piles is there twice
        assert Counter(numbers(plus)) + Counter(numbers(minus)) == pool
        for part in (plus, minus):
            assert part.is_permuted
            assert len(part.sums) == 1
            assert [source.split(":")[1] for source in part.sources] == [str(n) for n in numbers(part)]
            assert part.prompts == [f"{n:02d}" for n in numbers(part)]
    assert parts[1].sums[0].permutation == Permutation("v", "minus", 0, 5)
    assert parts[1].sums[0].pile == "y"


def test_more_permutations_add_parts_at_the_end():
    fewer, more = (permuted_parts(PILES, VECTORS, count) for count in (1, 3))
    assert more[: len(fewer)] == fewer
    assert permuted_parts(PILES, VECTORS, 0) == []


def test_the_sides_of_a_vectors_permutations_are_found_again():
    parts = [*plan_parts(PILES, halves=True, fisher="x"), *permuted_parts(PILES, VECTORS, 3)]
    sums = [wanted for part in parts for wanted in part.sums]
    found = sides_of_permutations(sums, "w")
    assert list(found) == [0, 1, 2]
    for index, (plus, minus) in found.items():
        assert plus.permutation == Permutation("w", "plus", index, 0)
        assert (plus.pile, minus.pile) == ("z", "x")
    assert sides_of_permutations(sums, "u") == {}


# --- through the command line ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def permuted(line, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("permuted")
    run(*line(out, "--data.permutations", 2, "--data.halves", "true"))
    return out


def expected(models, encoded, reduction, index, seed=0):  # noqa: F811
    """Plain autograd in float64 on the dealt responses."""
    pool = [*encoded["x"], *encoded["y"]]
    dealt = deal(len(pool), len(encoded["x"]), seed=seed, vector="v", index=index)
    plus, minus = (autograd_oracle(models["anchor"], [pool[at] for at in side], reduction) for side in dealt)
    return {name: plus[name] - minus[name] for name in plus}


@pytest.mark.parametrize("reduction", ["example", "token", pytest.param("sum", marks=pytest.mark.slow)])
def test_a_permuted_vector_is_the_contrast_of_the_dealt_responses(
    line, models, encoded, permuted, tmp_path, reduction  # noqa: F811
):  # fmt: skip
    out = permuted
    if reduction != "example":
        out = tmp_path
        run(*line(out, "--data.permutations", 2, "--model.reduction", reduction))
    for index in range(2):
        found = load(out, f"permuted/v-{index}")
        assert relative_error(found, expected(models, encoded, reduction, index)) < 1e-6
    assert relative_error(load(out, "permuted/v-0"), load(out, "permuted/v-1")) > 0.1
    assert relative_error(load(out, "permuted/v-0"), load(out, "v")) > 0.1


def test_a_permuted_vector_is_the_sum_of_its_examples_gradients_with_permuted_weights(
    models, encoded, permuted  # noqa: F811
):  # fmt: skip
    """V = sum_r w_r g_r with w_r = 1/n of PLUS or -1/n of MINUS: the weights alone are permuted."""
    pool = [*encoded["x"], *encoded["y"]]
    sizes = [len(encoded["x"]), len(encoded["y"])]
    dealt = deal(len(pool), sizes[0], seed=0, vector="v", index=0)
    weights = {at: sign / size for side, sign, size in zip(dealt, (1, -1), sizes, strict=True) for at in side}
    total = {}
    for at, example in enumerate(pool):
        for name, gradient in autograd_oracle(models["anchor"], [example], "example").items():
            total[name] = total.get(name, 0) + weights[at] * gradient
    assert math.isclose(sum(weights.values()), 0, abs_tol=1e-12)
    assert relative_error(load(permuted, "permuted/v-0"), total) < 1e-6


def test_the_file_says_what_it_is(permuted, encoded):  # noqa: F811
    for index in range(2):
        said = load(permuted, f"permuted/v-{index}").metadata
        assert said["permutation_of"] == "v"
        assert (said["permutation_seed"], said["permutation_index"]) == ("0", str(index))
        assert (said["plus"], said["minus"]) == ("x", "y")
        assert said["plus_num_examples"] == str(len(encoded["x"]))
        assert said["minus_num_examples"] == str(len(encoded["y"]))
        assert not [key for key in said if key.startswith("split_half") or key.endswith("where") or key == "pile"]
        assert said["prompt_digests"] == load(permuted, "v").metadata["prompt_digests"]
    gradient = PileAverage.load(permuted / "gradients" / "permuted" / "v-1-minus.safetensors").metadata
    assert gradient["pile"] == "permuted-v-1-minus"
    assert sorted(path.name for path in (permuted / "vectors" / "permuted").iterdir()) == [
        "v-0.safetensors", "v-1.safetensors"
    ]  # fmt: skip
    assert list((permuted / "gradients").glob(".*")) == []


def test_the_real_vectors_are_bit_identical_without_permutations(line, permuted, tmp_path):  # noqa: F811
    run(*line(tmp_path, "--data.halves", "true"))
    for name in ("gradients/x", "gradients/y", "gradients/halves/x-1", "gradients/halves/y-2"):
        ours, theirs = (PileAverage.load(out / f"{name}.safetensors") for out in (tmp_path, permuted))
        assert same(ours, theirs)
        assert ours.metadata == theirs.metadata
    ours, theirs = load(tmp_path, "v"), load(permuted, "v")
    assert same(ours, theirs)
    assert ours.metadata == theirs.metadata
    assert not (tmp_path / "vectors" / "permuted").exists()
    assert not (tmp_path / "gradients" / "permuted").exists()


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(line, permuted, tmp_path, models, encoded):  # noqa: F811
    run(*line(tmp_path / "again", "--data.permutations", 1))
    assert same(load(tmp_path / "again", "permuted/v-0"), load(permuted, "permuted/v-0"))
    run(*line(tmp_path / "other", "--data.permutations", 1, "--data.permutation_seed", 7))
    other = load(tmp_path / "other", "permuted/v-0")
    assert relative_error(other, expected(models, encoded, "example", 0, seed=7)) < 1e-6
    assert relative_error(other, load(permuted, "permuted/v-0")) > 0.1
    assert other.metadata["permutation_seed"] == "7"


def test_the_contrasts_options_are_the_vectors_own(line, tmp_path):  # noqa: F811
    run(*line(tmp_path, "--data.permutations", 1, "--writing.unit_contrast", "true"))
    sides = [PileAverage.load(tmp_path / "gradients" / "permuted" / f"v-0-{s}.safetensors") for s in ("plus", "minus")]
    wanted = SteeringVector.contrast(*sides, unit=True)
    found = load(tmp_path, "permuted/v-0")
    assert relative_error(found, wanted) < 1e-6
    assert found.metadata["contrast"] == "unit"


def test_more_permutations_do_not_compute_the_piles_again(line, permuted, tmp_path):  # noqa: F811
    run(*line(tmp_path, "--data.permutations", 1, "--data.halves", "true"))
    record = tmp_path / "stages" / "attribute.json"
    record.write_text(record.read_text().replace('"finished": true', '"finished": false'))
    there = [*(tmp_path / "gradients").rglob("*.safetensors")]
    assert len(there) == 2 + 4 + 2
    stamps = {path: path.stat().st_mtime_ns for path in there}
    run(*line(tmp_path, "--data.permutations", 2, "--data.halves", "true"))
    assert {path: path.stat().st_mtime_ns for path in there} == stamps
    for name in ("v", "permuted/v-0", "permuted/v-1"):
        assert same(load(tmp_path, name), load(permuted, name))


@pytest.mark.slow
def test_a_run_that_broke_off_among_the_permutations_goes_on_there(line, permuted, tmp_path):  # noqa: F811
    words = line(
        tmp_path, "--data.permutations", 2, "--data.halves", "true", "--partial_sums.every_minutes", 0,
        "--data.token_budget", 80,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        save = PartialSum.save

        def break_off(self, path, *, work_digest):
            save(self, path, work_digest=work_digest)
            if "permuted-v-1-plus" in path.name:
                raise KeyboardInterrupt

        patch.setattr(PartialSum, "save", break_off)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run(*words)
    assert [path.name for path in (tmp_path / "gradients").glob(".*.partial")]
    assert not (tmp_path / "vectors").exists()
    finished = tmp_path / "gradients" / "permuted" / "v-0-plus.safetensors"
    stamp = finished.stat().st_mtime_ns
    run(*words)
    assert finished.stat().st_mtime_ns == stamp
    for name in ("v", "permuted/v-0", "permuted/v-1"):
        assert same(load(tmp_path, name), load(permuted, name))
    assert list((tmp_path / "gradients").glob(".*")) == []


@pytest.mark.slow
def test_overwriting_leaves_no_null_vectors(line, tmp_path):  # noqa: F811
    run(*line(tmp_path, "--data.permutations", 1))
    run(*line(tmp_path, "--overwrite", "true"))
    assert not list(tmp_path.glob("*/permuted/*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.permutations", "-1"], "data.permutations is -1; accepted: 0 or more"),
        (["--data.permutation_seed", "3"], "data.permutation_seed is 3, which has no effect without data.permutations"),
        (
            ["--data.permutations", "2", "--vectors", "{}"],
            "data.permutations is 2, which has no effect without vectors",
        ),
        (["--data.permutations", "2", "--vectors.v", "[x, q]"], "vector 'v' is ['x', 'q']; accepted: two of the piles"),
    ],
)
def test_permutations_that_cannot_be_are_refused(line, tmp_path, capsys, words, said):  # noqa: F811
    assert said in refused(capsys, *line(tmp_path, *words))
    assert not (tmp_path / "gradients").exists()


def test_a_vector_of_one_pile_is_refused():
    with pytest.raises(ValueError, match=r"vector 'v' is \['x', 'x'\]; accepted: two of the piles"):
        PileDataModule({"x": "x.jsonl"}, permutations=1, vectors={"v": ["x", "x"]})
