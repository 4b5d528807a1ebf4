"""Cutting piles into parts: every part summed once, and its sum added to all that it belongs to."""

import random
from collections import Counter

import pytest
from tiny_models import ragged_examples

from gradsteer.attribution.pile_partition import FISHER, Part, Wanted, halves_of_prompts, plan_parts, wanted_sums
from gradsteer.data.piles import Pile

EXAMPLES = ragged_examples(12)


def pile(name, numbers, prompts=None):
    """A pile of numbered examples; the prompt of each is its number by default."""
    prompts = [f"{number:02d}" for number in numbers] if prompts is None else prompts
    return Pile(name, [EXAMPLES[n] for n in numbers], [f"{name}.jsonl:{n}" for n in numbers], list(prompts))


def content(examples):
    return Counter((tuple(example.input_ids), tuple(example.labels)) for example in examples)


def shape(parts):
    """Name and numbers of the examples of every part."""
    return [(part.name, [EXAMPLES.index(example) for example in part.examples]) for part in parts]


def test_piles_that_share_nothing_are_one_part_each_in_their_order():
    piles = [pile("b", [3, 1]), pile("a", [0, 2, 4])]
    parts = plan_parts(piles)
    assert shape(parts) == [("b", [3, 1]), ("a", [0, 2, 4])]
    for part, whole in zip(parts, piles, strict=True):
        assert part.sums == (Wanted(whole.name, whole.name),)
        assert (part.examples, part.sources, part.prompts) == (whole.examples, whole.sources, whole.prompts)
        assert not part.squares


def test_shared_examples_are_a_part_of_their_own():
    parts = plan_parts([pile("x", [0, 1, 2]), pile("y", [2, 3, 0]), pile("z", [0])])
    assert shape(parts) == [("x+y+z", [0]), ("x", [1]), ("x+y", [2]), ("y", [3])]
    assert parts[2].sources == ["x.jsonl:2"]  # of the first pile that has it


def test_examples_are_told_apart_by_their_tokens_and_labels():
    other = Pile("y", [type(EXAMPLES[0])(EXAMPLES[0].input_ids, EXAMPLES[0].input_ids)], ["y:1"], ["00"])
    assert [part.name for part in plan_parts([pile("x", [0]), other])] == ["x", "y"]


def test_an_example_twice_in_a_pile_counts_twice():
    parts = plan_parts([pile("x", [0, 0, 1]), pile("y", [0, 2, 2])])
    assert shape(parts) == [("x+y", [0]), ("x", [0, 1]), ("y", [2, 2])]
    assert shape(plan_parts([pile("x", [0, 0])])) == [("x", [0, 0])]


def test_halves_keep_a_prompts_replies_together_in_every_pile():
    piles = [pile("x", [0, 1, 2, 3], ["p", "q", "p", "r"]), pile("y", [4, 5, 6], ["q", "r", "s"])]
    half_of = halves_of_prompts(piles)
    assert set(half_of) == {"p", "q", "r", "s"}
    assert half_of == halves_of_prompts(piles[::-1])
    for part in plan_parts(piles, halves=True):
        (half,) = {wanted.half for wanted in part.sums} - {None}
        assert {half_of[prompt] for prompt in part.prompts} == {half}
        assert Wanted(f"{part.sums[0].pile}-{half}", part.sums[0].pile, half) in part.sums


@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_halves_are_balanced(count):
    generator = random.Random(count)
    numbers = [generator.randrange(12) for _ in range(40)]
    prompts = [f"{generator.randrange(count):04x}" for _ in numbers]
    sizes = Counter(halves_of_prompts([pile("x", numbers, prompts)]).values())
    assert set(sizes) <= {1, 2}
    assert 0 <= sizes[1] - sizes[2] <= 1
    assert sum(sizes.values()) == len(set(prompts))


def test_the_names_leave_out_a_pile_where_its_half_is_named():
    parts = plan_parts([pile("x", [0, 1]), pile("y", [1])], halves=True)
    assert [part.name for part in parts] == ["x-1", "x-2+y-2"]
    whole, half, other = Wanted("x", "x"), Wanted("x-1", "x", 1), Wanted("y", "y")
    assert Part((whole, half, other)).name == "x-1+y"
    assert Part((whole, other)).name == "x+y"


@pytest.mark.parametrize("halves", [True, False])
def test_the_fisher_part_is_the_last_and_has_its_pile_whole(halves):
    piles = [pile("x", [0, 1]), pile("y", [1, 2, 2])]
    parts = plan_parts(piles, halves=halves, fisher="y")
    assert shape(parts[:-1]) == shape(plan_parts(piles, halves=halves))
    assert shape(parts[-1:]) == [(FISHER, [1, 2, 2])]
    assert parts[-1].squares
    assert parts[-1].sums == (Wanted(FISHER, "y", squares=True),)
    assert parts[-1].prompts == piles[1].prompts
    assert wanted_sums(parts)[parts[-1].sums[0]] == [parts[-1]]
    assert not any(part.squares for part in parts[:-1])


def test_a_pile_may_be_called_fisher():
    """Its gradient and the second moment are two sums."""
    parts = plan_parts([pile(FISHER, [0])], fisher=FISHER)
    assert [part.squares for part in parts] == [False, True]
    assert len(wanted_sums(parts)) == 2


def test_a_fisher_pile_that_is_none_of_the_piles_is_refused():
    with pytest.raises(ValueError, match="data.fisher is 'z'; accepted: one of the piles, x, y"):
        plan_parts([pile("x", [0]), pile("y", [1])], fisher="z")


def test_the_sums_name_their_parts_in_order():
    parts = plan_parts([pile("x", [0, 1, 2]), pile("y", [2, 3])])
    sums = {wanted.name: [part.name for part in found] for wanted, found in wanted_sums(parts).items()}
    assert sums == {"x": ["x", "x+y"], "y": ["x+y", "y"]}


@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("seed", range(30))
def test_the_parts_of_a_sum_add_up_to_its_pile(seed, halves):
    """Over random piles, with repeats within and between them, as multisets; and no example is computed twice."""
    generator = random.Random(seed)
    prompt_of = [f"{generator.randrange(6)}" for _ in EXAMPLES]
    piles = []
    for index in range(generator.randrange(1, 5)):
        numbers = [generator.randrange(12) for _ in range(generator.randrange(1, 15))]
        piles.append(pile(f"p{index}", numbers, [prompt_of[number] for number in numbers]))
    parts, half_of = plan_parts(piles, halves=halves), halves_of_prompts(piles)
    assert len({part.sums for part in parts}) == len(parts)
    found = wanted_sums(parts)
    for whole in piles:
        added = [example for part in found[Wanted(whole.name, whole.name)] for example in part.examples]
        assert content(added) == content(whole.examples)
        for half in (1, 2) if halves else ():
            mine = [e for e, p in zip(whole.examples, whole.prompts, strict=True) if half_of[p] == half]
            wanted = Wanted(f"{whole.name}-{half}", whole.name, half)
            assert (wanted in found) == bool(mine)
            added = [(e, p) for part in found.get(wanted, []) for e, p in zip(part.examples, part.prompts, strict=True)]
            assert content(example for example, _ in added) == content(mine)
            assert {half_of[prompt] for _, prompt in added} <= {half}
    most = Counter()
    for whole in piles:
        most |= content(whole.examples)
    assert content(example for part in parts for example in part.examples) == most
    assert shape(parts) == shape(plan_parts(piles, halves=halves))
