"""Gradient checkpointing and running out of memory: other ways to the same gradients."""

import weakref

import pytest
import torch
from road import QUIET
from test_attribution_module import Averages
from tiny_models import ragged_examples, tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, OPTConfig

from gradsteer.__main__ import main
from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.models.packing import Pack
from gradsteer.trainer.datamodules.piles import PileDataModule
from gradsteer.trainer.modules.attribution import AttributionModule
from gradsteer.trainer.trainer import GradsteerTrainer
from gradsteer.vectors.parameter_vectors import PileAverage


def attribute(anchor, chats, *, prepare=lambda module: None, budget=1000, **options):
    averages = Averages()
    module = AttributionModule(str(anchor), **options)
    module.configure_model()
    prepare(module)
    trainer = GradsteerTrainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, callbacks=[averages],
    )  # fmt: skip
    trainer.attribute(module, PileDataModule({"x": str(chats)}, token_budget=budget))
    return averages.found["x"]


def assert_same(ours, theirs):
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-7)
    assert ours.metadata["num_tokens"] == theirs.metadata["num_tokens"]
    assert ours.metadata["num_examples"] == theirs.metadata["num_examples"]


@pytest.fixture
def whole(experiment, inputs):
    return attribute(experiment / "anchor", inputs / "chat.jsonl")


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_gradient_checkpointing_is_active_and_gives_the_same_gradients(experiment, inputs, whole, packing):
    calls, armed = [], []

    def watch(module):
        # the checks of the layout come first
        module.test_step = lambda *words, step=module.test_step: armed.append(True) or step(*words)
        # the checkpoint begins inside the block's own hooks, and its second run stops as soon as it has what it needs
        module.model.model.layers[0].mlp.register_forward_pre_hook(
            lambda *_: calls.append(torch.is_grad_enabled()) if armed else None
        )

    options = {"packing": packing, "gradient_checkpointing": True}
    ours = attribute(experiment / "anchor", inputs / "chat.jsonl", prepare=watch, **options)
    assert_same(ours, whole)
    recomputed, calls[:], armed[:] = sum(calls), [], []
    attribute(experiment / "anchor", inputs / "chat.jsonl", prepare=watch, packing=packing)
    assert sum(calls) > 0
    assert recomputed == 2 * sum(calls)  # every layer runs once more, in the backward pass


def test_gradient_checkpointing_is_refused_where_dropout_would_be_active(experiment, inputs, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(experiment / "anchor")
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match=r"has dropout there \(such as '.*'\): the gradient would be random"):
        attribute(tmp_path / "gpt2", inputs / "chat.jsonl", gradient_checkpointing=True)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("packing", ["auto", "off"])
def test_running_out_of_memory_halves_and_counts_nothing_twice(experiment, inputs, whole, packing, layer):
    """Memory runs out in the middle of backward passes, after some parameters had their gradient added."""
    refused, armed = [], []

    def spoil(module):
        module.test_step = lambda *words, step=module.test_step: armed.append(True) or step(*words)

        def limited(gradient):
            if armed and gradient.shape[0] * gradient.shape[1] > 70:
                refused.append(tuple(gradient.shape))
                raise torch.OutOfMemoryError("simulated")

        module.model.model.layers[layer].register_forward_hook(
            lambda _module, _inputs, output: output.register_hook(limited) and None if output.requires_grad else None
        )

    with pytest.warns(UserWarning, match=r"out of memory with \d+ tokens at once: going on with \d+"):
        ours = attribute(experiment / "anchor", inputs / "chat.jsonl", prepare=spoil, packing=packing)
    assert_same(ours, whole)
    assert 1 <= len(refused) <= 3  # later batches start at the halved size


def test_one_example_that_does_not_fit_is_named(experiment, inputs):
    armed = []

    def spoil(module):
        module.test_step = lambda *words, step=module.test_step: armed.append(True) or step(*words)

        def refuse(_gradient):
            if armed:
                raise torch.OutOfMemoryError("simulated")

        module.model.model.layers[0].register_forward_hook(
            lambda _module, _inputs, output: output.register_hook(refuse) and None if output.requires_grad else None
        )

    with (
        pytest.warns(UserWarning, match="out of memory"),
        pytest.raises(ValueError, match=r"out of memory on one example alone \(.*chat.jsonl:\d+, \d+ tokens\)"),
    ):
        attribute(experiment / "anchor", inputs / "chat.jsonl", prepare=spoil, packing="off")


def test_the_flag_reaches_the_command_line(experiment, inputs, tmp_path, whole):
    words = ["attribute", "--model.model_name_or_path", experiment / "anchor", "--data.piles.x", inputs / "chat.jsonl"]
    words += ["--model.gradient_checkpointing", "true", "--output_dir", tmp_path]
    assert main([*map(str, words), *QUIET]) == 0
    assert_same(PileAverage.load(tmp_path / "gradients" / "x.safetensors"), whole)


def test_gradient_checkpointing_is_refused_where_a_hidden_dropout_would_be_active(experiment, inputs, tmp_path):
    """OPT keeps its dropout as a number, where no search by name finds it."""
    tokenizer = AutoTokenizer.from_pretrained(experiment / "anchor")
    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, word_embed_proj_dim=16, dropout=0.2, attention_dropout=0.0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "opt")
    tokenizer.save_pretrained(tmp_path / "opt")
    with pytest.raises(ValueError, match="gives different losses each time: the gradient would be random"):
        attribute(tmp_path / "opt", inputs / "chat.jsonl", gradient_checkpointing=True)


@pytest.fixture
def pile():
    return PileGradient(tiny_llama(dtype=torch.float32), reduction="sum")


def test_a_gradient_that_is_not_finite_is_refused_where_memory_does_not_suffice_to_find_it(pile, monkeypatch):
    examples = ragged_examples(4)
    weight = pile.model.model.layers[0].mlp.up_proj.weight
    handle = weight.register_hook(lambda gradient: gradient * float("nan"))

    def full(*_args, **_kwargs):
        raise torch.OutOfMemoryError("simulated")

    monkeypatch.setattr(torch.autograd, "grad", full)
    with pytest.raises(ValueError, match="the gradient of the batch that starts with example a is not finite"):
        pile.add(Pack.of(examples), sources=["a", "b", "c", "d"])
    handle.remove()
    with pytest.raises(ValueError, match="hold a gradient that was refused"):
        pile.average()


def test_a_parameter_whose_hook_ran_out_of_memory_is_added_again(pile, monkeypatch):
    examples = ragged_examples(4)
    name = "model.layers.0.mlp.up_proj.weight"
    failing, norm = [True], torch.linalg.vector_norm

    def vector_norm(tensor, **options):
        if failing and tensor.shape == pile.sums.buffers[name].shape:
            failing.clear()
            raise torch.OutOfMemoryError("simulated")
        return norm(tensor, **options)

    monkeypatch.setattr(torch.linalg, "vector_norm", vector_norm)
    with pytest.warns(UserWarning, match="out of memory"):
        pile.add(Pack.of(examples), sources=list("abcd"))
    plain = PileGradient(tiny_llama(dtype=torch.float32), reduction="sum")
    plain.add(Pack.of(examples))
    for key, expected in plain.average().items():
        torch.testing.assert_close(pile.average()[key], expected, rtol=1e-5, atol=1e-6)


def test_a_pass_that_broke_off_is_not_held_while_its_halves_run(pile):
    alive, made, objective = [], [], pile.objective

    def noting(*args, **options):
        alive.append(sum(reference() is not None for reference in made))
        result = objective(*args, **options)
        made.append(weakref.ref(result))
        return result

    pile.objective = noting
    ran = []

    def backward(tensor):
        ran.append(1)
        if len(ran) == 1:
            raise torch.OutOfMemoryError("simulated")
        tensor.backward()

    pile.backward = backward
    with pytest.warns(UserWarning, match="out of memory"):
        pile.add(Pack.of(ragged_examples(4)))
    assert len(alive) >= 3
    assert not any(alive)
