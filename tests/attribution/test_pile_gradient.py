import pytest
import torch
from tiny_models import ragged_examples, tiny_llama
from torch.nn import functional

from gradsteer.attribution.gradient_sums import GradientSum
from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.attribution.reductions import example_weights
from gradsteer.data.chat import EncodedExample, collate
from gradsteer.models.fingerprints import weights_digest

ROUNDING = 2e-7  # transformers' RMSNorm computes in float32 even in a float64 model


def autograd_oracle(model, examples, reduction):
    """Plain autograd, one example at a time, straight from the formula."""
    means, sums, num_tokens = [], [], 0
    for example in examples:
        logits = model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1]
        targets = torch.tensor(example.labels[1:])
        sums.append(functional.cross_entropy(logits, targets, reduction="sum"))
        num_tokens += int((targets != -100).sum())
        means.append(functional.cross_entropy(logits, targets, reduction="mean"))
    return reduced_gradients(model, reduction, means, sums, num_tokens)


def reduced_gradients(model, reduction, means, sums, num_tokens):
    """The gradients of a pile's loss, from its examples' mean and summed losses."""
    objective = {
        "example": torch.stack(means).mean(),
        "token": torch.stack(sums).sum() / num_tokens,
        "sum": torch.stack(sums).mean(),
    }[reduction]
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(objective, list(model.parameters())), strict=True))


def relative_error(ours, theirs):
    difference = sum(float((ours[name].double() - theirs[name].double()).square().sum()) for name in theirs)
    return (difference / sum(float(theirs[name].double().square().sum()) for name in theirs)) ** 0.5


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 7])
@pytest.mark.parametrize("reduction", ["example", "token", "sum"])
def test_pile_gradient_equals_autograd_in_float64(reduction, batch_size, tied):
    model, examples = tiny_llama(tied=tied), ragged_examples(7)
    pile = PileGradient(model, reduction=reduction)
    for start in range(0, 7, batch_size):
        pile.add(collate(examples[start : start + batch_size], 0))
    ours, theirs = pile.average(), autograd_oracle(model, examples, reduction)
    assert ours.keys() == theirs.keys()
    assert relative_error(ours, theirs) < ROUNDING
    assert pile.totals.num_examples == 7


@pytest.mark.parametrize("reduction", ["example", "token", "sum"])
def test_float32_is_within_2e_6_of_float64(reduction):
    examples = ragged_examples(7)
    pile = PileGradient(tiny_llama(dtype=torch.float32), reduction=reduction)
    pile.add(collate(examples, 0))
    exact = tiny_llama(dtype=torch.float32).double()  # the same float32 weights, computed in float64
    assert relative_error(pile.average(), autograd_oracle(exact, examples, reduction)) < 2e-6


def test_the_reductions_differ(llama):
    examples, gradients = ragged_examples(5), {}
    for reduction in ("example", "token", "sum"):
        pile = PileGradient(llama, reduction=reduction)
        pile.add(collate(examples, 0))
        gradients[reduction] = pile.average()
    assert relative_error(gradients["example"], gradients["token"]) > 0.01
    assert relative_error(gradients["sum"], gradients["token"]) > 0.5


def test_more_padding_and_padding_examples_change_nothing(llama):
    examples = ragged_examples(4)
    plain = PileGradient(llama)
    plain.add(collate(examples, 0))
    padded = PileGradient(llama)
    batch = collate([*examples, EncodedExample([0] * 30, [-100] * 30)], 0)
    padded.add(batch)
    assert relative_error(padded.average(), plain.average()) < ROUNDING
    assert padded.totals.num_examples == 4


def test_nothing_of_the_model_changes(llama):
    llama.model.embed_tokens.weight.requires_grad_(False)
    before = weights_digest(dict(llama.named_parameters()))
    pile = PileGradient(llama)
    pile.add(collate(ragged_examples(3), 0))
    assert weights_digest(dict(llama.named_parameters())) == before
    assert not llama.model.embed_tokens.weight.requires_grad
    assert all(parameter.grad is None for parameter in llama.parameters())
    assert pile.average()["model.embed_tokens.weight"].abs().sum() > 0  # frozen parameters are covered
    llama(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()  # the hooks are gone
    assert llama.lm_head.weight.grad is None
    assert llama.model.norm.weight.grad is not None


def test_buffers_are_float32_for_bfloat16_weights():
    model = tiny_llama(dtype=torch.bfloat16)
    sums = GradientSum(model)
    assert {buffer.dtype for buffer in sums.buffers.values()} == {torch.float32}
    with sums.collecting():
        for _ in range(300):  # 300 times the same small gradient: bfloat16 sums would stall at 256 times
            (model.model.norm.weight.sum() * 2.0**-10).backward()
    torch.testing.assert_close(sums.buffers["model.norm.weight"], torch.full((16,), 300 * 2.0**-10))


def test_a_bad_loss_names_its_example():
    model = tiny_llama(tied=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = float("nan")
    examples = [EncodedExample([7, token, 8], [-100, token, 8]) for token in (6, 5, 9)]
    with pytest.raises(ValueError, match=r"the loss of example b.jsonl:2 is nan"):
        PileGradient(model).add(collate(examples, 0), sources=["a.jsonl:1", "b.jsonl:2", "c.jsonl:3"])


def test_a_bad_gradient_names_its_example(llama):
    examples = [EncodedExample([3] + [token] * 4, [-100] + [token] * 4) for token in (6, 7, 9)]

    def spoil(_module, inputs, output):
        bad = (inputs[0] == 9).any(dim=1).view(-1, 1, 1)
        output.register_hook(lambda gradient: torch.where(bad, float("inf"), gradient))

    llama.model.embed_tokens.register_forward_hook(spoil)
    with pytest.raises(ValueError, match=r"the gradient of example c.jsonl:3 holds NaN or Inf"):
        PileGradient(llama).add(collate(examples, 0), sources=["a.jsonl:1", "b.jsonl:2", "c.jsonl:3"])


def test_an_empty_pile_and_an_unknown_reduction_are_refused(llama):
    with pytest.raises(ValueError, match="empty pile"):
        PileGradient(llama).average()
    with pytest.raises(ValueError, match="reduction is 'mean'; accepted: example, token, sum"):
        PileGradient(llama, reduction="mean")


def test_example_weights_of_padding_are_zero():
    assert example_weights(torch.tensor([4, 0]), "example").tolist() == [0.25, 0.0]
