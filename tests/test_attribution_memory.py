"""Gradient checkpointing and running out of memory: other ways to the same gradients."""

import pytest
import torch
from road import QUIET
from test_attribution_module import Averages
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from gradsteer.__main__ import main
from gradsteer.data.piles import PileDataModule
from gradsteer.modules.attribution import AttributionModule
from gradsteer.trainer import GradsteerTrainer
from gradsteer.vectors import PileAverage


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
    calls = []

    def watch(module):
        # the checkpoint begins inside the block's own hooks, and its second run stops as soon as it has what it needs
        module.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))

    options = {"packing": packing, "gradient_checkpointing": True}
    ours = attribute(experiment / "anchor", inputs / "chat.jsonl", prepare=watch, **options)
    assert_same(ours, whole)
    recomputed, calls[:] = len(calls), []
    attribute(experiment / "anchor", inputs / "chat.jsonl", prepare=watch, packing=packing)
    assert len(calls) > 0
    assert recomputed == 2 * len(calls)  # every layer runs once more, in the backward pass


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
    def spoil(module):
        def refuse(_gradient):
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
