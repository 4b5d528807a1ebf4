"""Credit in a world so small that every reply can be listed: the gradient of P(R = 1) is exact."""

import numpy as np
import pytest
import torch
from test_pile_gradient import relative_error
from test_scoring import RESPONSES, encoded, exact_log_probs, small_llama
from tiny_models import ragged_examples

from gradsteer.attribution.credit import CreditOptions
from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.data.chat import EncodedExample, collate
from gradsteer.models.packing import Pack

PROMPT, MARK, TEMPERATURE = [3, 2], 4, 0.6
SHOWS = np.array([MARK in response for response in RESPONSES])  # the behavior: the token 4, anywhere
DECIDED = [response.index(MARK) + 1 if MARK in response else len(response) for response in RESPONSES]
CREDITS = {
    "reply": CreditOptions(),
    "decided": CreditOptions("decided"),
    "baseline": CreditOptions("baseline"),
    "advantage": CreditOptions("advantage", 0.3),
}


@pytest.fixture(scope="module")
def world():
    """The model, every reply's probability, and before each of its tokens that of the behavior."""
    model = small_llama()
    probabilities = np.exp(exact_log_probs(model, PROMPT, TEMPERATURE))
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)

    def odds(start):
        there = np.array([response[: len(start)] == start for response in RESPONSES])
        return probabilities[there & SHOWS].sum() / probabilities[there].sum()

    return model, probabilities, [np.array([odds(r[:t]) for t in range(len(r))]) for r in RESPONSES]


def error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def gradient_of(model, example):
    pile = PileGradient(model, reduction="sum", temperature=TEMPERATURE)
    pile.add(collate([example], 0))
    return torch.cat([tensor.flatten() for tensor in pile.average().values()]).double().numpy()


def contributions(world, credit, predicted=None):
    """(replies, parameters): what each reply adds to S, were it sampled, and S itself by plain autograd."""
    model, probabilities, exact = world
    rate = float(probabilities[SHOWS].sum())
    found = []
    for number, response in enumerate(RESPONSES):
        example = encoded(PROMPT, response)
        count = DECIDED[number] if credit.cuts else len(response)
        weights = np.ones(count)
        if credit.predicts:
            odds = (exact if predicted is None else predicted)[number][:count]
            weights = credit.weights(odds, shows=bool(SHOWS[number]), rate=rate)
        example = example.up_to(len(PROMPT) + count)
        example = EncodedExample(example.input_ids, example.labels, [1.0] * len(PROMPT) + weights.tolist())
        side = 1 / rate if SHOWS[number] else -1 / (1 - rate)
        found.append(side * gradient_of(model, example))
    return np.array(found)


@pytest.fixture(scope="module")
def score(world):
    """``-grad log(P / (1 - P))``: the sum over replies of p(r) grad log p(r), by the same model's own autograd."""
    model, _, _ = world
    total = 0.0
    for number, response in enumerate(RESPONSES):
        if SHOWS[number]:
            ids = torch.tensor([[*PROMPT, *response]])
            logits = model(ids[:, :-1]).logits[0, len(PROMPT) - 1 :] / TEMPERATURE
            total = total + logits.log_softmax(-1).gather(1, ids[0, len(PROMPT) :, None]).sum().exp()
    gradients = torch.autograd.grad(-torch.log(total / (1 - total)), list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients]).numpy()


@pytest.fixture(scope="module")
def found(world):
    return {name: contributions(world, credit) for name, credit in CREDITS.items()}


@pytest.mark.parametrize("name", CREDITS)
def test_every_credit_with_exact_odds_has_the_gradient_of_the_log_odds_for_its_mean(world, score, found, name):
    """Also ``advantage``: what a token does to exact odds is zero on average."""
    assert error(world[1] @ found[name], score) < 1e-5


def test_variances_are_ordered_as_theory_says(world, found):
    """Of whole contributions where tokens are dropped; of the tokens' own weights where odds are predicted."""
    _, probabilities, exact = world
    mean = probabilities @ found["reply"]
    whole, cut, tail = (
        probabilities @ np.square(each).sum(axis=1)
        for each in (found["reply"] - mean, found["decided"] - mean, found["reply"] - found["decided"])
    )
    assert whole == pytest.approx(cut + tail)  # what is dropped has mean zero given the tokens before it
    assert tail > 0.1 * whole
    rate = float(probabilities[SHOWS].sum())

    def mean_square(credit, drops=True):
        """Over all tokens and replies, of (R - b_t) and A_t."""
        total = 0.0
        for number, response in enumerate(RESPONSES):
            count = DECIDED[number] if drops else len(response)
            odds = exact[number][:count] if credit.predicts else np.full(count, rate)
            weights = credit.weights(odds, shows=bool(SHOWS[number]), rate=rate)
            total += probabilities[number] * np.square(weights * (1 - rate if SHOWS[number] else rate)).sum()
        return total

    squares = [mean_square(CREDITS["baseline"]), mean_square(CREDITS["advantage"])]
    squares = [mean_square(CREDITS["reply"], drops=False), mean_square(CREDITS["decided"]), *squares]
    assert all(second < 0.97 * first for first, second in zip(squares, squares[1:], strict=False)), squares


def test_a_baseline_of_wrong_odds_changes_the_variance_and_not_the_mean(world, score):
    """An advantage of wrong odds is biased: that is what lambda trades."""
    rate = float(world[1][SHOWS].sum())
    wrong = [np.full(len(response), 0.5 * rate) + 0.1 * np.arange(len(response)) for response in RESPONSES]
    # odds of the tokens so far alone, as theirs are, and 1 where the behavior is there already: those are not asked for
    assert error(world[1] @ contributions(world, CREDITS["baseline"], wrong), score) < 1e-5
    assert error(world[1] @ contributions(world, CREDITS["advantage"], wrong), score) > 0.01


def test_constant_odds_and_lambda_one_leave_plain_replies():
    for shows in (True, False):
        assert CreditOptions("baseline").weights(np.full(4, 0.3), shows=shows, rate=0.3) == pytest.approx(np.ones(4))
    odds = np.array([0.2, 0.5, 0.4])
    one = CreditOptions("advantage", 1.0).weights(odds, shows=True, rate=0.25)
    assert one == pytest.approx((1 - odds) / 0.75)
    assert CreditOptions("baseline").weights(odds, shows=False, rate=0.25) == pytest.approx(odds / 0.25)
    now = CreditOptions("advantage", 0.0).weights(odds, shows=False, rate=0.25)  # each token's own gain alone
    assert now == pytest.approx(-np.array([0.3, -0.1, -0.4]) / 0.25)


@pytest.mark.parametrize("value", [{"credit": "all"}, {"credit": "advantage", "decay": 1.5}])
def test_other_credits_are_refused(value):
    with pytest.raises(ValueError, match="accepted"):
        CreditOptions(**value)


def test_weights_multiply_each_tokens_loss_whatever_the_batch(llama):
    """Packs, padded batches and parts of them: the gradient of the weighted sum; what weighs nothing is as if cut."""
    examples = ragged_examples(5)
    generator = np.random.default_rng(0)
    weighted = [EncodedExample(e.input_ids, e.labels, generator.normal(size=len(e.labels)).tolist()) for e in examples]
    total = 0.0
    for example in weighted:
        ids = torch.tensor([example.input_ids])
        losses = torch.nn.functional.cross_entropy(llama(ids[:, :-1]).logits[0] / 0.7, ids[0, 1:], reduction="none")
        counted = torch.tensor(example.labels[1:]) != -100
        total = total + (losses * counted * torch.tensor(example.weights[1:])).sum() / len(examples)
    expected = dict(
        zip(dict(llama.named_parameters()), torch.autograd.grad(total, list(llama.parameters())), strict=True)
    )
    batches = {
        "packed": [Pack.of(weighted)], "padded": [collate(weighted, 0)],
        "parts": [Pack.of(weighted).part(0, 2), Pack.of(weighted).part(2, 5)],
    }  # fmt: skip
    for name, several in batches.items():
        for chunk in (None, 3):
            pile = PileGradient(llama, reduction="sum", temperature=0.7, head_chunk=chunk)
            for batch in several:
                pile.add(batch)
            assert relative_error(pile.average(), expected) < 1e-6, (name, chunk)
    plain = PileGradient(llama, reduction="sum", temperature=0.7)
    plain.add(collate(examples, 0))
    assert plain.totals.token_loss_sum == pytest.approx(pile.totals.token_loss_sum)  # the loss is told without weights


@pytest.mark.parametrize("reduction", ["example", "token", "sum"])
def test_decided_is_the_gradient_of_the_cut_replies(llama, reduction):
    whole = ragged_examples(4)
    cut = [example.up_to(len(example.input_ids) - 1) for example in whole]
    sums = []
    for batch in (Pack.of(cut), collate([EncodedExample(e.input_ids, [*e.labels[:-1], -100]) for e in whole], 0)):
        pile = PileGradient(llama, reduction=reduction)
        pile.add(batch)
        sums.append(pile.average())
    assert relative_error(*sums) < 1e-6
