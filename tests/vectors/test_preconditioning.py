"""Preconditioned vectors against numpy in float64, and the second moment that fit saves against autograd."""

import json

import lightning as L
import numpy as np
import pytest
import torch
from road import PATTERNS, QUIET, run
from tiny_models import tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradsteer.__main__ import main
from gradsteer.data.chat import collate, encode_chat
from gradsteer.data.chat_formats import read_chat_examples
from gradsteer.models.losses import example_losses
from gradsteer.vectors.parameter_vectors import SteeringVector
from gradsteer.vectors.preconditioning import SecondMoment, adam_second_moment, check_keeps_second_moment, precondition
from gradsteer.vectors.transforms import apply_transforms, parse_transform

SHAPES = {"a": (7, 5), "b": (11,), "c": (1, 1)}


def pair(scale=1e-9, seed=0):
    """A vector, and a second moment over ten orders of magnitude that covers one parameter more."""
    generator = torch.Generator().manual_seed(seed)
    vector = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    moment = {
        name: scale * 10 ** (10 * torch.rand(shape, generator=generator) - 5)
        for name, shape in {**SHAPES, "d": (3, 2)}.items()
    }
    return SteeringVector(vector, {"model_fingerprint": "f"}), SecondMoment(moment, {"source": "adam"})


def flat(vector):
    return np.concatenate([vector[name].double().numpy().ravel() for name in SHAPES])


def changed(moment, name, value):
    tensors = {key: tensor.clone() for key, tensor in moment.items()}
    tensors[name].view(-1)[0] = value
    return SecondMoment(tensors)


@pytest.mark.parametrize(
    ("power", "damping", "keep_norm", "scale"),
    [
        (0.5, 1e-3, True, 1e-12), (0.5, 1e-3, False, 1e-12), (0.5, 0, True, 1e-30), (0.5, 10.0, True, 1.0),
        (0.25, 1e-3, True, 1e-30), (0.25, 0, False, 1.0), (1, 1e-3, True, 1.0), (1, 0, True, 1e-12),
        (1, 10.0, False, 1e-30),
    ],
)  # fmt: skip
def test_the_formula_in_float64(power, damping, keep_norm, scale):
    """The mean is over the vector's entries: d, which it lacks, has no say."""
    vector, moment = pair(scale)
    v, s = flat(vector), flat(moment)
    expected = v / (s + damping * s.mean()) ** power
    if keep_norm:
        expected *= np.linalg.norm(v) / np.linalg.norm(expected)
    result = precondition(vector, moment, power=power, damping=damping, keep_norm=keep_norm)
    assert type(result) is SteeringVector
    assert {name: tuple(tensor.shape) for name, tensor in result.items()} == SHAPES
    np.testing.assert_allclose(flat(result), expected, rtol=2e-6)


def test_the_norm_is_kept_and_the_direction_and_the_inputs_are_not_and_are():
    vector, moment = pair()
    before = flat(vector).copy(), flat(moment).copy()
    result = precondition(vector, moment)
    assert result.norm() == pytest.approx(vector.norm(), rel=1e-6)
    assert result.cosine(vector) < 0.9
    assert all((after == old).all() for after, old in zip((flat(vector), flat(moment)), before, strict=True))
    assert vector.metadata == {"model_fingerprint": "f"}


@pytest.mark.parametrize("change", [{"power": 1}, {"damping": 0.1}, {"keep_norm": False}])
def test_every_argument_is_no_no_op(change):
    vector, moment = pair(scale=1e-3)
    plain, other = flat(precondition(vector, moment)), flat(precondition(vector, moment, **change))
    assert np.abs(other / plain - 1).max() > 0.1


def test_a_constant_second_moment_leaves_the_vector():
    vector, _ = pair()
    constant = SecondMoment({name: torch.full(shape, 3e-7) for name, shape in SHAPES.items()})
    np.testing.assert_allclose(flat(precondition(vector, constant)), flat(vector), rtol=1e-6)
    half = precondition(vector, constant, power=0.5, damping=0, keep_norm=False)
    np.testing.assert_allclose(flat(half), flat(vector) / np.sqrt(3e-7), rtol=1e-6)


def test_large_damping_gives_the_vector_back():
    vector, moment = pair()
    np.testing.assert_allclose(flat(precondition(vector, moment, damping=1e9)), flat(vector), rtol=1e-5)


def test_the_prompts_of_a_moment_are_those_of_the_vector_too():
    vector, adam = pair()
    fisher = SecondMoment(adam, {"source": "fisher", "prompt_digests": '["b"]'})
    said = SteeringVector(vector, {**vector.metadata, "prompt_digests": '["a"]'})
    assert precondition(said, fisher).metadata["prompt_digests"] == '["a", "b"]'
    assert "prompt_digests_incomplete" not in precondition(said, fisher).metadata
    assert precondition(vector, fisher).metadata["prompt_digests_incomplete"] == "true"
    assert precondition(said, SecondMoment(adam)).metadata["prompt_digests_incomplete"] == "true"  # of who knows what
    # an optimizer's is of no prompts
    assert precondition(said, adam).metadata["prompt_digests"] == '["a"]'
    assert "prompt_digests_incomplete" not in precondition(said, adam).metadata
    assert "prompt_digests" not in precondition(vector, adam).metadata


def test_a_zero_vector_stays_zero():
    vector, moment = pair()
    assert precondition(vector * 0.0, moment).norm() == 0.0


def test_the_derivation_and_the_model_are_in_the_metadata():
    vector, moment = pair()
    result = precondition(vector, moment, power=1)
    assert result.metadata["derivation"] == "|preconditioned(adam, power=1, damping=0.001)"
    assert result.metadata["model_fingerprint"] == "f"


@pytest.mark.parametrize("power", [0, -0.5, 1.5, float("nan"), "much"])
def test_powers_out_of_range_are_refused(power):
    with pytest.raises(ValueError, match=rf"power is {power!r}; accepted: more than 0, at most 1"):
        precondition(*pair(), power=power)


@pytest.mark.parametrize("damping", [-1e-3, float("inf"), float("nan"), "much"])
def test_dampings_out_of_range_are_refused(damping):
    with pytest.raises(ValueError, match=rf"damping is {damping!r}; accepted: a finite number, 0 or more"):
        precondition(*pair(), damping=damping)


@pytest.mark.parametrize("value", [-0.5, float("nan"), float("inf"), float("-inf")])
def test_a_second_moment_with_impossible_entries_is_refused(value):
    vector, moment = pair()
    with pytest.raises(ValueError, match=rf"second moment of 'b' holds {value}; accepted: finite entries, 0 or"):
        precondition(vector, changed(moment, "b", value))
    precondition(vector, changed(moment, "d", value))  # the vector lacks d


def test_zeros_need_damping_and_only_zeros_are_refused():
    vector, moment = pair(scale=1.0)
    holed = changed(moment, "a", 0.0)
    with pytest.raises(ValueError, match="damping is 0, and so are entries of the second moment"):
        precondition(vector, holed, damping=0)
    assert np.isfinite(flat(precondition(vector, holed))).all()
    with pytest.raises(ValueError, match="is 0 for every entry of the vector"):
        precondition(vector, moment * 0.0)
    with pytest.raises(ValueError, match="damping 0 leaves float32's range"):
        precondition(vector, changed(moment, "a", 1e-44), power=1, damping=0)


def test_a_second_moment_that_does_not_cover_the_vector_is_refused():
    vector, moment = pair()
    less = SecondMoment({name: tensor for name, tensor in moment.items() if name != "b"})
    with pytest.raises(ValueError, match=r"does not cover the vector: .* 1 parameters only in this vector .*'b'"):
        precondition(vector, less)
    other = SecondMoment({**moment, "b": torch.ones(12)})
    with pytest.raises(ValueError, match=r"'b' has shape \(11,\) here and \(12,\) on the other side"):
        precondition(vector, other)


def test_a_saved_second_moment_is_read_back_and_no_other_kind(tmp_path):
    vector, moment = pair()
    read = SecondMoment.load(moment.save(tmp_path / "s.safetensors"))
    assert read.metadata == {"source": "adam"}
    assert set(read) == set(moment)
    assert all(torch.equal(read[name], moment[name]) for name in moment)
    with pytest.raises(ValueError, match="holds a 'vector'; a 'second_moment' was asked for"):
        SecondMoment.load(vector.save(tmp_path / "v.safetensors"))


def test_the_transform_reads_the_file_and_passes_its_arguments_on(tmp_path):
    vector, moment = pair()
    path = str(moment.save(tmp_path / "s.safetensors"))
    plain = apply_transforms(vector, None, [{"preconditioned": {"second_moment": path}}])
    np.testing.assert_array_equal(flat(plain), flat(precondition(vector, moment)))
    spec = {"preconditioned": {"second_moment": path, "power": 1, "damping": 0.1}}
    given = apply_transforms(vector, None, [spec])
    np.testing.assert_array_equal(flat(given), flat(precondition(vector, moment, power=1, damping=0.1)))


def test_the_label_shows_the_files_stem_alone():
    spec = {"preconditioned": {"second_moment": "/far/away/second_moments/anchor.safetensors", "power": 1}}
    assert parse_transform(spec)[0] == "preconditioned(second_moment=anchor, power=1)"


@pytest.mark.parametrize("spec", ["preconditioned", {"preconditioned": None}, {"preconditioned": {"power": 1}}])
def test_a_missing_file_name_is_said_before_anything_runs(spec):
    with pytest.raises(ValueError, match="needs 'second_moment': {preconditioned: {second_moment: ...}}"):
        parse_transform(spec)
    with pytest.raises(ValueError, match="no argument 'dampen'; accepted: second_moment, power, damping"):
        parse_transform({"preconditioned": {"second_moment": "s", "dampen": 1}})


def test_a_transform_that_fails_names_its_file(tmp_path):
    vector, moment = pair()
    path = str((moment * 0.0).save(tmp_path / "s.safetensors"))
    with pytest.raises(ValueError, match=rf"'preconditioned' with {path!r}: the second moment is 0 for every"):
        apply_transforms(vector, None, [{"preconditioned": {"second_moment": path}}])
    with pytest.raises(FileNotFoundError, match="no second_moment file at 'no/such"):
        apply_transforms(vector, None, [{"preconditioned": {"second_moment": "no/such.safetensors"}}])


# what an optimizer keeps


def stepped(optimizer_class, count, **options):
    """An optimizer after steps along seeded gradients, its model, and the gradients by parameter."""
    model = tiny_llama(dtype=torch.float32)
    optimizer = optimizer_class(model.parameters(), lr=0.01, **options)
    generator = torch.Generator().manual_seed(0)
    gradients = {name: [] for name, _ in model.named_parameters()}
    for _ in range(count):
        for name, weight in model.named_parameters():
            weight.grad = torch.randn(weight.shape, generator=generator)
            gradients[name].append(weight.grad.double())
        optimizer.step()
    return optimizer, model, gradients


@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam])
@pytest.mark.parametrize(("count", "beta2"), [(1, 0.999), (4, 0.999), (4, 0.7)])
def test_the_second_moment_is_the_weighted_mean_of_squared_gradients(optimizer_class, count, beta2):
    """The bias correction makes the weights beta2^(count - 1 - step) sum to 1: one step gives the square itself."""
    optimizer, model, gradients = stepped(optimizer_class, count, betas=(0.5, beta2))
    moment = adam_second_moment(optimizer, model)
    weights = np.array([beta2 ** (count - 1 - step) for step in range(count)])
    assert list(moment) == list(gradients)  # tied weights once
    for name, steps in gradients.items():
        expected = sum(w * g**2 for w, g in zip(weights / weights.sum(), steps, strict=True))
        torch.testing.assert_close(moment[name].double(), expected, rtol=1e-5, atol=1e-12)
    made = {"source": "adam", "optimizer": optimizer_class.__name__, "optimizer_steps": str(count)}
    assert moment.metadata == made


def test_frozen_parameters_are_left_out_and_unused_ones_are_zero():
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2, bias=False) for name in ("used", "unused", "frozen")})
    model["frozen"].requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters())
    model["used"](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    moment = adam_second_moment(optimizer, model)
    assert sorted(moment) == ["unused.weight", "used.weight"]
    assert moment["unused.weight"].count_nonzero() == 0
    torch.testing.assert_close(moment["used.weight"], torch.ones(2, 2))


@pytest.mark.parametrize(
    "optimizer_class", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adafactor]
)
def test_optimizers_without_betas_are_refused_before_a_step(optimizer_class):
    optimizer, _, _ = stepped(optimizer_class, 0)
    with pytest.raises(ValueError, match=f"optimizer {optimizer_class.__name__} keeps no second moment"):
        check_keeps_second_moment(optimizer)


def test_an_optimizer_with_betas_but_no_second_moment_is_refused_after_a_step():
    optimizer, model, _ = stepped(torch.optim.Adamax, 1)
    with pytest.raises(ValueError, match=r"optimizer Adamax keeps no second moment .*; accepted: Adam, AdamW"):
        adam_second_moment(optimizer, model)


def test_an_optimizer_that_took_no_step_has_no_second_moment():
    optimizer, model, _ = stepped(torch.optim.AdamW, 0)
    check_keeps_second_moment(optimizer)
    with pytest.raises(ValueError, match="AdamW has taken no step"):
        adam_second_moment(optimizer, model)


# fit and steer, on the command line


def fit_words(experiment, inputs, out, *more):
    words = [
        "fit", "--output_dir", out, "--model.model_name_or_path", experiment / "base", "--data.train",
        inputs / "chat.jsonl", "--data.batch_size", 12, "--trainer.logger", "false", *more,
    ]  # fmt: skip
    return [str(word) for word in words]


def squared_gradients(directory, inputs):
    """The squares of the gradient of the mean loss over all of the training data, by plain autograd."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    chats = read_chat_examples(str(inputs / "chat.jsonl"))
    encoded = [encode_chat(tokenizer, chat.messages, loss_mask="assistant") for chat in chats]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    sums, counts = example_losses(model, collate(encoded, tokenizer.pad_token_id))
    (sums.sum() / counts.sum()).backward()
    return {name: weight.grad.double() ** 2 for name, weight in model.named_parameters()}


def test_fit_saves_the_square_of_its_one_gradient_and_steer_uses_it(experiment, inputs, tmp_path):
    run(*fit_words(
        experiment, inputs, tmp_path, "--saving.second_moment", "true", "--trainer.max_steps", 1, "--name", "one",
        "--data.loss_mask", "assistant",
    ))  # fmt: skip
    path = tmp_path / "second_moments" / "one.safetensors"
    moment = SecondMoment.load(path)
    expected = squared_gradients(experiment / "base", inputs)
    assert sorted(moment) == sorted(expected)
    for name, squares in expected.items():
        assert moment[name].dtype == torch.float32
        torch.testing.assert_close(moment[name].double(), squares, rtol=1e-4, atol=1e-6 * float(squares.mean()))
    assert moment.metadata["source"] == "adam"
    assert moment.metadata["optimizer_steps"] == "1"

    spec = {"preconditioned": {"second_moment": str(path), "damping": 1e-2}}
    run(
        "steer", "--output_dir", tmp_path / "steered", "--model.model_name_or_path", experiment / "anchor",
        "--data.prompts", inputs / "prompts.jsonl", "--model.max_new_tokens", 4, "--evaluation.judge", "KeywordJudge",
        "--evaluation.judge.patterns", PATTERNS, "--steering.vectors.a", experiment / "vectors" / "a.safetensors",
        "--steering.alphas", "[0.05]", "--steering.transforms", json.dumps([[], [spec]]), "--trainer.logger", "false",
        "--steering.seed_faithful", "true",
    )  # fmt: skip
    rows = json.loads((tmp_path / "steered" / "results.json").read_text())["conditions"]
    by_name = {row["name"]: row for row in rows}
    shown = "a|preconditioned(second_moment=one, damping=0.01) alpha=+0.05"
    assert by_name[shown]["relative_norm"] == pytest.approx(by_name["a alpha=+0.05"]["relative_norm"], rel=1e-4)


def test_the_flag_is_no_no_op_and_a_stale_file_goes_with_the_fit_that_made_it(experiment, inputs, tmp_path):
    file = tmp_path / "second_moments" / "anchor.safetensors"
    more = ["--trainer.max_steps", 2]
    run(*fit_words(experiment, inputs, tmp_path, *more))
    assert not file.parent.exists()
    run(*fit_words(experiment, inputs, tmp_path, *more, "--saving.second_moment", "true", "--overwrite", "true"))
    assert file.is_file()
    run(*fit_words(experiment, inputs, tmp_path, *more, "--overwrite", "true"))
    assert not file.exists()


def test_fit_keeps_off_the_file_that_attribute_writes(experiment, inputs, tmp_path, capsys):
    assert main([*fit_words(experiment, inputs, tmp_path, "--name", "fisher"), *QUIET]) == 2
    assert "--name is 'fisher'; accepted: another" in capsys.readouterr().err


class Interruption(L.Callback):
    """Stops a fit in its second epoch, as a power cut would."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 1:
            raise ValueError("interrupted")


def test_a_resumed_fit_saves_the_second_moment_of_an_undisturbed_one(experiment, inputs, tmp_path, capsys):
    more = ["--saving.second_moment", "true", "--saving.checkpoint_minutes", 0, "--trainer.max_epochs", 2]
    more += ["--data.batch_size", 4]
    run(*fit_words(experiment, inputs, tmp_path / "whole", *more))
    words = fit_words(experiment, inputs, tmp_path / "cut", *more)
    assert main([*words, *QUIET, f"--trainer.callbacks+={__name__}.Interruption"]) == 2
    assert "interrupted" in capsys.readouterr().err
    run(*words, "--ckpt_path", tmp_path / "cut" / ".anchor.resume.ckpt")
    whole, resumed = (
        SecondMoment.load(tmp_path / out / "second_moments" / "anchor.safetensors") for out in ("whole", "cut")
    )
    assert resumed.metadata == whole.metadata
    assert whole.metadata["optimizer_steps"] == "6"
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize(("optimizer", "started"), [("SGD", False), ("Adamax", True)])
def test_fit_refuses_an_optimizer_that_keeps_none(optimizer, started, experiment, inputs, tmp_path, capsys):
    """Before the first batch, or after the first step where only that shows it."""
    more = ["--model.optimizer", optimizer, "--model.optimizer.lr", 0.1, "--saving.second_moment", "true"]
    assert main([*fit_words(experiment, inputs, tmp_path, *more), *QUIET]) == 2
    message = capsys.readouterr().err
    assert f"--saving.second_moment true: optimizer {optimizer} keeps no second moment of the gradients" in message
    assert not (tmp_path / "anchor").exists()
    assert (tmp_path / "stages" / "fit-anchor.json").exists() == started
