"""The divergence from a reference model in place of the cross-entropy: its value, its gradient, its flags."""

import numpy as np
import pytest
import torch
import transformers as t
from road import QUIET, run, write_lines
from test_attribution_module import CHATS
from test_losses import Says, batch_of
from test_pile_gradient import ROUNDING, reduced_gradients, relative_error
from tiny_models import VOCABULARY, ragged_examples, tiny_llama
from torch.distributions import Categorical
from torch.distributions import kl_divergence as torch_kl

from gradsteer.__main__ import main
from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.data.chat import collate, encode_chat
from gradsteer.data.chat_formats import read_chat_examples
from gradsteer.models.loading import load_causal_lm, load_tokenizer
from gradsteer.models.losses import Reference, example_losses, kl_divergence
from gradsteer.models.packing import Pack, attending, pack_losses
from gradsteer.steering.weight_steering import steered
from gradsteer.vectors.parameter_vectors import PileAverage, SteeringVector

DIRECTIONS = ("forward", "reverse")


def two(*shape, dtype=torch.float64):
    """Two sets of logits."""
    generator = torch.Generator().manual_seed(0)
    return [2 * torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for _ in range(2)]


def numpy_kl(p_logits, q_logits):
    """KL(p || q) straight from the probabilities."""
    p, q = (np.exp(x - x.max(-1, keepdims=True)) for x in (p_logits, q_logits))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    return (p * (np.log(p) - np.log(q))).sum(-1)


def oracle(model, reference, examples, direction, reduction="example"):
    """Plain autograd, one example at a time, with torch's own divergence of two distributions."""
    means, sums, num_tokens = [], [], 0
    for example in examples:
        ids = torch.tensor([example.input_ids])
        counted = torch.tensor(example.labels[1:]) != -100
        ours, theirs = (
            Categorical(logits=logits[0, :-1][counted])
            for logits in (model(input_ids=ids).logits, reference(input_ids=ids).logits.detach())
        )
        losses = torch_kl(theirs, ours) if direction == "forward" else torch_kl(ours, theirs)
        means.append(losses.mean())
        sums.append(losses.sum())
        num_tokens += int(counted.sum())
    return reduced_gradients(model, reduction, means, sums, num_tokens)


def softcapped(*, seed=0):
    torch.manual_seed(seed)
    config = t.Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, sliding_window=32, max_position_embeddings=64, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, final_logit_softcapping=0.05,
    )  # fmt: skip
    return t.AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()


MODELS = {"llama": tiny_llama, "softcapped gemma 2": softcapped}


# --- the formula -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_divergence_equals_numpys_and_torchs(direction):
    ours, theirs = two(9, 31)
    found = kl_divergence(ours, theirs, direction)
    assert found.shape == (9,)
    p, q = (theirs, ours) if direction == "forward" else (ours, theirs)
    np.testing.assert_allclose(found.numpy(), numpy_kl(p.numpy(), q.numpy()), rtol=1e-12)
    torch.testing.assert_close(found, torch_kl(Categorical(logits=p), Categorical(logits=q)), rtol=1e-12, atol=0)
    shifted = kl_divergence(ours + 5, theirs - 7, direction)  # logits are known up to a constant
    torch.testing.assert_close(shifted, found, rtol=1e-12, atol=1e-13)
    cooler = kl_divergence(ours, theirs, direction, 0.5)
    torch.testing.assert_close(cooler, kl_divergence(2 * ours, 2 * theirs, direction), rtol=1e-12, atol=1e-13)


def test_the_directions_are_two_and_swap_with_the_models():
    ours, theirs = two(5, 7)
    forward, reverse = (kl_divergence(ours, theirs, direction) for direction in DIRECTIONS)
    assert (forward - reverse).abs().min() > 1e-3
    torch.testing.assert_close(forward, kl_divergence(theirs, ours, "reverse"))
    assert (forward > 0).all()


def test_half_precision_logits_are_compared_in_float32():
    ours, theirs = two(4, 9, dtype=torch.bfloat16)
    found = kl_divergence(ours, theirs, "forward")
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), numpy_kl(theirs.double().numpy(), ours.double().numpy()), rtol=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_equal_models_have_neither_divergence_nor_gradient(direction):
    model, examples = tiny_llama(), ragged_examples(4)
    pile = PileGradient(model, reference=Reference(tiny_llama(), direction))
    pile.add(Pack.of(examples))
    assert abs(pile.totals.token_loss_sum) < 1e-12
    assert max(float(tensor.abs().max()) for tensor in pile.average().values()) < 1e-8
    plain = PileGradient(model)
    plain.add(Pack.of(examples))
    assert max(float(tensor.abs().max()) for tensor in plain.average().values()) > 1e-2


def test_the_forward_gradient_is_that_of_cross_entropy_with_soft_labels():
    """The entropy of the reference is a constant."""
    model, reference, examples = tiny_llama(), tiny_llama(seed=1), ragged_examples(4)
    pile = PileGradient(model, reduction="sum", reference=Reference(reference, "forward"))
    pile.add(collate(examples, 0))
    objective = 0.0
    for example in examples:
        ids = torch.tensor([example.input_ids])
        counted = torch.tensor(example.labels[1:]) != -100
        soft = reference(input_ids=ids).logits[0, :-1].softmax(-1).detach()[counted]
        objective += torch.nn.functional.cross_entropy(
            model(input_ids=ids).logits[0, :-1][counted], soft, reduction="sum"
        )
    gradients = torch.autograd.grad(objective / len(examples), list(model.parameters()))
    expected = dict(zip([name for name, _ in model.named_parameters()], gradients, strict=True))
    assert relative_error(pile.average(), expected) < ROUNDING


def test_masked_positions_have_no_divergence():
    logits, theirs = two(2, 5, 7)
    labels = torch.tensor([[-100, -100, 3, 4, -100], [-100, 1, -100, 2, 6]])
    found, counts = example_losses(Says(logits), batch_of(labels), reference=Reference(Says(theirs), "reverse"))
    expected = torch.zeros(2, dtype=torch.float64)
    for row, position in [(0, 1), (0, 2), (1, 0), (1, 2), (1, 3)]:
        expected[row] += float(numpy_kl(logits[row, position].numpy(), theirs[row, position].numpy()))
    torch.testing.assert_close(found, expected)
    assert counts.tolist() == [2, 3]


def test_an_unknown_direction_is_refused():
    with pytest.raises(ValueError, match="direction is 'backward'; accepted: forward, reverse"):
        Reference(None, "backward")


# --- piles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_packs_and_chunked_heads_equal_padded_batches_and_autograd(name, direction):
    model, other, examples = MODELS[name](), MODELS[name](seed=1), ragged_examples(5)
    if name != "llama":
        with torch.no_grad():  # so that the cap bends the logits
            assert model(input_ids=torch.tensor([examples[0].input_ids])).logits.abs().max() > 0.03
    reference = Reference(other, direction)
    expected = oracle(model, other, examples, direction)
    batch = collate(examples, 0)
    losses, counts = example_losses(model, batch, reference=reference)
    padded = PileGradient(model, reference=reference)
    padded.add(batch)
    assert relative_error(padded.average(), expected) < 5 * ROUNDING
    pack = Pack.of(examples)
    for chunk in (None, 1, 3):
        with attending(model, pack), attending(other, pack), torch.no_grad():
            packed_losses = pack_losses(model, pack, head_chunk=chunk, reference=reference)
        torch.testing.assert_close(packed_losses, losses.detach(), rtol=1e-6, atol=1e-9)
        packed = PileGradient(model, head_chunk=chunk, reference=reference)
        packed.add(pack)
        assert relative_error(packed.average(), expected) < 5 * ROUNDING
        assert packed.totals.num_tokens == int(counts.sum())


@pytest.mark.parametrize("reduction", ["token", "sum"])
def test_the_reductions_hold_for_the_divergence(reduction):
    model, other, examples = tiny_llama(), tiny_llama(seed=1), ragged_examples(5)
    pile = PileGradient(model, reduction=reduction, reference=Reference(other, "reverse"))
    for chosen in (examples[:2], examples[2:]):
        pile.add(Pack.of(chosen))
    assert relative_error(pile.average(), oracle(model, other, examples, "reverse", reduction)) < 5 * ROUNDING


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("packs", [True, False])
def test_the_reference_takes_no_gradient_and_is_as_before(packs, chunk):
    model, other, examples = tiny_llama(), tiny_llama(seed=1), ragged_examples(4)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    attention, forward, asked = other.config._attn_implementation, other.forward, []
    other.register_forward_hook(lambda *_: asked.append(torch.is_grad_enabled()))
    pile = PileGradient(model, head_chunk=chunk, reference=Reference(other, "reverse"))
    pile.add(Pack.of(examples) if packs else collate(examples, 0))
    assert asked
    assert not any(asked)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    for parameter in other.parameters():
        assert parameter.grad is None
        assert parameter.requires_grad
    assert other.config._attn_implementation == attention
    assert other.forward == forward
    assert "forward" not in vars(other)


def test_packs_outside_of_the_references_attention_are_refused(llama):
    pack = Pack.of(ragged_examples(2))
    with attending(llama, pack), pytest.raises(AssertionError, match="the segments would see each other"):
        pack_losses(llama, pack, reference=Reference(tiny_llama(seed=1)))


# --- the contrast ----------------------------------------------------------------------------------------------------


def contrast_of_losses(model, piles, reference):
    """The PLUS pile's mean loss less the MINUS pile's."""
    means = []
    with torch.no_grad():
        for pile in piles:
            sums, counts = example_losses(model, collate(pile, 0), reference=reference)
            means.append(float((sums / counts).mean()))
    return means[0] - means[1]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_positive_alpha_raises_the_plus_piles_divergence_relative_to_the_minus_piles(direction):
    model, other, examples = tiny_llama(), tiny_llama(seed=1), ragged_examples(8)
    reference, piles = Reference(other, direction), (examples[:4], examples[4:])
    averages = []
    for pile in piles:
        gradient = PileGradient(model, reference=reference)
        gradient.add(Pack.of(pile))
        averages.append(PileAverage(gradient.average(), {"loss": f"kl {direction} to f"}))
    vector = SteeringVector.contrast(*averages)
    for name in vector:
        assert torch.equal(vector[name], averages[0][name] - averages[1][name])
    alpha, found = 1e-3, {}
    for step in (alpha, 0.0, -alpha):
        with steered(model, vector, step):
            found[step] = contrast_of_losses(model, piles, reference)
    assert found[alpha] > found[0.0] > found[-alpha]
    assert (found[alpha] - found[-alpha]) / (2 * alpha) == pytest.approx(vector.dot(vector), rel=1e-3)


def test_gradients_of_two_losses_are_not_contrasted():
    x, y = (PileAverage({"w": torch.ones(2)}, {"loss": loss}) for loss in ("kl forward to a", "kl reverse to a"))
    with pytest.raises(ValueError, match=r"their loss differ \('kl forward to a' and 'kl reverse to a'\)"):
        SteeringVector.contrast(x, y)


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    directory = tmp_path_factory.mktemp("kl")
    return [write_lines(directory / f"{name}.jsonl", rows) for name, rows in (("x", CHATS[:3]), ("y", CHATS[3:]))]


def words(experiment, chats, out, *more):
    given = ["attribute", "--model.model_name_or_path", experiment / "anchor", "--data.piles.x", chats[0]]
    given += ["--data.piles.y", chats[1], "--vectors.v", "[x, y]", "--output_dir", out, "--trainer.logger", "false"]
    return [*map(str, [*given, "--model.loss", "kl", *more])]


@pytest.fixture(scope="module")
def by_default(experiment, chats, tmp_path_factory):
    out = tmp_path_factory.mktemp("kl_default")
    run(*words(experiment, chats, out, "--model.dtype", "float64"))
    return out


def gradient(directory, name="x"):
    return PileAverage.load(directory / "gradients" / f"{name}.safetensors")


def expected_gradient(experiment, chats, direction):
    anchor, base = (load_causal_lm(str(experiment / name), dtype="float64") for name in ("anchor", "base"))
    tokenizer = load_tokenizer(str(experiment / "anchor"))
    read = read_chat_examples(str(chats))
    examples = [encode_chat(tokenizer, chat.messages, loss_mask="assistant") for chat in read]
    return oracle(anchor, base, examples, direction)


def test_the_reference_is_the_recorded_base_by_default(experiment, chats, by_default, tmp_path):
    found = {name: gradient(by_default, name) for name in "xy"}
    for pile, (name, average) in zip(chats, found.items(), strict=True):
        assert relative_error(average, expected_gradient(experiment, pile, "forward")) < 1e-6, name
    assert found["x"].metadata["loss"].startswith("kl forward to ")
    run(*words(experiment, chats, tmp_path, "--model.dtype", "float64", "--model.reference", experiment / "base"))
    given = gradient(tmp_path)
    assert given.metadata == found["x"].metadata
    assert all(torch.equal(given[name], found["x"][name]) for name in given)
    vector = SteeringVector.load(by_default / "vectors" / "v.safetensors")
    assert vector.metadata["loss"] == found["x"].metadata["loss"]
    assert all(torch.equal(vector[name], found["x"][name] - found["y"][name]) for name in vector)


def test_the_direction_is_chosen_on_the_command_line(experiment, chats, by_default, tmp_path):
    run(*words(experiment, chats, tmp_path, "--model.dtype", "float64", "--model.kl_direction", "reverse"))
    found = gradient(tmp_path)
    assert relative_error(found, expected_gradient(experiment, chats[0], "reverse")) < 1e-6
    assert relative_error(found, gradient(by_default)) > 1e-3
    forward = gradient(by_default).metadata["loss"]
    assert found.metadata["loss"] == forward.replace("forward", "reverse")


def test_padded_batches_give_the_same(experiment, chats, by_default, tmp_path):
    more = ["--model.base", experiment / "base", "--model.packing", "off", "--data.token_budget", 60]
    run(*words(experiment, chats, tmp_path, *more))  # in float32, and the base as reference
    assert relative_error(gradient(tmp_path), gradient(by_default)) < 1e-4


def refused(capsys, *line):
    assert main([*map(str, line), *QUIET]) == 2
    return capsys.readouterr().err


def test_without_a_record_the_reference_must_be_given(experiment, chats, tmp_path, capsys):
    """Nothing says what the base itself was finetuned from."""
    line = words(experiment, chats, tmp_path, "--model.model_name_or_path", experiment / "base")
    message = refused(capsys, *line)
    assert (
        f"'{experiment / 'base'}' does not say what it was finetuned from: give the base model (--model.base)"
        in message
    )


def test_a_reference_that_cannot_be_used_is_refused(experiment, chats, tmp_path, capsys):
    other = tiny_llama(dtype=torch.float32)
    other.save_pretrained(tmp_path / "other")
    message = refused(capsys, *words(experiment, chats, tmp_path, "--model.reference", tmp_path / "other"))
    size = len(load_tokenizer(str(experiment / "anchor")))
    assert f"the reference has a vocabulary of {VOCABULARY} tokens, the model one of {size}" in message
    message = refused(capsys, *words(experiment, chats, tmp_path, "--model.reference", "./nowhere"))
    assert "no model directory at './nowhere'" in message
    line = words(experiment, chats, tmp_path, "--model.reference", experiment / "base", "--model.loss", "cross_entropy")
    assert "which has no effect without model.loss kl" in refused(capsys, *line)
