"""attribute --model.credit through the real command line, on sampled and judged responses."""

import json
from dataclasses import replace

import pytest
import torch
from judged import lines_of, message_of
from road import run, run_cut_off, write_lines
from test_distributed import check_same_files, check_same_vectors, run_on_two
from test_pile_gradient import relative_error

from gradsteer.attribution.credit import CreditOptions
from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.attribution.pile_partition import halves_of_prompts
from gradsteer.attribution.verdict_prediction import predict_verdicts
from gradsteer.data.chat import EncodedExample, collate, encode_sampled
from gradsteer.data.pile_filters import PileFilter
from gradsteer.data.piles import read_pile
from gradsteer.forecast.calibration import Calibration
from gradsteer.models.loading import load_causal_lm, load_tokenizer
from gradsteer.vectors.parameter_vectors import PileAverage, SteeringVector

pytestmark = [pytest.mark.filterwarnings("ignore:vector a. its")]

SIDES = ("shown", "other")
SCORED = ["--model.reduction", "sum", "--model.temperature", "sampled"]


@pytest.fixture(scope="module")
def responses(judged, tmp_path_factory):
    """A part of the replies, so that each run is short: 12 prompts, up to 10 replies each."""
    rows = lines_of(judged.directory / "responses" / "piles.jsonl")
    kept = [row for row in rows if row["sample"] < 10 and int(row["id"].split("-")[1]) < 12]
    assert all("decided" in row for row in kept)
    return write_lines(tmp_path_factory.mktemp("credit") / "piles.jsonl", kept)


def piles_of(responses, **sides):
    sides = sides or {"shown": {"a": True}, "other": {"a": False}}
    return {name: {"responses": str(responses), "where": where} for name, where in sides.items()}


def words(judged, out, piles, *more, dtype="float64"):
    return [
        "attribute", "--model.model_name_or_path", str(judged.anchor), "--output_dir", str(out), "--trainer.logger",
        "false", "--data.piles", json.dumps(piles), "--vectors.a", "[shown, other]", "--model.dtype", dtype,
        "--data.allow_other_dtype", "true", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def model(judged):
    return load_causal_lm(str(judged.anchor), dtype="float64")


def states_of(model, example):
    """(labelled tokens, hidden size): what predicts each, run alone."""
    hidden = model(torch.tensor([example.input_ids]), output_hidden_states=True).hidden_states[-1][0]
    start = next(place for place, label in enumerate(example.labels) if label != -100)
    return hidden[start - 1 : -1].detach().float().half().numpy()


@pytest.fixture(scope="module")
def foreseeable(model, responses, tmp_path_factory):
    """The same replies; the behavior is a side that the state behind the first token is on, so it can be foreseen."""
    rows = lines_of(responses)
    examples = [encode_sampled(r["prompt_token_ids"], r["token_ids"], "length", loss_mask="assistant") for r in rows]
    sides = [float(states_of(model, example)[min(1, example.num_target_tokens - 1)][0]) for example in examples]
    for row, side in zip(rows, sides, strict=True):
        row.update(verdicts={"a": side > sorted(sides)[len(sides) // 2], "b": False}, decided={})
    return write_lines(tmp_path_factory.mktemp("foreseeable") / "piles.jsonl", rows)


def read(judged, responses):
    tokenizer = load_tokenizer(str(judged.anchor))
    return [
        read_pile(name, PileFilter(**source), tokenizer, until_decided=True)
        for name, source in piles_of(responses).items()
    ]


def contrast(model, piles, weights=None):
    found = []
    for side, pile in enumerate(piles):
        average = PileGradient(model, reduction="sum")
        for index, example in enumerate(pile.examples):
            if weights is not None:
                prompt = len(example.input_ids) - example.num_target_tokens
                every = [1.0] * prompt + weights[side][index].tolist()
                example = EncodedExample(example.input_ids, example.labels, every)
            average.add(collate([example], 0))
        found.append(average.average())
    return {name: tensor - found[1][name] for name, tensor in found[0].items()}


def weighted_half(model, piles, predicted, options, half, half_of):
    """The contrast of one half's replies, with weights from predictions over both piles."""
    numbers, shows = [len(pile.examples) for pile in piles], (True, False)
    rate, start, sides = numbers[0] / sum(numbers), 0, []
    for pile, shown in zip(piles, shows, strict=True):
        odds = predicted.odds[start : start + len(pile.examples)]
        start += len(pile.examples)
        mine = [index for index, prompt in enumerate(pile.prompts) if half_of[prompt] == half]
        weights = [options.weights(odds[index], shows=shown, rate=rate) for index in mine]
        sides.append((replace(pile, examples=[pile.examples[index] for index in mine]), weights))
    return contrast(model, [pile for pile, _ in sides], [weights for _, weights in sides])


def inner(first, second):
    return sum(float((first[name] * tensor).sum()) for name, tensor in second.items())


def credited(model, piles, options):
    """The vector by the formulas, and what was predicted."""
    states = [[states_of(model, example) for example in pile.examples] for pile in piles]
    shows = [True] * len(states[0]) + [False] * len(states[1])
    prompts = [*piles[0].prompts, *piles[1].prompts]
    predicted = predict_verdicts([*states[0], *states[1]], shows, prompts, halves_of_prompts(piles))
    rate = len(states[0]) / len(shows)
    weights = [options.weights(q, shows=s, rate=rate) for q, s in zip(predicted.odds, shows, strict=True)]
    return predicted, contrast(model, piles, [weights[: len(states[0])], weights[len(states[0]) :]])


def test_decided_drops_what_follows_and_says_so(judged, responses, model, tmp_path):
    run(*words(judged, tmp_path, piles_of(responses), *SCORED, "--model.credit", "decided"))
    vector = SteeringVector.load(tmp_path / "vectors" / "a.safetensors")
    piles = read(judged, responses)
    assert piles[0].num_cut > 0
    assert piles[1].num_cut == 0
    assert relative_error(vector, contrast(model, piles)) < 1e-5
    assert vector.metadata["credit"] == "decided"
    assert int(vector.metadata["plus_num_examples"]) == len(piles[0].examples)


def test_predicted_verdicts_weigh_the_tokens_of_vector_and_slope(judged, foreseeable, model, tmp_path, caplog):
    line = words(judged, tmp_path, piles_of(foreseeable), *SCORED, "--data.token_budget", "200")
    run(*line, "--model.credit", "advantage", "--model.advantage_lambda", "0.5", "--model.calibrate", "true")
    vector = SteeringVector.load(tmp_path / "vectors" / "a.safetensors")
    piles = read(judged, foreseeable)
    predicted, expected = credited(model, piles, CreditOptions("advantage", 0.5))
    assert predicted.kept[0] > 0
    assert relative_error(vector, expected) < 1e-4
    assert relative_error(contrast(model, piles), expected) > 0.1
    assert float(vector.metadata["brier_score"]) == pytest.approx(predicted.brier, abs=1e-4)
    assert vector.metadata["advantage_lambda"] == "0.5"
    assert f"verdicts predicted from replies' beginnings: {predicted}" in caplog.text
    # the slope is taken with the baseline's weights, which are unbiased: of the halves, it is an inner product
    slope, half_of = Calibration.read(vector.metadata), halves_of_prompts(piles)
    score, total = CreditOptions("baseline"), 0.0
    for half in (1, 2):
        other = SteeringVector.contrast(
            *(PileAverage.load(tmp_path / "gradients/halves" / f"{name}-{3 - half}.safetensors") for name in SIDES)
        )
        total += inner(weighted_half(model, piles, predicted, score, half, half_of), other) / 2
    assert slope.slope == pytest.approx(total, rel=0.02)


def test_permuted_labels_predict_nothing_and_a_batch_changes_nothing(judged, responses, tmp_path):
    more = [*SCORED, "--model.credit", "baseline", "--model.calibrate", "false", "--data.permutations", "1"]
    found = []
    for name, budget in (("one", "60"), ("two", "4000")):
        line = words(judged, tmp_path / name, piles_of(responses), *more, "--data.token_budget", budget)
        run(*line, "--model.packing", "off" if name == "one" else "auto")
        folder = tmp_path / name / "vectors"
        found.append([SteeringVector.load(folder / file) for file in ("a.safetensors", "permuted/a-0.safetensors")])
    for one, two in zip(*found, strict=True):
        assert relative_error(one, two) < 1e-5
    assert found[0][1].norm() < found[0][0].norm()


@pytest.mark.parametrize(
    ("options", "piles", "said"),
    [
        (["--model.credit", "baseline"], None, "accepted: --model.reduction sum --model.temperature sampled"),
        (["--model.advantage_lambda", "0.5"], None, "model.advantage_lambda is 0.5, which has no effect without"),
        ([*SCORED, "--model.credit", "advantage", "--model.advantage_lambda", "2"], None, "lambda is 2.0; accepted"),
        (["--model.temperature", "-1"], None, "model.temperature is -1.0; accepted: more than 0, or sampled"),
        (
            [*SCORED, "--model.credit", "baseline", "--data.loss_mask", "full"],
            None,
            "accepted: --data.loss_mask assist",
        ),
        (["--model.credit", "decided"], {"shown": {"a": False}, "other": {"b": False}}, "no reply is decided before"),
        (
            [*SCORED, "--model.credit", "baseline"],
            {"shown": {"a": True, "b": False}, "other": {"a": False, "b": False}},
            "judged replies: those in neither or both would bias it",
        ),
        (
            [*SCORED, "--model.credit", "baseline"],
            {"shown": {"a": True}, "other": {"a": False}, "third": {"b": True}},
            "pile 'third' is in 0 vectors",
        ),
    ],
)
def test_what_a_credit_does_not_go_with_is_refused(judged, responses, tmp_path, capsys, options, piles, said):
    line = words(judged, tmp_path, piles_of(responses, **(piles or {})), *options, dtype="float32")
    assert said in message_of(line, capsys)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row.pop("decided"), "does not say where its verdicts were decided"),
        (
            lambda row: row.update(decided={"a": 0}),
            "decided is {'a': 0}; accepted: behaviors with numbers of characters",
        ),
        (lambda row: row.update(top_p=0.9), "temperature 1 and top_p 0.9; accepted: one above 0, and top_p 1"),
        (lambda row: row.pop("temperature"), "does not say its temperature and top_p"),
    ],
)
def test_replies_that_a_credit_cannot_take_are_refused(judged, responses, tmp_path, capsys, change, said):
    rows = lines_of(responses)
    for row in rows:
        change(row)
    piles = piles_of(write_lines(tmp_path / "changed.jsonl", rows))
    line = words(judged, tmp_path, piles, *SCORED, "--model.credit", "decided", dtype="float32")
    assert said in message_of(line, capsys)


ADVANTAGE = [
    *SCORED, "--model.credit", "advantage", "--model.calibrate", "false", "--data.halves", "true",
    "--data.permutations", "1", "--data.token_budget", "300",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(judged, foreseeable, tmp_path_factory):
    """What a run that nothing breaks off writes."""
    out = tmp_path_factory.mktemp("whole")
    run(*words(judged, out, piles_of(foreseeable), *ADVANTAGE, dtype="float32"))
    return out


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_the_same_credit(judged, foreseeable, whole, tmp_path, monkeypatch):
    more = [*ADVANTAGE, "--partial_sums.every_minutes", "0"]
    line = words(judged, tmp_path, piles_of(foreseeable), *more, dtype="float32")
    run_cut_off(line, tmp_path, monkeypatch)
    run(*line)
    names = ("gradients/shown", "gradients/halves/other-2", "vectors/a", "vectors/permuted/a-0")
    check_same_vectors(tmp_path, whole, names)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(240)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_give_what_one_gives(judged, foreseeable, whole, tmp_path, strategy):
    line = words(judged, tmp_path, piles_of(foreseeable), *ADVANTAGE, dtype="float32")
    run_on_two(line, tmp_path, strategy)
    written = [str(path.relative_to(whole)) for path in whole.rglob("*.safetensors")]
    check_same_files(tmp_path / "two", whole, written)
