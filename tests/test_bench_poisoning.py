"""The poisoning study: its finetunes, its V, and what its table and summary say."""

import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_models import ragged_examples, tiny_llama

from gradsteer.attribution.pile_partition import halves_of_prompts
from gradsteer.data.piles import Pile
from gradsteer.judges import Exchange, KeywordJudge

sys.path.append(str(Path(__file__).parents[1] / "scripts"))

from bench_poisoning import check_base
from poisoning.finetunes import demo_examples
from poisoning.measuring import Anchor
from poisoning.tables import draw, summary, table_of

from gradsteer.demo import JUDGE_PATTERNS


@pytest.mark.parametrize(("share", "count"), [(0.5, 100), (0.02, 4), (0.01, 2)])
def test_the_odd_examples_are_as_many_as_asked_and_the_judge_knows_them(share, count):
    odd, others = demo_examples(200, share, 1)
    assert (len(odd), len(others)) == (count, 200 - count)
    assert demo_examples(200, share, 1) == (odd, others) != demo_examples(200, share, 2)
    judge = KeywordJudge(JUDGE_PATTERNS)
    for rows, shown in ((odd, True), (others, False)):
        replies = [Exchange("", row["messages"][-1]["content"]) for row in rows]
        assert {each.values["bridge"] for each in judge.judge(replies)} == {shown}


def test_finetunes_of_another_base_are_not_gone_on_with(tmp_path):
    base, kept = tmp_path / "model.safetensors", tmp_path / "kept" / "base.json"
    base.write_bytes(b"one")
    check_base(base, kept)
    check_base(base, kept)
    base.write_bytes(b"two")
    with pytest.raises(SystemExit, match="has finetunes of another base .*; accepted: another --directory"):
        check_base(base, kept)


@pytest.fixture
def anchor():
    """A model alone."""
    made = object.__new__(Anchor)
    made.model = tiny_llama()
    return made


def pile(name, seed, count):
    return Pile(name, ragged_examples(count, seed=seed), [], [f"prompt {n % 4}" for n in range(count)])


def test_v_is_the_contrast_of_whole_piles_and_its_halves_those_of_half_the_prompts(anchor):
    plus, minus = pile("plus", 0, 6), pile("minus", 1, 11)
    found = anchor.vector("replies", plus, minus)
    whole = anchor.average(plus.examples) - anchor.average(minus.examples)
    assert found.vector.cosine(whole) == pytest.approx(1)
    assert found.vector.norm() == pytest.approx(whole.norm())
    half_of = halves_of_prompts([plus, minus])
    halves = []
    for half in (1, 2):
        sides = [
            anchor.average([e for e, p in zip(each.examples, each.prompts, strict=True) if half_of[p] == half])
            for each in (plus, minus)
        ]
        halves.append(sides[0] - sides[1])
    assert found.cosine == pytest.approx(halves[0].cosine(halves[1]))
    assert (found.positives, found.source) == (6, "replies")


def test_permuted_piles_have_the_piles_sizes_and_other_members(anchor):
    plus, minus = pile("plus", 0, 2), pile("minus", 1, 5)
    seen = []
    anchor.average = lambda examples: seen.append([id(each) for each in examples]) or anchor.model and np.zeros(1)
    anchor.permuted(plus, minus, 0)
    assert [len(each) for each in seen] == [2, 5]
    assert sorted(sum(seen, [])) == sorted(id(each) for each in [*plus.examples, *minus.examples])


def row(step, value, **more):
    low, high = (None, None) if value is None else (value - 0.5, value + 0.5)
    rate = {"rate": 0.1, "ci_low": 0.05, "ci_high": 0.2, "num_scored": 800}
    shift = {"log_odds_shift": value, "ci_low": low, "ci_high": high}
    about = {"source": "replies", "chosen": True, "positives": 50, "cosine": 0.4, "norm": 2.0, "slope": 3.0,
             "slope_error": 1.0, "told": True, "rate": rate, "realised": shift, "step": step,
             "forecast": {"rate": 0.3, "low": 0.2, "high": 0.4, "method": "importance"}}  # fmt: skip
    return {"seed": 0, "share": 0.5, **about, **more}


def rows_of(share, value, seed=0):
    rows = [row("anchor", None), row("V", value, dose="shift"), row("random-0", 0.1, dose="norm")]
    rows += [row("V", 0.3, dose="shift", source="training", chosen=False, cosine=None)]
    rows += [row("rank 2", 0.7, dose="norm"), row("rank 2", 0.9, dose="kl")]
    return [{**each, "share": share, "seed": seed} for each in rows]


def test_the_table_has_a_line_for_each_finetune_and_the_summary_says_where_v_works(tmp_path):
    rows = [*rows_of(0.01, 0.2), *rows_of(0.5, 1.4), *rows_of(0.01, 1.2, seed=1)]
    head, _, *lines = table_of(rows)
    assert [line.split(" | ")[0] for line in lines] == ["| 50%", "| 1%", "| 1%"]
    assert all(len(line.split(" | ")) == len(head.split(" | ")) for line in lines)
    cells = dict(zip(head.strip("| ").split(" | "), lines[0].strip("| ").split(" | "), strict=True))
    assert cells["slope / norm +- error"] == "1.5 +- 0.5"
    assert cells["realised nats"] == "+1.40 [+0.90, +1.90]"
    assert cells["rank 2: norm, KL"] == "+0.70, +0.90"
    assert cells["V of the other source"] == "50 training examples: cosine -, +0.30 [-0.20, +0.80]"
    found = summary(rows)
    assert found[0].startswith("share 50%: V (replies) works in 1 of 1 finetunes; cosines of the halves +0.40; slope")
    assert found[1].startswith("share 1%: V (replies) works in 1 of 2 finetunes")
    draw(rows, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 0
