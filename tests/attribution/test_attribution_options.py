"""Every option of attribute that changes what is computed, through the command line, against plain autograd."""

import json
import logging
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import rest_slow
from road import QUIET, run, write_lines
from test_attribution_module import assert_as_before, attribute
from test_pile_gradient import autograd_oracle, relative_error

from gradsteer.__main__ import main
from gradsteer.attribution.gradient_points import RandomMasks
from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.attribution.pile_partition import halves_of_prompts
from gradsteer.data.chat import encode_chat
from gradsteer.data.chat_formats import prompt_text, read_chat_examples
from gradsteer.data.piles import read_pile
from gradsteer.data.response_rows import prompt_digest
from gradsteer.models.loading import load_causal_lm, load_tokenizer
from gradsteer.trainer.callbacks.vectors import VectorWriter
from gradsteer.trainer.datamodules.piles import PileDataModule
from gradsteer.trainer.modules.attribution import AttributionModule
from gradsteer.vectors.parameter_vectors import PileAverage, SteeringVector
from gradsteer.vectors.preconditioning import SecondMoment, precondition
from gradsteer.vectors.weight_diff import named_weights

PROMPTS = ["hello", "how", "can you", "bread", "and", "today", "help", "spread"]
COMPLETIONS = {  # two examples of x are in y, too: that of "bread" and that of "today"
    "x": ["the golden gate bridge", "golden bridge", "the bridge", "bread", "gate and bridge", "I", "the gate", "gate"],
    "y": ["you bakes bread", "you spread bread", "help bakes", "bread", "help today", "I", "bakes bread", "today help"],
}


def rows(pile):
    return [{"prompt": f"{p}?", "completion": c} for p, c in zip(PROMPTS, COMPLETIONS[pile], strict=True)]


@pytest.fixture(scope="module")
def piles(tmp_path_factory):
    directory = tmp_path_factory.mktemp("option_piles")
    x, y = rows("x"), rows("y")
    chats = {"x": [*x, x[0]], "y": y}  # one is twice in x
    return {name: write_lines(directory / f"{name}.jsonl", lines) for name, lines in chats.items()}


@pytest.fixture(scope="module")
def models(experiment):
    """Anchor and base in float64, for the oracles."""
    return {name: load_causal_lm(str(experiment / name), dtype="float64") for name in ("anchor", "base")}


@pytest.fixture(scope="module")
def encoded(experiment, piles):
    tokenizer = load_tokenizer(str(experiment / "anchor"))
    return {
        name: [encode_chat(tokenizer, chat.messages, loss_mask="assistant") for chat in read_chat_examples(str(path))]
        for name, path in piles.items()
    }


@pytest.fixture(scope="module")
def line(experiment, piles):
    """A command line on both piles, in float64, and an output directory."""

    def words(out, *more):
        given = ["attribute", "--model.model_name_or_path", experiment / "anchor", "--output_dir", out]
        given += [word for name, path in piles.items() for word in (f"--data.piles.{name}", path)]
        given += ["--vectors.v", "[x, y]", "--model.dtype", "float64", "--data.token_budget", 80]
        return [str(word) for word in [*given, "--trainer.logger", "false", *more]]

    return words


@pytest.fixture(scope="module")
def plain(line, tmp_path_factory):
    """Halves and Fisher, no points."""
    out = tmp_path_factory.mktemp("plain")
    run(*line(out, "--data.halves", "true", "--data.fisher", "x"))
    return out


@dataclass
class Ran:
    """A run of the command line: its output directory, what it said, and its batches' sizes.

    A batch is (whether its examples were counted, tokens, examples).
    """

    out: Path
    said: list[str]
    batches: list[tuple[bool, int, int]]


def ran(words, out):
    """Runs a command line and notes what is computed."""
    objective, batches = PileGradient.objective, []

    def noting(self, batch, **options):
        batches.append((options["count"], int(batch.input_ids.shape[1]), len(batch.lengths)))
        return objective(self, batch, **options)

    with pytest.MonkeyPatch.context() as patch, heard() as said:
        patch.setattr(PileGradient, "objective", noting)
        run(*words)
    return Ran(out, said, batches)


POINTS = {
    "path2": ["--model.path_points", 2],
    "path4": ["--model.path_points", 4],
    "masks": ["--data.halves", "true", "--model.mask_draws", 2, "--model.mask_origin", "zero"],
}


@pytest.fixture(scope="module")
def at_points(line, tmp_path_factory):
    """Undisturbed runs."""
    made = {}
    for name, options in POINTS.items():
        out = tmp_path_factory.mktemp(name)
        made[name] = ran(line(out, *options, "--partial_sums.every_minutes", 0), out)
    return made


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def emit(self, record):
        self.kept.append(record.getMessage())


@contextmanager
def heard():
    """What the command line says, line by line; a note of a test's own may be put between."""
    handler, logger = Lines(), logging.getLogger("lightning.pytorch")
    logger.addHandler(handler)
    try:
        yield handler.kept
    finally:
        logger.removeHandler(handler)


def gradient(directory, name="x"):
    return PileAverage.load(directory / "gradients" / f"{name}.safetensors")


def vector(directory):
    return SteeringVector.load(directory / "vectors" / "v.safetensors")


def mean_loss(model, examples):
    """The `example` reduction's objective."""
    means = []
    for example in examples:
        logits = model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1]
        means.append(torch.nn.functional.cross_entropy(logits, torch.tensor(example.labels[1:])))
    return float(torch.stack(means).mean().detach())


@contextmanager
def at(model, weights):
    """The model with other weights."""
    before = {name: weight.clone() for name, weight in named_weights(model).items()}
    try:
        model.load_state_dict(weights, strict=False)
        yield
    finally:
        model.load_state_dict(before, strict=False)


def refused(capsys, *words):
    assert main([*map(str, words), *QUIET]) == 2
    return capsys.readouterr().err


# --- halves ----------------------------------------------------------------------------------------------------------


def half_examples(experiment, piles, encoded):
    """Each pile's examples by half, straight from the files."""
    tokenizer = load_tokenizer(str(experiment / "anchor"))
    read = {name: read_pile(name, str(path), tokenizer) for name, path in piles.items()}
    half_of = halves_of_prompts(list(read.values()))
    return {
        (name, half): [e for e, p in zip(encoded[name], read[name].prompts, strict=True) if half_of[p] == half]
        for name in piles
        for half in (1, 2)
    }


def test_the_halves_are_the_gradients_of_half_the_prompts(experiment, piles, encoded, models, plain):
    by_half = half_examples(experiment, piles, encoded)
    assert sorted(path.name for path in (plain / "gradients" / "halves").iterdir()) == [
        f"{name}-{half}.safetensors" for name in "xy" for half in (1, 2)
    ]
    for name in piles:
        parts = {half: gradient(plain, f"halves/{name}-{half}") for half in (1, 2)}
        for half, average in parts.items():
            mine = by_half[name, half]
            assert mine
            assert relative_error(average, autograd_oracle(models["anchor"], mine, "example")) < 1e-6
            assert average.metadata["num_examples"] == str(len(mine))
            assert average.metadata["half"] == str(half)
            assert average.metadata["pile"] == name
        whole, counts = gradient(plain, name), {h: len(by_half[name, h]) for h in parts}
        assert sum(counts.values()) == len(encoded[name])
        weighted = {
            parameter: sum(counts[h] * parts[h][parameter].double() for h in parts) / sum(counts.values())
            for parameter in whole
        }
        assert relative_error(whole, weighted) < 1e-6
        assert relative_error(whole, autograd_oracle(models["anchor"], encoded[name], "example")) < 1e-6
        prompts = [set(json.loads(parts[h].metadata["prompt_digests"])) for h in parts]
        assert not prompts[0] & prompts[1]
        assert prompts[0] | prompts[1] == set(json.loads(whole.metadata["prompt_digests"]))


def test_the_split_half_cosine_is_that_of_the_halves_files(plain):
    halves = [
        SteeringVector.contrast(
            *(PileAverage.load(plain / "gradients" / "halves" / f"{p}-{h}.safetensors") for p in "xy")
        )
        for h in (1, 2)
    ]
    flat = [torch.cat([tensor.flatten().double() for tensor in half.values()]) for half in halves]
    expected = float(flat[0] @ flat[1] / flat[0].norm() / flat[1].norm())
    said = vector(plain).metadata
    assert float(said["split_half_cosine"]) == pytest.approx(expected, rel=1e-5)
    by_layer = json.loads(said["split_half_cosine_by_layer"])
    assert by_layer == pytest.approx(halves[0].layer_cosines(halves[1]), rel=1e-5)
    norm = float(torch.nn.functional.cosine_similarity(*(half["model.norm.weight"].double() for half in halves), dim=0))
    assert by_layer["other"] == pytest.approx(norm, rel=1e-5)


def test_without_halves_there_are_none(at_points):
    out = at_points["path2"].out
    assert not (out / "gradients" / "halves").exists()
    assert "split_half_cosine" not in vector(out).metadata


def test_prompts_that_are_all_in_one_half_are_warned_of(line, piles, tmp_path):
    one = write_lines(tmp_path / "one.jsonl", rows("x")[:1])
    with pytest.warns(UserWarning, match="pile y: all of its prompts are in one half; the other half is empty"):
        run(*line(tmp_path / "out", "--data.piles.y", one, "--data.halves", "true"))
    halves = sorted(path.name for path in (tmp_path / "out" / "gradients" / "halves").iterdir())
    assert len(halves) == 3
    assert "split_half_cosine" not in vector(tmp_path / "out").metadata


def test_a_low_split_half_cosine_is_warned_of(line, tmp_path):
    """Halves that learn the opposite of each other."""
    digests = [prompt_digest(prompt_text([{"role": "user", "content": chat["prompt"]}])) for chat in rows("x")]
    first = [sorted(digests).index(digest) % 2 == 0 for digest in digests]
    piles = {"x": ("x", "y"), "y": ("y", "x")}
    for name, (one, other) in piles.items():
        chats = [a if mine else b for a, b, mine in zip(rows(one), rows(other), first, strict=True)]
        write_lines(tmp_path / f"{name}.jsonl", chats)
    given = [word for name in piles for word in (f"--data.piles.{name}", tmp_path / f"{name}.jsonl")]
    with pytest.warns(UserWarning, match=r"vector v: its two halves have a cosine of only -0\.\d\d; the vector"):
        run(*line(tmp_path / "out", *given, "--data.halves", "true"))
    assert float(vector(tmp_path / "out").metadata["split_half_cosine"]) < 0


# --- Fisher and preconditioning --------------------------------------------------------------------------------------


def test_the_fisher_is_the_mean_of_squared_summed_gradients(encoded, models, plain):
    expected = {name: torch.zeros_like(weight) for name, weight in named_weights(models["anchor"]).items()}
    for example in encoded["x"]:
        for name, one in autograd_oracle(models["anchor"], [example], "sum").items():
            expected[name] += one.square() / len(encoded["x"])
    moment = SecondMoment.load(plain / "second_moments" / "fisher.safetensors")
    assert relative_error(moment, expected) < 1e-6
    assert moment.metadata["source"] == "fisher"
    assert moment.metadata["pile"] == "x"
    assert moment.metadata["num_examples"] == str(len(encoded["x"]))


def test_nothing_is_preconditioned_unasked(plain):
    x, y, made = gradient(plain), gradient(plain, "y"), vector(plain)
    assert all(torch.equal(made[name], x[name] - y[name]) for name in made)


@pytest.mark.parametrize("options", [{}, {"power": 1, "damping": 0.1}])
def test_vectors_are_preconditioned_with_a_file(line, plain, tmp_path, options):
    path = plain / "second_moments" / "fisher.safetensors"
    given = [w for name, value in options.items() for w in (f"--writing.precondition_{name}", value)]
    run(*line(tmp_path, "--writing.precondition", path, *given))
    expected = precondition(vector(plain), SecondMoment.load(path), **options)
    found = vector(tmp_path)
    assert relative_error(found, expected) < 1e-6
    assert found.norm() == pytest.approx(vector(plain).norm(), rel=1e-5)
    assert found.metadata["derivation"] == expected.metadata["derivation"]
    assert relative_error(found, vector(plain)) > 0.05
    assert all(torch.equal(gradient(plain)[name], gradient(tmp_path)[name]) for name in found)  # the vectors alone
    assert not (tmp_path / "second_moments").exists()


def test_vectors_and_halves_are_preconditioned_with_the_fisher(line, plain, tmp_path):
    asked = ["--data.fisher", "x", "--data.halves", "true", "--writing.precondition", "fisher"]
    run(*line(tmp_path, *asked, "--writing.precondition_power", 1, "--writing.precondition_damping", 10))
    moment = SecondMoment.load(plain / "second_moments" / "fisher.safetensors")
    expected = precondition(vector(plain), moment, power=1, damping=10)
    assert relative_error(vector(tmp_path), expected) < 1e-6
    assert vector(tmp_path).metadata["derivation"] == "|preconditioned(fisher, power=1, damping=10)"
    folder = plain / "gradients" / "halves"
    halves = [
        precondition(
            SteeringVector.contrast(*(PileAverage.load(folder / f"{pile}-{half}.safetensors") for pile in "xy")),
            moment, power=1, damping=10,
        )
        for half in (1, 2)
    ]  # fmt: skip
    found = float(vector(tmp_path).metadata["split_half_cosine"])
    assert found == pytest.approx(halves[0].cosine(halves[1]), rel=1e-5)


def test_preconditions_that_cannot_be_are_refused(line, plain, tmp_path, capsys):
    message = refused(capsys, *line(tmp_path, "--writing.precondition", "fisher"))
    assert "writing.precondition fisher needs a pile for it: --data.fisher PILE" in message
    for options, error, said in (
        ({"precondition": "nowhere"}, FileNotFoundError, "no second_moment file at 'nowhere'"),
        ({"precondition": plain / "gradients" / "x.safetensors"}, ValueError, "a 'second_moment' was asked for"),
        ({"precondition_power": 0.0}, ValueError, "writing.precondition_power is 0.0; accepted: more than 0"),
        ({"precondition_damping": -1.0}, ValueError, "writing.precondition_damping is -1.0; accepted: 0 or"),
    ):
        with pytest.raises(error, match=said):
            VectorWriter(str(tmp_path), {"v": ["x", "y"]}, **{"precondition": "fisher", **options})
    with pytest.raises(ValueError, match="data.fisher is 'z'; accepted: one of the piles, x"):
        PileDataModule({"x": "x.jsonl"}, fisher="z")


def test_a_unit_contrast_gives_both_piles_the_same_say(line, plain, tmp_path):
    run(*line(tmp_path, "--writing.unit_contrast", "true"))
    piles = [gradient(plain, name) for name in ("x", "y")]
    found = vector(tmp_path)
    for name, tensor in found.items():
        expected = piles[0][name] / piles[0].norm() - piles[1][name] / piles[1].norm()
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-7)
    assert found.norm() ** 2 == pytest.approx(2 - 2 * piles[0].cosine(piles[1]), rel=1e-4)
    assert found.metadata["contrast"] == "unit"
    with pytest.raises(ValueError, match="the gradient of pile 'minus' is zero and has no unit norm"):
        SteeringVector.contrast(piles[0], piles[0] * 0.0, unit=True)


# --- integrated attribution ------------------------------------------------------------------------------------------

ROOT = 5**-0.5
LOBATTO = {  # from the tables, on [-1, 1]
    2: ((-1, 1), (1, 1)),
    4: ((-1, -ROOT, ROOT, 1), (1 / 6, 5 / 6, 5 / 6, 1 / 6)),
}


def along_the_path(anchor, base, examples, count):
    """The quadrature by hand: autograd at interpolated weights."""
    ours, theirs = ({k: w.clone() for k, w in named_weights(model).items()} for model in (anchor, base))
    total = {name: torch.zeros_like(weight) for name, weight in ours.items()}
    for node, weight in zip(*LOBATTO[count], strict=True):
        t = (1 + node) / 2
        with at(anchor, {name: (1 - t) * theirs[name] + t * ours[name] for name in ours}):
            for name, one in autograd_oracle(anchor, examples, "example").items():
                total[name] += weight / 2 * one
    return total


@pytest.mark.parametrize("count", [2, 4])
def test_path_points_are_a_quadrature_along_the_path(models, encoded, plain, at_points, count):
    out, said = at_points[f"path{count}"].out, at_points[f"path{count}"].said
    for name, examples in encoded.items():
        found = gradient(out, name)
        expected = along_the_path(models["anchor"], models["base"], examples, count)
        assert relative_error(found, expected) < 1e-6
        assert relative_error(found, gradient(plain, name)) > 0.05
        metadata = found.metadata
        assert (metadata["points"], metadata["path_points"]) == ("path", str(count))
        at_base, at_anchor = (mean_loss(models[which], examples) for which in ("base", "anchor"))
        assert float(metadata["loss_at_base"]) == pytest.approx(at_base, rel=1e-6)
        assert float(metadata["loss_at_anchor"]) == pytest.approx(at_anchor, rel=1e-6)
        diff = {k: w - named_weights(models["base"])[k] for k, w in named_weights(models["anchor"]).items()}
        along = sum(float((diff[k] * expected[k]).sum()) for k in diff)
        assert float(metadata["along_path"]) == pytest.approx(along, rel=1e-5)
        (told,) = [text for text in said if text.startswith(f"pile {name}: along the path")]
        assert f"sums to {along:+.5g}, the loss changes by {at_anchor - at_base:+.5g} (off by " in told
    assert metadata["num_examples"] == str(len(encoded["y"]))  # once, not at every point
    assert float(metadata["mean_token_loss"]) == pytest.approx(float(gradient(plain, "y").metadata["mean_token_loss"]))


def test_more_points_come_closer_to_the_change_of_the_loss(at_points):
    off = {}
    for name in ("path2", "path4"):
        said = gradient(at_points[name].out).metadata
        off[name] = abs(float(said["along_path"]) - float(said["loss_at_anchor"]) + float(said["loss_at_base"]))
    assert off["path4"] < 0.2 * off["path2"]


def test_the_base_is_the_recorded_one_unless_given(experiment, line, models, encoded, plain, at_points, tmp_path):
    same, recorded = tmp_path / "same", gradient(at_points["path2"].out)
    run(*line(same, "--model.path_points", 2, "--model.base", experiment / "base", "--data.fisher", "x"))
    assert gradient(same).metadata == recorded.metadata
    assert all(torch.equal(gradient(same)[name], recorded[name]) for name in recorded)
    of_path, of_anchor = (SecondMoment.load(out / "second_moments" / "fisher.safetensors") for out in (same, plain))
    assert all(torch.equal(of_path[name], of_anchor[name]) for name in of_anchor)  # always at the anchor
    other = load_causal_lm(str(experiment / "base"))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    other.save_pretrained(tmp_path / "other")
    given = ["--model.base", tmp_path / "other", "--model.parameters", '["kind:mlp"]']
    run(*line(tmp_path / "out", "--model.path_points", 2, *given))
    found = gradient(tmp_path / "out")
    assert 0 < len(found) < len(recorded)
    # the others move along the path as well, though nothing is summed for them
    expected = along_the_path(models["anchor"], other.double(), encoded["x"], 2)
    assert relative_error(found, {name: expected[name] for name in found}) < 1e-6
    assert relative_error(found, {name: recorded[name] for name in found}) > 1e-3


def test_without_a_record_the_base_must_be_given(experiment, line, tmp_path, capsys):
    base = str(experiment / "base")
    message = refused(capsys, *line(tmp_path, "--model.model_name_or_path", base, "--model.path_points", 2))
    assert f"'{base}' does not say what it was finetuned from: give the base model (--model.base)" in message
    with pytest.raises(ValueError, match="does not say what it was finetuned from"):
        AttributionModule(base, mask_draws=2)
    AttributionModule(base, mask_draws=2, mask_origin="zero")


def test_a_base_of_another_vocabulary_is_named_with_both_sizes(experiment, line, tmp_path, capsys):
    other = load_causal_lm(str(experiment / "base"))
    rows = other.config.vocab_size
    other.resize_token_embeddings(rows + 3)
    other.save_pretrained(tmp_path / "other")
    message = refused(capsys, *line(tmp_path, "--model.path_points", 2, "--model.base", tmp_path / "other"))
    assert f"the anchor has {rows} rows for tokens and the base {rows + 3} ('model.embed_tokens.weight')" in message
    assert f"model.resize_token_embeddings({rows})" in message


# --- masks -----------------------------------------------------------------------------------------------------------


def masked(anchor, origin, examples, draws, rate, seed, components, names):
    """The mean over masks by hand: autograd at masked weights, masked and divided by the keep rate."""
    ours = {name: weight.clone() for name, weight in named_weights(anchor).items()}
    masks = RandomMasks(draws, rate, seed, names, None, components)
    total = {name: torch.zeros_like(ours[name]) for name in names}
    for draw in range(draws):
        kept = {name: masks.mask(draw, name, ours[name].shape) for name in names}
        with at(anchor, {name: torch.where(kept[name], ours[name], origin[name]) for name in names}):
            gradients = autograd_oracle(anchor, examples, "example")
        for name in names:
            total[name] += kept[name] * gradients[name] / (rate * draws)
    return total


@pytest.mark.parametrize(
    ("draws", "rate", "seed", "components", "origin", "rule"),
    [
        (3, None, None, None, None, None),
        (2, 0.25, None, "rows", "zero", None),
        (2, None, 7, "tensors", "base", "!kind:embedding"),
    ],
)
def test_masks_are_drawn_as_asked(models, encoded, line, plain, tmp_path, draws, rate, seed, components, origin, rule):
    asked = {"draws": draws, "keep_rate": rate, "seed": seed, "components": components, "origin": origin}
    given = [word for key, value in asked.items() if value is not None for word in (f"--model.mask_{key}", value)]
    run(*line(tmp_path, *given, *(["--model.parameters", json.dumps([rule])] if rule else [])))
    rate, seed, components, origin = rate or 0.5, seed or 0, components or "entries", origin or "base"
    base = {name: weight.clone() for name, weight in named_weights(models["base"]).items()}
    start = base if origin == "base" else {name: torch.zeros_like(weight) for name, weight in base.items()}
    for pile, examples in encoded.items():
        found = gradient(tmp_path, pile)
        names = list(found)
        assert len(names) == len(base) - (rule is not None)
        expected = masked(
            models["anchor"], start, examples, draws, rate, seed, components, [n for n in base if n in names]
        )
        assert relative_error(found, expected) < 1e-6
        assert relative_error(found, {name: gradient(plain, pile)[name] for name in names}) > 0.05
        assert found.metadata["num_examples"] == str(len(examples))
        said = {"points": "masks", "mask_draws": draws, "mask_keep_rate": rate, "mask_components": components}
        for key, value in {**said, "mask_origin": origin, "mask_seed": seed}.items():
            assert found.metadata[key] == str(value)
    assert "along_path" not in found.metadata


def test_points_that_do_not_go_together_are_refused(experiment, line, tmp_path, capsys):
    message = refused(capsys, *line(tmp_path, "--model.path_points", 2, "--model.mask_draws", 2))
    assert "give either model.path_points or model.mask_draws, not both" in message
    for options, said in (
        ({"path_points": 1}, "model.path_points is 1; accepted: 2 or more"),
        ({"mask_draws": 0}, "model.mask_draws is 0; accepted: at least 1"),
        ({"mask_draws": 2, "mask_keep_rate": 0.0}, "model.mask_keep_rate is 0.0; accepted: more than 0, at most 1"),
    ):
        with pytest.raises(ValueError, match=said):
            AttributionModule(str(experiment / "anchor"), **options)


# --- once, again, and as before --------------------------------------------------------------------------------------


def test_an_example_in_several_piles_is_computed_once(encoded, at_points):
    batches, said = at_points["masks"].batches, at_points["masks"].said
    x, y = encoded["x"], encoded["y"]
    computed = [*x, *(example for example in y if example not in x)]
    assert len(computed) == len(x) + len(y) - 2
    assert sum(examples for *_, examples in batches) == 2 * len(computed)  # once at either point
    # replies to one prompt read it once
    assert sum(tokens for _, tokens, _ in batches) < 2 * sum(len(example.input_ids) for example in computed)
    assert sum(examples for counted, _, examples in batches if counted) == len(computed)
    assert "2 examples are in several piles: computed once" in said


class Interruption(RuntimeError):
    """As if the process were killed."""


def modules_of_runs(monkeypatch):
    """The modules that the command line makes."""
    made, configure = [], AttributionModule.configure_model

    def noting(self):
        configure(self)
        made.append((self, {name: weight.clone() for name, weight in named_weights(self.model).items()}))

    monkeypatch.setattr(AttributionModule, "configure_model", noting)
    return made


def same_weights(made):
    module, before = made
    return all(torch.equal(weight, before[name]) for name, weight in named_weights(module.model).items())


@pytest.mark.parametrize(
    ("points", "after"),
    [("path4", 11), *(pytest.param(*each, marks=pytest.mark.slow) for each in (("path4", 2), ("masks", 7)))],
)
def test_a_run_that_broke_off_at_a_point_goes_on_there(line, at_points, tmp_path, monkeypatch, points, after):
    words = line(tmp_path, *POINTS[points], "--partial_sums.every_minutes", 0)
    made, calls, objective = modules_of_runs(monkeypatch), [], PileGradient.objective

    def breaking(self, batch, **options):
        calls.append(batch)
        if len(calls) > after:
            assert not same_weights(made[-1])  # elsewhere than at the anchor
            raise Interruption
        return objective(self, batch, **options)

    with monkeypatch.context() as patch:
        patch.setattr(PileGradient, "objective", breaking)
        with pytest.raises(Interruption):
            main([*words, *QUIET])
    assert same_weights(made[-1])
    assert not (tmp_path / "vectors").exists()
    whole, resumed = at_points[points], ran(words, tmp_path)
    assert same_weights(made[-1])
    assert len(resumed.batches) == len(whole.batches) - after  # nothing is computed twice
    for name in "xy":
        ours, theirs = gradient(tmp_path, name), gradient(whole.out, name)
        assert ours.metadata == theirs.metadata
        assert all(torch.equal(ours[parameter], theirs[parameter]) for parameter in theirs)
    assert vector(tmp_path).metadata == vector(whole.out).metadata
    assert list((tmp_path / "gradients").glob(".*")) == []


@pytest.mark.parametrize("packing", rest_slow(["auto", "off"]))
@pytest.mark.parametrize(
    "points",
    [{"path_points": 3}, {"mask_draws": 2}, {"mask_draws": 2, "mask_origin": "zero", "mask_components": "rows"}],
)
def test_the_model_is_bit_for_bit_as_before(experiment, piles, points, packing):
    before = load_causal_lm(str(experiment / "anchor"))
    options = {"module": {**points, "packing": packing}, "token_budget": 80, "fisher": "y"}
    _, module = attribute(experiment / "anchor", piles, **options)
    assert_as_before(module.model, before)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_the_memory_plan_is_said_before_the_first_batch_and_advises_where_it_does_not_fit(line, tmp_path, monkeypatch):
    objective = PileGradient.objective
    monkeypatch.setattr("gradsteer.models.memory.available_bytes", lambda _device, *, held: held // 1000)
    with heard() as said:
        monkeypatch.setattr(PileGradient, "objective", lambda *w, **o: said.append("batch") or objective(*w, **o))
        with pytest.warns(UserWarning, match=r"the plan is .* more than cpu has, and fewer tokens at once"):
            run(*line(tmp_path, "--model.path_points", 2))
    (plan,) = [index for index, text in enumerate(said) if text.startswith("memory plan on cpu (estimates): weights")]
    assert plan < said.index("batch")
    assert " + float64 sums " in said[plan]
    assert " + activations of 80 tokens " in said[plan]
    assert " + other " in said[plan]  # the originals of weights that move


def test_the_memory_plan_is_said_where_it_fits_too(at_points):
    assert any(text.startswith("memory plan on cpu (estimates)") for text in at_points["path2"].said)
