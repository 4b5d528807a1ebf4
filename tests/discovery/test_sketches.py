"""Sketches against exact gradients of single responses."""

import numpy as np
import pytest
import torch
from tiny_models import ragged_examples, tiny_llama
from transformers import AutoModelForCausalLM, GPT2Config

from gradsteer.discovery.sketches import Sketcher
from gradsteer.discovery.spans import labelled_ids, weighted
from gradsteer.models.batches import BatchLayout, running, token_losses, token_weights


def tiny_gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=61, n_positions=64, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0, attn_pdrop=0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()


def exact(model, examples, names):
    """(examples, numbers): gradients of covered weights and their biases, by plain autograd, one example at a time."""
    biases = {name.removesuffix("weight") + "bias" for name in names}
    parameters = [parameter for name, parameter in model.named_parameters() if name in biases | {*names}]
    layout, rows = BatchLayout.of(model, examples), []
    for example in examples:
        batch = layout.make([example])
        with running(batch, model):
            losses, _ = token_losses(model, batch)
            weights = token_weights(batch)
            total = (losses if weights is None else losses * weights).sum()
            gradients = torch.autograd.grad(total, parameters)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows)


def sketched(sketcher, model, examples, budget=10_000, **options):
    layout = BatchLayout.of(model, examples, **options)
    found = torch.zeros(len(examples), sketcher.size, dtype=torch.float64)
    for indices in layout.plan([len(example.input_ids) for example in examples], budget):
        batch = layout.make([examples[index] for index in indices])
        found[torch.tensor(indices)] = sketcher.add(batch, head_chunk=layout.head_chunk).double()
    return found


def errors(model, examples, size, seeds=3):
    """Root mean square errors of inner products, of the product of the norms."""
    found = []
    truth = exact(model, examples, Sketcher(model, size=size).layers)
    gram = truth @ truth.T
    norms = gram.diagonal().sqrt()
    for seed in range(seeds):
        sketcher = Sketcher(model, size=size, seed=seed)
        made = sketched(sketcher, model, examples)
        found.append((made @ made.T - gram) / (norms[:, None] * norms))
    return torch.stack(found)


@pytest.mark.parametrize(
    "model",
    [tiny_llama(), tiny_llama(tied=False, attention_bias=True), tiny_gpt2()],
    ids=["tied", "untied, with biases", "gpt2"],
)
def test_inner_products_are_those_of_the_gradients_and_errors_fall_as_one_over_the_root_of_the_size(model):
    examples = ragged_examples(8)
    parameters = [parameter.detach().clone() for parameter in model.parameters()]
    small, large = (errors(model, examples, size) for size in (1_000, 16_000))
    spread = [float(each.square().mean().sqrt()) for each in (small, large)]
    assert spread[1] < 0.08
    assert spread[0] / spread[1] == pytest.approx(4, rel=0.5)  # the root of 16
    for before, after in zip(parameters, model.parameters(), strict=True):
        assert torch.equal(before, after)
        assert after.requires_grad
        assert after.grad is None


def test_of_one_token_the_variance_is_as_said():
    """The head's gradient has rank 1 then."""
    model = tiny_llama(tied=False)
    example = ragged_examples(1)[0]
    example.labels[:-1] = [-100] * (len(example.labels) - 1)
    name = "lm_head.weight"
    found = []
    for seed in range(30):
        sketcher = Sketcher(model, size=16 * 16 * 8, seed=seed)
        part = sketcher.layers[name]
        found.append(float(sketched(sketcher, model, [example])[0, part].square().sum()))
    truth = exact(model, [example], {name})[0].square().sum()
    blocks = (part.stop - part.start) / 4**2
    relative = np.array(found) / float(truth)
    assert relative.mean() == pytest.approx(1, abs=0.15)
    assert 0.1 < relative.var() / (((1 + 2 / 4) ** 2 - 1) / blocks) < 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_same_sketches_whatever_the_batches(dtype):
    model, examples = tiny_llama(dtype=dtype), ragged_examples(9)
    sketcher = Sketcher(model, size=1_000)
    whole = sketched(sketcher, model, examples)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    for budget, options in ((1, {}), (40, {}), (10_000, {"packing": False})):
        torch.testing.assert_close(
            sketched(sketcher, model, examples, budget, **options), whole, rtol=0, atol=tolerance
        )
    # a head in chunks, whose forward pass runs again within the backward pass
    layout = BatchLayout.of(model, examples)
    chunked = sketcher.add(layout.make(examples), head_chunk=3).double()
    torch.testing.assert_close(chunked, whole, rtol=0, atol=tolerance)
    other = Sketcher(model, size=1_000, seed=1)
    assert not torch.allclose(sketched(other, model, examples), whole)


def test_token_weights_are_the_losses():
    model, examples = tiny_llama(), ragged_examples(3)
    generator = np.random.default_rng(0)
    scaled = [weighted(example, generator.normal(size=len(labelled_ids(example)))) for example in examples]
    sketcher = Sketcher(model, size=1_000)
    one = [weighted(example, np.full(len(labelled_ids(example)), 2.0)) for example in examples]
    torch.testing.assert_close(sketched(sketcher, model, one), 2 * sketched(sketcher, model, examples))
    truth = exact(model, scaled, sketcher.layers)
    made = sketched(Sketcher(model, size=60_000), model, scaled)
    gram = truth @ truth.T
    norms = gram.diagonal().sqrt()
    assert float(((made @ made.T - gram) / (norms[:, None] * norms)).abs().max()) < 0.1


def test_what_is_covered_is_said_and_too_small_a_size_is_refused():
    model = tiny_llama()
    sketcher = Sketcher(model, size=1_000)
    assert 0.95 < sketcher.coverage < 1  # all but the norms
    assert sum(part.stop - part.start for part in sketcher.layers.values()) == sketcher.size <= 1_000
    with pytest.raises(ValueError, match="a sketch of 14 numbers has none for some of the 15 linear layers"):
        Sketcher(model, size=14)
