"""The arithmetic of scripts/bench_replies.py, on values whose answer is known."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from tiny_models import ragged_examples, tiny_llama

from gradsteer.models.batches import BatchLayout

SIZES = [100, 200, 400, 800]


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("replies", "rare")]:
        del sys.modules[name]


def share(num_replies, noise):
    """Of the limit, for a vector that is S and noise whose square is `noise / num_replies` of that of S."""
    return 1 / np.sqrt(1 + noise / num_replies)


def test_replies_needed_are_read_off_a_curve_whose_noise_falls_with_their_number():
    from replies.tables import replies_for

    curve = [share(size, 30) for size in SIZES]
    for number in (40, 100, 333, 799):
        assert replies_for(share(number, 30), SIZES, curve) == pytest.approx(number)
    assert np.isnan(replies_for(share(801, 30), SIZES, curve))


def test_half_the_noise_needs_half_the_replies_and_intervals_are_students():
    from replies.gains import CREDITS
    from replies.tables import Values

    limits = {(0, "a"): 20.0, (1, "a"): 25.0, (2, "a"): 30.0}
    rows = [
        {"seed": seed, "topic": "a", "size": size, "draw": draw, "credit": credit, "gain": limit * of(seed, size, draw)}
        for (seed, _), limit in limits.items()
        for size in SIZES
        for credit in CREDITS
        for draw in range(2 if credit == "sum at T" else 1)
        for of in [lambda seed, size, draw, noise=15 if credit == "decided" else 30: share(size, noise)]
    ]
    values = Values(rows, limits)
    assert values.needed(100, "decided", ["a"]) == pytest.approx((200, 200, 200))
    assert np.isnan(values.needed(800, "decided", ["a"])[0])
    assert values.mean(200, "baseline", ["a"]) == pytest.approx([share(200, 30)] * 3)
    assert values.above_sum(200, "decided", ["a"]) == pytest.approx([share(200, 15) - share(200, 30)] * 3)
    limits[0, "a"] = 22.0  # the finetunes differ now: t(2) = 4.303
    shares = share(200, 30) * np.array([20 / 22, 1, 1])
    half = 4.302653 * shares.std(ddof=1) / np.sqrt(3)
    expected = shares.mean(), shares.mean() - half, shares.mean() + half
    assert Values(rows, limits).mean(200, "baseline", ["a"]) == pytest.approx(expected)


def test_the_limit_is_without_the_noise_of_the_blocks():
    from replies.gains import limit

    blocks = np.concatenate([np.full((4, 1), 3.0), 100 * np.eye(4)], axis=1)  # S is 3 along the first axis
    assert limit(blocks)[0] == pytest.approx(3)
    assert np.linalg.norm(blocks.mean(axis=0)) > 49


def test_sums_of_disjoint_replies_add_up_to_those_of_all():
    from replies.gains import PLAIN, Sums, contrast
    from replies.organism import Reply

    model, examples = tiny_llama(), ragged_examples(6)
    organism = SimpleNamespace(model=model, layout=lambda replies: BatchLayout(False, None, model.device))
    replies = [Reply(bool(i % 2), i, str(i), example, example) for i, example in enumerate(examples)]

    def sums(chosen):
        return Sums(organism, chosen, [reply.whole for reply in chosen], PLAIN["example, T = 1"], lambda *_: None)

    together = contrast([sums(replies)])
    np.testing.assert_allclose(contrast([sums(replies[:2]), sums(replies[2:])]), together, rtol=1e-4, atol=1e-6)
    assert np.linalg.norm(together) > 0


def test_a_line_that_was_cut_is_measured_again(tmp_path):
    from replies.kept import Kept

    file = tmp_path / "values.jsonl"
    Kept(file).add([{"seed": 0, "draw": 0}, {"seed": 0, "draw": 1}])
    file.write_text(file.read_text()[:-3])
    kept = Kept(file)
    assert kept.has(seed=0, draw=0)
    assert not kept.has(seed=0, draw=1)
    kept.add([{"seed": 0, "draw": 1}])
    assert [json.loads(line)["draw"] for line in file.read_text().splitlines()] == [0, 1]


def test_steps_of_all_vectors_have_one_norm(tmp_path):
    from replies.pretrained import Made, write_doses

    made = [
        Made("bridge", name, f"{name}.safetensors", 0.1, norm, (1, 1), (9, 9), None)
        for name, norm in (("a", 0.5), ("b", 8))
    ]
    write_doses(made, tmp_path / "steer.yaml", -0.06, -0.02)
    steering = yaml.safe_load((tmp_path / "steer.yaml").read_text())["steering"]
    assert steering["alphas"] == {"bridge-a": [-0.12], "bridge-b": [-0.0075]}
    assert steering["kl_budgets"] == [-0.02]
