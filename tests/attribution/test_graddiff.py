"""GradDiff in several steps, against a loop of plain autograd in float64."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from conftest import rest_slow
from road import run
from test_attribution_module import assert_as_before, trainer_of
from test_attribution_options import encoded, line, models, piles, refused  # noqa: F401 (fixtures)
from test_pile_gradient import autograd_oracle, relative_error
from tiny_models import ragged_examples, tiny_llama

from gradsteer.attribution.graddiff import ContrastGradient, graddiff
from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.data.chat import collate
from gradsteer.models.fingerprints import weights_digest
from gradsteer.models.loading import load_causal_lm
from gradsteer.models.packing import Pack
from gradsteer.steering.weight_steering import steered
from gradsteer.trainer.callbacks.graddiff import GradDiffBaseline
from gradsteer.trainer.callbacks.vectors import VectorWriter
from gradsteer.trainer.datamodules.piles import PileDataModule
from gradsteer.trainer.modules.attribution import AttributionModule
from gradsteer.vectors.parameter_vectors import SteeringVector
from gradsteer.vectors.weight_diff import named_weights

PLUS, MINUS = ragged_examples(5, seed=1), ragged_examples(3, seed=2)


def hand_loop(model, plus, minus, steps, alpha, reduction="example"):
    """theta_k - theta_0 by k plain full-batch steps; the model ends where the steps end."""
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for _ in range(steps):
        up, down = (autograd_oracle(model, examples, reduction) for examples in (plus, minus))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight += alpha / steps * (up[name] - down[name])
    return {name: weight.detach() - before[name] for name, weight in model.named_parameters()}


def in_batches(examples, size=2):
    cuts = [examples[start : start + size] for start in range(0, len(examples), size)]
    return [(cut, [str(index) for index, _ in enumerate(cut)]) for cut in cuts]


def contrast_of(model, *, make_batch=None, reduction="example", **options):
    pile = PileGradient(model, reduction=reduction)
    make_batch = make_batch or (lambda examples: collate(list(examples), 0))
    return ContrastGradient(pile, make_batch, in_batches(PLUS), in_batches(MINUS), **options)


def load(directory, name):
    return SteeringVector.load(directory / "vectors" / f"{name}.safetensors")


# --- the steps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["example", "token", "sum"])
def test_the_contrast_is_that_of_two_averages(reduction):
    model = tiny_llama()
    up, down = (autograd_oracle(model, examples, reduction) for examples in (PLUS, MINUS))
    contrast = contrast_of(model, reduction=reduction)
    for _ in range(2):  # nothing is left of an earlier call
        assert relative_error(contrast(), {name: up[name] - down[name] for name in up}) < 1e-6
    losses = []
    for examples in (PLUS, MINUS):
        pile = PileGradient(model)
        pile.add(collate(examples, 0))
        losses.append(pile.totals.mean_token_loss)
    assert list(contrast.losses.values()) == pytest.approx(losses, rel=1e-6)
    assert list(contrast.losses) == ["plus", "minus"]


@pytest.mark.parametrize(
    ("steps", "alpha", "packs"),
    rest_slow(
        [(3, -0.5, True), (3, 2.0, False), (1, 2.0, True)]
        + [(1, 2.0, False), (1, -0.5, True), (1, -0.5, False)]
        + [(2, alpha, packs) for alpha in (2.0, -0.5) for packs in (True, False)]
        + [(3, 2.0, True), (3, -0.5, False)],
        kept=3,
    ),
)
def test_k_steps_equal_a_plain_loop_in_float64(steps, alpha, packs):
    model, before = tiny_llama(), tiny_llama()
    expected = hand_loop(tiny_llama(), PLUS, MINUS, steps, alpha)
    ticks, numbers = [], []
    contrast = contrast_of(model, make_batch=Pack.of if packs else None, tick=lambda: ticks.append(1))
    found = graddiff(model, contrast, steps=steps, alpha=alpha, after_step=numbers.append)
    assert relative_error({name: alpha * tensor for name, tensor in found.items()}, expected) < 1e-6
    assert len(ticks) == steps * 5
    assert numbers == list(range(1, steps + 1))
    for ours, theirs in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    if steps > 1:  # the way bends: otherwise the steps would be V again
        single = hand_loop(tiny_llama(), PLUS, MINUS, 1, alpha)
        assert relative_error(expected, single) > 1e-3


def test_steering_at_the_same_alpha_is_where_the_steps_end():
    model, ended = tiny_llama(), tiny_llama()
    hand_loop(ended, PLUS, MINUS, 3, 1.5)
    found = SteeringVector(graddiff(model, contrast_of(model), steps=3, alpha=1.5))
    with steered(model, found, 1.5):
        for ours, theirs in zip(model.parameters(), ended.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_a_known_first_contrast_is_not_computed_again():
    model, calls = tiny_llama(), []
    contrast = contrast_of(model)
    first = {name: tensor.clone() for name, tensor in contrast().items()}

    def counted():
        calls.append(1)
        return contrast()

    one = graddiff(model, counted, steps=1, alpha=0.3, first=first)
    assert not calls
    assert all(torch.equal(one[name], first[name]) for name in first)
    three = graddiff(model, counted, steps=3, alpha=0.3, first=first)
    assert len(calls) == 2
    assert relative_error(three, graddiff(model, contrast, steps=3, alpha=0.3)) < 1e-12


def test_the_weights_come_back_when_a_step_raises():
    model, before = tiny_llama(), weights_digest(named_weights(tiny_llama()))
    contrast, calls = contrast_of(model), []

    def failing():
        calls.append(weights_digest(named_weights(model)))
        if len(calls) == 2:
            raise OSError("disk full")
        return contrast()

    with pytest.raises(OSError, match="disk full"):
        graddiff(model, failing, steps=3, alpha=0.3)
    assert calls[0] == before != calls[1]
    assert weights_digest(named_weights(model)) == before


def test_half_precision_steps_are_summed_in_float32():
    """Steps below the weights' own rounding add up: each is computed from the anchor's weights."""
    model = tiny_llama(dtype=torch.bfloat16)
    found = graddiff(model, contrast_of(model), steps=4, alpha=0.1)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    theirs = tiny_llama(dtype=torch.bfloat16).double()
    exact = hand_loop(theirs, PLUS, MINUS, 4, 0.1)
    assert relative_error({name: 0.1 * tensor for name, tensor in found.items()}, exact) < 0.05


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0, "alpha": 1.0}, "steps is 0; accepted: 1 or more"),
        ({"steps": 2, "alpha": 0.0}, "alpha is 0.0; accepted: a finite number other than 0"),
        ({"steps": 2, "alpha": float("nan")}, "alpha is nan; accepted: a finite number other than 0"),
    ],
)
def test_steps_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        graddiff(tiny_llama(), dict, **options)


def test_steps_that_run_away_say_so():
    with pytest.raises(ValueError, match=r"GradDiff's step 1 of 2 to alpha 1 is not finite: lower alpha"):
        graddiff(tiny_llama(), lambda: {"model.norm.weight": torch.full((16,), float("inf"))}, steps=2, alpha=1.0)


# --- through the command line ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stepped(line, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("stepped")
    run(*line(out, "--graddiff.steps", "[1, 3]", "--graddiff.alpha", 0.5))
    return out


def test_one_step_is_the_vector_itself(stepped):
    one, vector = load(stepped, "graddiff/v-1"), load(stepped, "v")
    assert one.keys() == vector.keys()
    assert all(torch.equal(one[name], vector[name]) for name in vector)


def test_three_steps_equal_a_plain_loop(experiment, stepped, encoded):  # noqa: F811
    model = load_causal_lm(str(experiment / "anchor"), dtype="float64")
    expected = hand_loop(model, encoded["x"], encoded["y"], 3, 0.5)
    found = load(stepped, "graddiff/v-3")
    assert relative_error(0.5 * found, expected) < 1e-6
    assert relative_error(found, load(stepped, "v")) > 1e-3
    said, of_vector = found.metadata, load(stepped, "v").metadata
    assert (said["graddiff_steps"], said["graddiff_alpha"]) == ("3", "0.5")
    own = {"graddiff_steps", "graddiff_alpha", "work_digest"}
    assert {key: value for key, value in said.items() if key not in own} == of_vector


def test_a_negative_alpha_and_the_reduction_are_heeded(experiment, line, encoded, tmp_path):  # noqa: F811
    words = ["--graddiff.steps", "[2]", "--graddiff.alpha", "-0.05", "--model.reduction", "sum"]
    run(*line(tmp_path, *words, "--model.packing", "off"))
    model = load_causal_lm(str(experiment / "anchor"), dtype="float64")
    expected = hand_loop(model, encoded["x"], encoded["y"], 2, -0.05, "sum")
    assert relative_error(-0.05 * load(tmp_path, "graddiff/v-2"), expected) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--trainer.precision", "bf16-mixed"], ["--model.dtype", "bfloat16"]])
def test_half_precision_takes_the_steps_at_the_moved_weights(line, tmp_path, options):  # noqa: F811
    words = ["--graddiff.steps", "[3]", "--graddiff.alpha", 1]
    run(*line(tmp_path / "exact", *words))
    dtype = [] if "--model.dtype" in options else ["--model.dtype", "float32"]
    run(*line(tmp_path / "half", *words, *dtype, *options))
    exact, found = (load(tmp_path / out, "graddiff/v-3") for out in ("exact", "half"))
    error, bend = relative_error(found, exact), relative_error(load(tmp_path / "exact", "v"), exact)
    assert error < 0.1 * bend, (error, bend)


def test_alphas_by_vector_name_the_vectors(line, tmp_path):  # noqa: F811
    alphas = '{"w": 0.1}'
    run(*line(tmp_path, "--vectors.w", "[y, x]", "--graddiff.steps", "[2]", "--graddiff.alpha", alphas))
    assert [path.name for path in (tmp_path / "vectors" / "graddiff").iterdir()] == ["w-2.safetensors"]
    assert load(tmp_path, "graddiff/w-2").metadata["graddiff_alpha"] == "0.1"


def test_only_the_chosen_parameters_move(line, tmp_path):  # noqa: F811
    run(*line(tmp_path, "--model.parameters", '["layer:1"]', "--graddiff.steps", "[2]", "--graddiff.alpha", 0.1))
    assert list(load(tmp_path, "graddiff/v-2")) == list(load(tmp_path, "v"))


def test_the_loops_vectors_are_the_same_with_and_without(line, stepped, tmp_path):  # noqa: F811
    run(*line(tmp_path))
    ours, theirs = load(tmp_path, "v"), load(stepped, "v")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not (tmp_path / "vectors" / "graddiff").exists()


def test_the_model_is_bit_for_bit_as_before(experiment, piles, tmp_path):  # noqa: F811
    before = load_causal_lm(str(experiment / "anchor"))
    module = AttributionModule(str(experiment / "anchor"))
    vectors = {"v": ["x", "y"]}
    callbacks = [VectorWriter(str(tmp_path), vectors), GradDiffBaseline(str(tmp_path), vectors, [3], 0.5)]
    data = PileDataModule({name: str(path) for name, path in piles.items()})
    trainer_of(*callbacks).attribute(module, data)
    assert load(tmp_path, "graddiff/v-3").norm() > 0
    assert_as_before(module.model, before)


@pytest.mark.slow
def test_what_is_finished_is_not_computed_again(line, stepped, tmp_path):  # noqa: F811
    words = ["--graddiff.alpha", 0.5, "--graddiff.steps"]
    run(*line(tmp_path, *words, "[3]"))
    record = tmp_path / "stages" / "attribute.json"

    def again(*more):
        record.write_text(record.read_text().replace('"finished": true', '"finished": false'))
        run(*line(tmp_path, *more))

    path = tmp_path / "vectors" / "graddiff" / "v-3.safetensors"
    stamp = path.stat().st_mtime_ns
    again(*words, "[3, 2]")
    assert path.stat().st_mtime_ns == stamp
    assert path.with_name("v-2.safetensors").is_file()
    again(*words[:1], 0.25, "--graddiff.steps", "[3]")  # another alpha
    assert path.stat().st_mtime_ns != stamp
    assert load(tmp_path, "graddiff/v-3").metadata["graddiff_alpha"] == "0.25"
    run(*line(tmp_path, *words, "[3]", "--overwrite", "true"))
    assert [found.name for found in path.parent.iterdir()] == ["v-3.safetensors"]
    ours, theirs = load(tmp_path, "graddiff/v-3"), load(stepped, "graddiff/v-3")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_dry_run_takes_no_steps(line, tmp_path):  # noqa: F811
    run(*line(tmp_path, "--graddiff.steps", "[2]", "--graddiff.alpha", 0.1, "--trainer.fast_dev_run", "true"))
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_the_progress_counts_the_batches(experiment, piles, tmp_path, monkeypatch):  # noqa: F811
    from gradsteer.__main__ import main

    begun, ticks = [], []

    @contextmanager
    def progress(title, total, **options):
        begun.append((title, total))
        yield lambda n=1, note="": ticks.append((n, note))

    monkeypatch.setattr("gradsteer.trainer.callbacks.graddiff.progress", progress)
    words = ["attribute", "--model.model_name_or_path", experiment / "anchor", "--output_dir", tmp_path]
    words += [word for name, path in piles.items() for word in (f"--data.piles.{name}", path)]
    words += ["--vectors.v", "[x, y]", "--graddiff.steps", "[3]", "--graddiff.alpha", 0.1, "--data.token_budget", 80]
    assert main([*map(str, words), "--trainer.logger", "false", "--trainer.accelerator", "cpu"]) == 0
    [(title, total)] = begun
    assert title == "graddiff v-3"
    assert sum(n for n, _ in ticks) == total > 2
    assert [note for _, note in ticks if note][-1] == "step 3 of 3"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--graddiff.steps", "[5]"],
            "graddiff.steps is [5] and graddiff.alpha is not given; accepted: both or neither",
        ),
        (["--graddiff.alpha", "0.1"], "graddiff.alpha is 0.1 and graddiff.steps is not given"),
        (["--graddiff.steps", "[0]", "--graddiff.alpha", "1"], "graddiff.steps is [0]; accepted: one or more"),
        (["--graddiff.steps", "[]", "--graddiff.alpha", "1"], "graddiff.steps is []; accepted: one or more"),
        (["--graddiff.steps", "[2, 2]", "--graddiff.alpha", "1"], "graddiff.steps is [2, 2]; accepted"),
        (["--graddiff.steps", "[2]", "--graddiff.alpha", "0"], "graddiff.alpha of vector 'v' is 0"),
        (["--graddiff.steps", "[2]", "--graddiff.alpha", '{"q": 1}'], "names the vectors ['q']; accepted: of v"),
        (
            ["--graddiff.steps", "[2]", "--graddiff.alpha", "1", "--vectors", "{}"],
            "graddiff.steps has no effect without",
        ),
        (
            ["--graddiff.steps", "[2]", "--graddiff.alpha", "1", "--model.mask_draws", "2"],
            "accepted: without model.path",
        ),
        (["--graddiff.steps", "[2]", "--graddiff.alpha", "1", "--model.loss", "kl"], "accepted: without model.path"),
        (
            ["--graddiff.steps", "[2]", "--graddiff.alpha", "1", "--writing.unit_contrast", "true"],
            "of a plain contrast",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(line, tmp_path, capsys, words, said):  # noqa: F811
    assert said in refused(capsys, *line(tmp_path, *words))
    assert not (tmp_path / "gradients").exists()


def test_several_processes_are_refused():
    callback = GradDiffBaseline("out", {"v": ["x", "y"]}, [2], 0.1)
    with pytest.raises(ValueError, match="graddiff needs one process, this run has 2"):
        callback.setup(SimpleNamespace(world_size=2), None, "test")
    GradDiffBaseline("out").setup(SimpleNamespace(world_size=2), None, "test")  # nothing was asked for
