"""Verdicts predicted from replies' first tokens: right where they can be, and from other prompts' replies alone."""

import numpy as np
import pytest

from gradsteer.attribution.verdict_prediction import predict_verdicts

PROMPTS = [f"p{index // 3}" for index in range(120)]
HALF_OF = {prompt: 1 + int(prompt[1:]) % 2 for prompt in PROMPTS}


@pytest.fixture(scope="module")
def replies():
    """States of which one coordinate is the log-odds of the verdict, clearer with every token."""
    generator = np.random.default_rng(0)
    verdicts = generator.random(len(PROMPTS)) < 0.4
    states = []
    for shows in verdicts:
        length = int(generator.integers(2, 30))
        signal = (2.0 * shows - 1) * np.linspace(0, 3, length) + generator.normal(size=length)
        states.append(np.column_stack([signal, generator.normal(size=(length, 5))]).astype(np.float16))
    return states, verdicts.tolist()


@pytest.fixture(scope="module")
def predictions(replies):
    return predict_verdicts(*replies, PROMPTS, HALF_OF)


def test_what_shows_in_the_states_is_found(replies, predictions):
    states, verdicts = replies
    last = np.array([odds[-1] for odds in predictions.odds])
    assert last[np.array(verdicts)].mean() > 0.8
    assert last[~np.array(verdicts)].mean() < 0.2
    assert [len(odds) for odds in predictions.odds] == [len(each) for each in states]
    rate = np.mean(verdicts)
    assert predictions.constant == pytest.approx(rate * (1 - rate))
    truth = [np.mean((float(v) - odds) ** 2) for v, odds in zip(verdicts, predictions.odds, strict=True)]
    assert predictions.brier == pytest.approx(np.mean(truth))
    assert predictions.brier < 0.7 * predictions.constant
    assert predictions.kept == (2, 2)
    assert "(120 replies): it is used" in str(predictions)


def test_a_replys_own_prompt_and_the_other_half_have_no_part_in_it(replies, predictions):
    states, verdicts = replies
    turned = [not v if p == "p0" or HALF_OF[p] == 2 else v for v, p in zip(verdicts, PROMPTS, strict=True)]
    found = predict_verdicts(states, turned, PROMPTS, HALF_OF)
    own = [index for index, prompt in enumerate(PROMPTS) if prompt == "p0"]
    # the ridge is one of few and is chosen by all of the half: where that stays, nothing else may change
    for index in own:
        assert found.odds[index] == pytest.approx(predictions.odds[index], abs=1e-9)
    others = [index for index, prompt in enumerate(PROMPTS) if HALF_OF[prompt] == 1 and prompt != "p0"]
    assert any(abs(found.odds[index] - predictions.odds[index]).max() > 1e-6 for index in others)


def test_where_nothing_shows_the_rate_is_taken(replies):
    generator = np.random.default_rng(1)
    noise = [generator.normal(size=(4, 60)) for _ in PROMPTS]
    found = predict_verdicts(noise, replies[1], PROMPTS, HALF_OF)
    kept, halves = found.kept
    assert halves == 2
    assert kept < 2
    assert found.brier <= found.constant + 0.01
    assert kept or all(odds == pytest.approx(np.mean(replies[1])) for odds in found.odds)


def test_too_few_of_a_kind_leave_the_rate():
    states = [np.ones((3, 2)) for _ in range(8)]
    found = predict_verdicts(states, [True] + [False] * 7, [f"p{i}" for i in range(8)], {f"p{i}": 1 for i in range(8)})
    assert found.kept == (0, 1)
    assert "it is not used" in str(found)
    assert all(odds == pytest.approx([1 / 8] * 3) for odds in found.odds)
