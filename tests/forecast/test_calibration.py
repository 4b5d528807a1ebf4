"""Slopes of vectors by plain autograd in float64, and realised shifts by hand and by simulation."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_forecasting import Bigram
from test_scoring import autograd_derivatives, direction_of
from tiny_models import tiny_llama

from gradsteer.attribution.pile_partition import halves_of_prompts
from gradsteer.data.chat import EncodedExample
from gradsteer.data.piles import Pile
from gradsteer.evaluation.realised_shift import realised_shift
from gradsteer.evaluation.statistics import design_effect, expanded
from gradsteer.forecast.calibration import Calibration
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.forecast.slopes import CrossFittedSlopes, has_both_halves, why_not_calibrate
from gradsteer.steering.weight_steering import steered
from gradsteer.trainer.callbacks.vectors import VectorWriter
from gradsteer.trainer.vector_slopes import VectorSlopes
from gradsteer.vectors.contrast import Contrast
from gradsteer.vectors.parameter_vectors import SteeringVector


def pile_of(name, examples, prompts, how=(1.0, 1.0)) -> Pile:
    number = len(examples)
    return Pile(
        name, list(examples), [f"{name}.jsonl:{line + 1}" for line in range(number)], list(prompts),
        sorted(set(prompts)), num_considered=number, sampled=[True] * number, responses=list(examples),
        sampling=[how] * number,
    )  # fmt: skip


def random_piles(number, *, how=(1.0, 1.0), prompts=8, seed=0, vocabulary=61):
    generator = torch.Generator().manual_seed(seed)
    piles = []
    for name in ("plus", "minus"):
        examples, digests = [], []
        for index in range(number):
            length = int(torch.randint(4, 10, (1,), generator=generator))
            ids = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
            examples.append(EncodedExample(ids, [-100, -100, *ids[2:]]))
            digests.append(f"{index % prompts:016x}")
        piles.append(pile_of(name, examples, digests, how))
    return piles


def slopes_of(model, piles, **options):
    def scorer(examples, temperature, top_p):
        return ResponseScorer(model, examples, temperature=temperature, top_p=top_p)

    return CrossFittedSlopes(model, halves_of_prompts(piles), scorer, **options)


def slope_of(model, plus, minus, halves):
    return slopes_of(model, [plus, minus]).of(plus, minus, halves)


def anchors_nuclei(model, examples, temperature, top_p):
    """(response, step) -> the tokens of the anchor's nucleus, and the response's own."""
    found = {}
    for index, example in enumerate(examples):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([example.input_ids])).logits[0].double() / temperature
        places = [place for place, label in enumerate(example.labels) if label != -100 and place > 0]
        for step, place in enumerate(places):
            probabilities = logits[place - 1].softmax(-1)
            order = probabilities.argsort(descending=True)
            count = 1 + int((probabilities[order].cumsum(0)[:-1] < top_p).sum())
            found[index, step] = sorted({*order[:count].tolist(), example.labels[place]})
    return found


# --- the cross-fitted slope ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.9), (0.6, 0.9)])
def test_the_slope_is_half_of_both_inner_products(temperature, top_p):
    """S of each half by plain autograd: mean of grad -log p over PLUS less over MINUS; its inner product with V."""
    model = tiny_llama(initializer_range=0.3)
    plus, minus = random_piles(14, how=(temperature, top_p))
    halves = direction_of(model, seed=1), direction_of(model, seed=2)
    found = slope_of(model, plus, minus, halves)
    half_of, terms, errors = halves_of_prompts([plus, minus]), [], []
    for half in (1, 2):
        means, parts = [], {}
        for pile in (plus, minus):
            mine = [index for index, prompt in enumerate(pile.prompts) if half_of[prompt] == half]
            examples = [pile.examples[index] for index in mine]
            nuclei = None if top_p == 1 else anchors_nuclei(model, examples, temperature, top_p)
            each = autograd_derivatives(model, halves[2 - half], examples, temperature, nuclei)
            means.append(each.mean())
            sign = 1 if pile is plus else -1
            for index, value in zip(mine, each, strict=True):
                prompt = pile.prompts[index]
                parts[prompt] = parts.get(prompt, 0.0) + sign * (value - each.mean()) / len(each)
        terms.append(means[0] - means[1])
        number = len(parts)
        errors.append(math.sqrt(number / (number - 1) * sum(part**2 for part in parts.values())))
    scale = max(map(abs, terms))
    assert found.halves == pytest.approx(terms, abs=5e-3 * scale)
    assert found.slope == pytest.approx(sum(terms) / 2, abs=5e-3 * scale)
    assert found.standard_error == pytest.approx(math.hypot(*errors) / 2, rel=1e-2)
    assert (found.temperature, found.top_p, found.num_plus, found.num_minus) == (temperature, top_p, 14, 14)


def test_the_temperature_and_the_nucleus_matter():
    model = tiny_llama(initializer_range=0.3)
    halves = direction_of(model, seed=1), direction_of(model, seed=2)
    found = [slope_of(model, *random_piles(14, how=how), halves).slope for how in [(1.0, 1.0), (0.6, 1.0), (1.0, 0.5)]]
    assert abs(found[1] / found[0] - 1) > 0.05
    assert abs(found[2] / found[0] - 1) > 0.01


def test_each_half_is_scored_along_the_other_halfs_vector():
    model = tiny_llama(initializer_range=0.3)
    plus, minus = random_piles(14)
    one, two = direction_of(model, seed=1), direction_of(model, seed=2)
    both, swapped = slope_of(model, plus, minus, (one, two)), slope_of(model, plus, minus, (two, one))
    same = slope_of(model, plus, minus, (one, one)), slope_of(model, plus, minus, (two, two))
    assert both.halves == pytest.approx((same[1].halves[0], same[0].halves[1]), rel=1e-3)  # other steps
    assert swapped.halves == pytest.approx((same[0].halves[0], same[1].halves[1]), rel=1e-3)
    assert both.halves != pytest.approx(swapped.halves, rel=0.01)


@pytest.mark.slow
def test_the_standard_error_is_near_the_bootstraps():
    model = tiny_llama(initializer_range=0.3)
    plus, minus = random_piles(160, prompts=80)
    halves = direction_of(model, seed=1), direction_of(model, seed=2)
    found, half_of, generator = (
        slope_of(model, plus, minus, halves),
        halves_of_prompts([plus, minus]),
        np.random.default_rng(0),
    )
    variance = 0.0
    for half in (1, 2):
        each, prompts = [], sorted(prompt for prompt, number in half_of.items() if number == half)
        for pile in (plus, minus):
            mine = [index for index, prompt in enumerate(pile.prompts) if half_of[prompt] == half]
            values = autograd_derivatives(model, halves[2 - half], [pile.examples[index] for index in mine])
            sums = np.zeros((len(prompts), 2))
            for index, value in zip(mine, values, strict=True):
                sums[prompts.index(pile.prompts[index])] += value, 1
            each.append(sums)
        counts = generator.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), size=2000)
        (a, b), (c, d) = ((counts @ sums).T for sums in each)
        variance += np.var(a / b - c / d)
    assert found.standard_error == pytest.approx(math.sqrt(variance) / 2, rel=0.1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_linear_softmax_shifts_by_what_was_computed(temperature):
    """Replies of one token: -alpha <S, V> is the change of the log-odds for any alpha, not only to first order."""
    model = Bigram()
    piles = [
        pile_of(
            name, [EncodedExample([3, token], [-100, token])] * 6, [f"{i:016x}" for i in range(6)], (temperature, 1.0)
        )
        for name, token in (("plus", 0), ("minus", 1))
    ]
    generator = torch.Generator().manual_seed(3)
    one, two = (
        SteeringVector({"head.weight": torch.randn(6, 6, generator=generator, dtype=torch.float64)}) for _ in range(2)
    )
    found = slope_of(model, *piles, (one, two))
    whole = (one + two) * 0.5
    column = whole["head.weight"][:, 3] / temperature
    assert found.slope == pytest.approx(-float(column[0] - column[1]), rel=1e-9)
    assert found.standard_error < 1e-9

    def log_odds():
        logits = model.head.weight.detach()[:, 3] / temperature
        return float(logits[0] - logits[1])

    before = log_odds()
    for alpha in (2.0, -0.5, found.alpha(-0.75)):
        with steered(model, whole, alpha):
            assert log_odds() - before == pytest.approx(found.shift(alpha), rel=1e-9)
    assert found.shift(found.alpha(-0.75)) == pytest.approx(-0.75)


def test_a_half_without_responses_is_refused():
    model = tiny_llama()
    plus, minus = random_piles(8)
    half_of = halves_of_prompts([plus, minus])
    kept = [index for index, prompt in enumerate(plus.prompts) if half_of[prompt] == 1]
    fewer = pile_of("plus", [plus.examples[i] for i in kept], [plus.prompts[i] for i in kept])
    assert has_both_halves(plus, minus, [plus, minus])
    assert not has_both_halves(fewer, minus, [fewer, minus])
    assert not has_both_halves(minus, fewer, [fewer, minus])
    halves = direction_of(model, seed=1), direction_of(model, seed=2)
    with pytest.raises(ValueError, match="the PLUS class has no response"):
        slope_of(model, fewer, minus, halves)
    with pytest.raises(ValueError, match="the vector is zero"):
        slope_of(model, plus, minus, (halves[0], halves[1] * 0.0))
    plus.sampling = [None] * 8
    with pytest.raises(ValueError, match="pile 'plus' does not say at which temperature and top_p its responses were"):
        slope_of(model, plus, minus, halves)


def test_why_a_slope_is_not_taken():
    plus, minus = random_piles(20)
    assert why_not_calibrate([plus, minus]) is None
    assert (
        why_not_calibrate([plus, minus], num_responses=21) == "pile 'plus' holds 20 responses; at least 21 are wanted"
    )
    minus.sampled[3] = False
    assert why_not_calibrate([plus, minus]) == "pile 'minus' holds texts, not sampled responses with token ids"
    minus.sampled[3], minus.sampling[3] = True, None
    assert (
        why_not_calibrate([plus, minus]) == "the responses do not say at which temperature and top_p they were sampled"
    )
    minus.sampling[3] = (0.5, 1.0)
    assert why_not_calibrate([plus, minus]) == "the responses were sampled in 2 ways: (0.5, 1.0), (1.0, 1.0)"
    zero = random_piles(20, how=(0.0, 1.0))
    assert (
        why_not_calibrate(zero) == "the responses were sampled at temperature 0: greedy replies have no score function"
    )


def test_no_slope_is_taken_from_responses_of_other_weights():
    plus, minus = random_piles(14)
    halves = direction_of(tiny_llama(), seed=1), direction_of(tiny_llama(), seed=2)
    minus.sampled_from = {"g", "f"}
    trainer = SimpleNamespace(datamodule=SimpleNamespace(piles=[plus, minus], calibrated=("v",)))
    module = SimpleNamespace(fingerprint="f", slope_responses=None, model=None)
    slopes = VectorSlopes(trainer, module, {"v": ("plus", "minus")})
    with pytest.warns(UserWarning, match=r"v: no slope is taken: .* other weights \(g\), the model has fingerprint f"):
        assert slopes.take("v", halves) is None


@pytest.mark.parametrize("options", [{"unit_contrast": True}, {"precondition": "fisher"}])
def test_no_slope_is_taken_of_vectors_whose_halves_have_norms_of_their_own(options, tmp_path, caplog):
    writer = VectorWriter(str(tmp_path), {"v": ["plus", "minus"]}, **options)
    data = SimpleNamespace(calibrated=("v",), sources={"plus": "x", "minus": "y"}, fisher="plus")
    trainer = SimpleNamespace(datamodule=data)
    with pytest.raises(ValueError, match="model.calibrate: no slope is taken with writing.unit_contrast or precondit"):
        writer.setup(trainer, SimpleNamespace(calibrate=True), "test")
    with caplog.at_level("INFO"):
        writer.setup(trainer, SimpleNamespace(calibrate=None), "test")
    assert "no slope is taken with writing.unit_contrast" in caplog.text


# --- what a vector's file says ---------------------------------------------------------------------------------------


def test_a_calibration_is_kept_in_the_metadata(tmp_path):
    made = Calibration(1.25, 0.5, (1.0, 1.5), 0.6, 0.9, 30, 40)
    vector = SteeringVector({"w": torch.ones(2)})
    assert Calibration.read(vector.metadata) is None
    made.write(vector)
    loaded = SteeringVector.load(vector.save(tmp_path / "v.safetensors"))
    assert Calibration.read(loaded.metadata) == made
    judged = Calibration(1.25, 0.5, (1.0, 1.5), 0.6, 0.9, 30, 40, ("f", "g"))
    judged.write(vector)
    assert Calibration.read(vector.metadata) == judged
    said = json.loads(vector.metadata["calibration"])
    del said["judges"]  # a vector of before
    assert Calibration.read({"calibration": json.dumps(said)}) == made


def test_a_slope_says_the_judges_of_its_piles():
    model = tiny_llama(initializer_range=0.3)
    plus, minus = random_piles(8)
    plus.judges, minus.judges = {"second", "first"}, {"first"}
    found = slope_of(model, plus, minus, (direction_of(model, seed=1), direction_of(model, seed=2)))
    assert found.judges == ("first", "second")


@pytest.mark.parametrize(("slope", "error"), [(0.0, 0.0), (1.0, 0.5), (-1.0, 0.6), (1.0, math.nan), (math.nan, 0.1)])
def test_a_slope_that_is_not_told_from_0_gives_no_alpha(slope, error):
    with pytest.raises(ValueError, match="not told from 0: no alpha can be computed from it; use larger piles"):
        Calibration(slope, error, (slope, slope), 1.0, 1.0, 30, 30).alpha(-0.5)


def test_the_sign_of_alpha():
    made = Calibration(2.0, 0.1, (2.0, 2.0), 1.0, 1.0, 30, 30)
    assert made.alpha(-0.5) == 0.25  # a positive alpha reduces the behavior
    assert made.shift(0.25) == -0.5
    assert Calibration(-2.0, 0.1, (-2.0, -2.0), 1.0, 1.0, 30, 30).alpha(-0.5) == -0.25


def test_contrasts_are_read_from_the_piles_verdicts():
    def read(plus, minus, **options):
        return Contrast.read({"plus_where": json.dumps(plus), "minus_where": json.dumps(minus)}, **options)

    found = read({"a": True, "b": False}, {"a": False, "b": True})
    assert found == Contrast({"a": True, "b": False}, {"a": False, "b": True}, "a")
    assert read({"a": True, "b": True}, {"a": False, "b": False}).behavior is None  # two
    assert read({"a": True, "b": True}, {"b": True}).behavior == "a"
    assert read({"a": False}, {"a": True}).behavior is None
    assert read({"a": True}, {"a": False}, behavior="b").behavior == "b"
    assert Contrast.read({"plus_where": "{}"}) == Contrast()
    assert Contrast.read({}, "b") == Contrast({"b": True}, {"b": False}, "b")


# --- what came out ---------------------------------------------------------------------------------------------------


def rows_of(*groups):
    """(prompt, number of PLUS, number of MINUS, number of neither)."""
    return [
        {"prompt": prompt, "verdicts": verdicts}
        for prompt, plus, minus, neither in groups
        for verdicts, number in (({"a": True}, plus), ({"a": False}, minus), ({"a": None}, neither))
        for _ in range(number)
    ]


PLUS, MINUS = {"a": True}, {"a": False}


def test_a_realised_shift_by_hand():
    before = rows_of(("p", 3, 1, 0), ("q", 2, 2, 1), ("r", 1, 3, 0))
    after = rows_of(("p", 1, 3, 0), ("q", 0, 4, 2), ("r", 1, 2, 0))
    found = realised_shift(before, after, PLUS, MINUS)
    # p and q have as many replies after as before, r one less: its replies weigh 6 / 7 before and 8 / 7 after
    weights = np.array([[1, 1], [1, 1], [6 / 7, 8 / 7]])
    table = np.array([[3, 1, 1, 3], [2, 2, 0, 4], [1, 3, 1, 2]]) * weights.repeat(2, axis=1)
    total = table.sum(axis=0) + 0.5
    assert found["log_odds_shift"] == pytest.approx(math.log(total[2] / total[3]) - math.log(total[0] / total[1]))
    counts = {key: found[key] for key in ("num_plus", "num_minus", "num_plus_before", "num_minus_before")}
    assert counts == {"num_plus": 2, "num_minus": 9, "num_plus_before": 6, "num_minus_before": 6}
    weights = np.random.default_rng(0).multinomial(3, np.full(3, 1 / 3), size=2000)
    sums = np.log(weights @ table + 0.5)
    draws = sums[:, 2] - sums[:, 3] - sums[:, 0] + sums[:, 1]
    low, high = np.percentile(draws, [50 * (1 - expanded(3)), 50 * (1 + expanded(3))])
    # fewer than ten of a class, in three prompts and in two: 1 + (12 / 3 - 1) (1 - 2 / 5), 1 + (11 / 3 - 1) (1 - 1 / 5)
    earlier, later = 2.8, 1 + 8 / 3 * 0.8
    sizes = [2 / later, 9 / later, 6 / earlier, 6 / earlier]
    reach = 1.959964 * math.sqrt(sum(1 / (size + 0.5) for size in sizes))
    shift = found["log_odds_shift"]
    assert (found["ci_low"], found["ci_high"]) == pytest.approx((min(low, shift - reach), max(high, shift + reach)))
    mirrored = realised_shift(after, before, PLUS, MINUS)
    assert mirrored["log_odds_shift"] == pytest.approx(-found["log_odds_shift"])


@pytest.mark.parametrize("few", [9, 10])
def test_an_interval_is_never_a_point(few):
    """Both sides are the same replies to the same prompts: all draws of the paired bootstrap agree."""
    rows = rows_of(*((str(prompt), 1, 2, 0) for prompt in range(few)), ("more", 0, 20, 0))
    found = realised_shift(rows, rows, PLUS, MINUS)
    assert found["num_plus"] == few
    values = [*([True, False, False] * few), *[False] * 20]
    effect = design_effect(values, [*(str(p) for p in range(few) for _ in range(3)), *["more"] * 20])
    reach = 1.959964 * math.sqrt(2 / (few / effect + 0.5) + 2 / ((2 * few + 20) / effect + 0.5))
    assert (found["ci_low"], found["ci_high"]) == pytest.approx((-reach, reach))


def test_few_responses_of_a_class_widen_the_interval():
    """One of the class before, ten after: the bootstrap alone does not know how few one is."""
    before = rows_of(("0", 1, 3, 0), *((str(prompt), 0, 4, 0) for prompt in range(1, 20)))
    after = rows_of(*((str(prompt), 1, 3, 0) for prompt in range(20)))
    found = realised_shift(before, after, PLUS, MINUS)
    reach = 1.96 * math.sqrt(1 / (1 / 1 + 0.5) + 1 / (79 + 0.5) + 1 / (20 + 0.5) + 1 / (60 + 0.5))
    assert found["ci_high"] - found["log_odds_shift"] >= reach * 0.99


def test_empty_classes_are_finite_and_no_rows_are_none():
    before, after = rows_of(("p", 3, 1, 0), ("q", 2, 2, 0)), rows_of(("p", 0, 4, 0), ("q", 0, 4, 0))
    for pair in ((before, after), (after, before), (after, after)):
        found = realised_shift(*pair, PLUS, MINUS)
        assert all(math.isfinite(value) for value in found.values())
        assert found["ci_low"] <= found["log_odds_shift"] <= found["ci_high"]
    one = realised_shift(before[:4], after[:4], PLUS, MINUS)  # one prompt
    assert one["ci_low"] <= one["log_odds_shift"] <= one["ci_high"]
    for pair in (([], after), (before, []), ([], [])):
        found = realised_shift(*pair, PLUS, MINUS)
        assert (found["log_odds_shift"], found["ci_low"], found["ci_high"]) == (None, None, None)


def test_a_prompt_is_told_by_its_digest_and_no_shift_is_minus_0():
    before = rows_of(*((f"Question {k}?", 2 + k % 3, 3, 0) for k in range(12)))
    after = rows_of(*((f"Question {k}?", 1 + k % 2, 3, 0) for k in range(12)))
    found = realised_shift(before, after, PLUS, MINUS)
    # other ids, white space and a system message do not make other prompts
    again = [
        {**row, "id": i, "prompt": f"system: Be brief.\nuser: {row['prompt']}" if i % 2 else f" {row['prompt']}\n"}
        for i, row in enumerate(after)
    ]
    assert realised_shift(before, again, PLUS, MINUS) == found
    others = [{**row, "prompt": f"{row['prompt']} {i}"} for i, row in enumerate(after)]
    assert realised_shift(before, others, PLUS, MINUS)["ci_low"] != found["ci_low"]
    for pair in ((before, before), (after[:1], after[:1])):
        assert "-0.0" not in json.dumps({"shift": realised_shift(*pair, PLUS, MINUS)["log_odds_shift"]})


@pytest.mark.slow
@pytest.mark.parametrize("after_logit", [-1.0, pytest.param(0.6, marks=pytest.mark.slow)])
def test_its_interval_covers(after_logit):
    """Prompts that differ, replies to one alike, both conditions on the same prompts: the shift of the pooled odds."""
    generator = np.random.default_rng(0)

    def rates(effects, logit):
        return 1 / (1 + np.exp(-(logit + effects)))

    population = generator.normal(size=400_000)
    pooled = [rates(population, logit).mean() for logit in (0.0, after_logit)]
    truth = math.log(pooled[1] / (1 - pooled[1])) - math.log(pooled[0] / (1 - pooled[0]))
    hits, repetitions = 0, 150
    for _ in range(repetitions):
        effects = generator.normal(size=60)
        sides = []
        for logit in (0.0, after_logit):
            counts = generator.binomial(6, rates(effects, logit))
            sides.append(rows_of(*((str(p), int(count), 6 - int(count), 0) for p, count in enumerate(counts))))
        found = realised_shift(*sides, PLUS, MINUS)
        hits += found["ci_low"] <= truth <= found["ci_high"]
    assert 0.89 <= hits / repetitions <= 0.99
