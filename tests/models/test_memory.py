import importlib.util
import json
from pathlib import Path

import pytest
import torch
from tiny_models import VOCABULARY, ragged_examples, tiny_llama
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.data.chat import EncodedExample, collate
from gradsteer.models.memory import (
    MemoryPlan,
    activation_bytes_per_token,
    available_bytes,
    plan_memory,
    saved_bytes,
    size,
)
from gradsteer.models.on_paper import activation_bytes
from gradsteer.models.packing import Pack
from gradsteer.models.train_mode import checkpoint_activations

GIB = 2**30


def names(model):
    return [name for name, _ in model.named_parameters()]


def test_saved_bytes_of_two_layers_by_hand():
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    x = torch.randn(11, 5)
    # the input for the first weight's gradient; tanh's output, once for itself and for the second weight's gradient
    assert saved_bytes(lambda: model(x).sum()) == 4 * 11 * (5 + 7)
    model[0].requires_grad_(False)  # nothing before the second weight takes a gradient
    assert saved_bytes(lambda: model(x).sum()) == 4 * 11 * 7
    model.requires_grad_(False)
    assert saved_bytes(lambda: model(x).sum()) == 0


def test_a_storage_counts_once_and_views_of_parameters_do_not_count():
    weight, x = nn.Parameter(torch.randn(6, 6)), torch.randn(8, 6, requires_grad=True)
    assert saved_bytes(lambda: (x @ weight.t()[:, :3]).sum()) == 4 * 8 * 6  # x, and not the weight
    assert saved_bytes(lambda: (x.exp() * x[2:3]).sum()) == 4 * 8 * 6 * 2  # exp's output; x whole, by a view of it
    assert saved_bytes(lambda: (x[:4] * x[4:]).sum()) == 4 * 8 * 6


def independent_count(model, run):
    """Walks the graph's saved tensors instead of hooking into the saving of them."""
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages, nodes, seen = {}, [run().grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        for attribute in dir(node):
            if attribute.startswith("_saved_"):
                value = getattr(node, attribute)
                for tensor in value if isinstance(value, list | tuple) else [value]:
                    if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in known:
                        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_bytes_equal_what_the_graph_holds(dtype):
    model, batch = tiny_llama(dtype=dtype), collate(ragged_examples(3), 0)

    def run():
        return model(**{key: value for key, value in batch.items() if key != "labels"}).logits.float().exp().sum()

    assert saved_bytes(run) == independent_count(model, run) > 10_000


def plan_scale():
    path = Path(__file__).parents[2] / "scripts" / "plan_scale.py"
    spec = importlib.util.spec_from_file_location("plan_scale", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_those_of_the_formula(dtype, checkpointing):
    model = tiny_llama(dtype=dtype)
    if checkpointing:
        checkpoint_activations(model)
        model.train()
    measured = activation_bytes_per_token(model, ragged_examples(3), parameters=names(model))
    element = torch.empty(0, dtype=dtype).element_size()
    assert measured == activation_bytes(model.config, element, checkpointing=checkpointing)
    assert model.training == checkpointing


@pytest.mark.parametrize("packs", [True, False])
def test_activations_are_linear_in_tokens_and_free_of_logits(packs):
    model, wide = tiny_llama(dtype=torch.float32), tiny_llama(dtype=torch.float32)
    wide.resize_token_embeddings(16 * VOCABULARY)
    of_length = [[EncodedExample(list(range(3, 3 + n)), [-100, *range(4, 3 + n)])] for n in (8, 16, 40)]
    few, more, most = (activation_bytes_per_token(model, e, parameters=names(model), packs=packs) for e in of_length)
    # a padded batch's mask has a byte or so a row
    assert few == pytest.approx(more, rel=1e-4) == pytest.approx(most, rel=1e-4)
    assert few > 1000
    assert activation_bytes_per_token(wide, of_length[1], parameters=names(wide), packs=packs) == more


def test_attention_that_keeps_scores_costs_more_in_longer_sequences():
    options = {"num_key_value_heads": 1, "head_dim": 8, "hidden_size": 16, "intermediate_size": 24}
    config = Gemma2Config(
        vocab_size=VOCABULARY, num_hidden_layers=2, num_attention_heads=2, sliding_window=4, **options
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    short, long = (
        activation_bytes_per_token(model, [EncodedExample([5] * n, [5] * n)], parameters=names(model)) for n in (8, 64)
    )
    assert long > short


def test_measuring_leaves_the_model_as_it_was_and_fewer_parameters_save_less():
    model = tiny_llama(dtype=torch.float32)
    model.model.layers[0].requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    everything = activation_bytes_per_token(model, ragged_examples(2), parameters=names(model))
    last = [name for name in names(model) if "layers.1.mlp" in name]
    assert activation_bytes_per_token(model, ragged_examples(2), parameters=last) < everything / 2
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    model.train()
    model.model.layers[0].train(False)
    activation_bytes_per_token(model, ragged_examples(2), parameters=last)
    assert model.training
    assert not model.model.layers[0].mlp.training


def a_plan(model, **changes):
    options = {
        "parameters": names(model), "token_budget": 100, "labelled_tokens": 50, "head_chunk": None,
        "activation_bytes_per_token": 10.0,
    }  # fmt: skip
    return plan_memory(model, **{**options, **changes})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("dtype", "element"), [(torch.bfloat16, 2), (torch.float32, 4), (torch.float64, 8)])
def test_weights_and_sums_are_counted_tied_ones_once(dtype, element, tied):
    model = tiny_llama(tied=tied, dtype=dtype)
    num = sum(parameter.numel() for parameter in model.parameters())
    plan = a_plan(model)
    assert num == 2 * (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 24 + 2 * 16) + 16 + VOCABULARY * 16 * (1 if tied else 2)
    assert (plan.weights, plan.buffers) == (element * num, max(element, 4) * num)
    assert plan.sums_dtype == ("float64" if element == 8 else "float32")
    pile = PileGradient(model)
    assert plan.buffers == sum(buffer.nbytes for buffer in pile.sums.buffers.values())
    assert (plan.activations, plan.other, plan.gathered) == (1000, 0, 0)
    assert plan.total == plan.weights + plan.buffers + plan.gradients + plan.activations + plan.logits
    norms = [name for name in names(model) if "norm" in name]
    assert a_plan(model, parameters=norms).buffers == max(element, 4) * 16 * len(norms)


def test_gradients_logits_and_parts():
    head = 4 * VOCABULARY * 16
    tied, untied = tiny_llama(dtype=torch.float32), tiny_llama(tied=False, dtype=torch.float32)
    assert a_plan(untied).gradients == head
    assert a_plan(untied, head_chunk=50).gradients == head
    assert a_plan(untied, head_chunk=49).gradients == 2 * head
    assert a_plan(tied).gradients == 2 * head
    norms = [name for name in names(tied) if "norm" in name]
    assert a_plan(tied, parameters=norms).gradients == 4 * 16
    half = tiny_llama(tied=False, dtype=torch.bfloat16)
    assert a_plan(half).gradients == (2 + 4) * VOCABULARY * 16  # a CPU adds from a float32 copy
    assert a_plan(untied).logits == 3 * 4 * 50 * VOCABULARY
    assert a_plan(untied, head_chunk=7).logits == 3 * 4 * 7 * VOCABULARY
    assert a_plan(untied, head_chunk=700).logits == 3 * 4 * 50 * VOCABULARY
    whole, parts = a_plan(untied), a_plan(untied, shards=4, other_bytes=5)
    assert parts.weights == -(-whole.weights // 4)
    assert parts.buffers == -(-whole.buffers // 4)
    block = 4 * (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 24 + 2 * 16)
    assert parts.gathered == 2 * head + 4 * 16 + 2 * block
    assert parts.gradients == 2 * head + 4 * 16 + max(2 * head + 4 * 16, 2 * block)
    assert parts.other == 5


def peak_of_allocations(run, path):
    """The most bytes that were allocated at once, by the profiler's account of every allocation."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    profile.export_chrome_trace(str(path))
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        most = max(most, now)
    return most


@pytest.mark.parametrize(
    ("packs", "head_chunk", "checkpointing", "tied", "dtype"),
    [
        (True, None, False, False, torch.float32),
        (True, 64, False, True, torch.float32),
        (True, 64, False, False, torch.bfloat16),
        (True, 64, True, True, torch.float32),
        (False, None, False, True, torch.float32),
    ],
)
def test_the_plan_is_what_is_allocated(packs, head_chunk, checkpointing, tied, dtype, tmp_path):
    config = LlamaConfig(
        vocab_size=2000, hidden_size=64, intermediate_size=160, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    if checkpointing:
        checkpoint_activations(model)
        model.train()
    ids = torch.randint(3, 2000, (4, 128), generator=torch.Generator().manual_seed(0)).tolist()
    examples = [EncodedExample(row, [-100, *row[1:]]) for row in ids]
    per_token = activation_bytes_per_token(model, examples, parameters=names(model), packs=packs)
    plan = plan_memory(
        model, parameters=names(model), token_budget=512, labelled_tokens=4 * 127, head_chunk=head_chunk,
        activation_bytes_per_token=per_token,
    )  # fmt: skip
    pile = PileGradient(model, head_chunk=head_chunk)
    batch = Pack.of(examples) if packs else collate(examples, 0)
    planned = plan.gradients + plan.activations + plan.logits
    allocated = peak_of_allocations(lambda: pile.add(batch), tmp_path / "trace.json")
    # checkpointing: the logits are gone when the first block is computed again; the plan adds both
    assert allocated <= planned <= allocated * (2.0 if checkpointing else 1.2)


def test_text_and_advice():
    parts = dict(weights=2 * GIB, buffers=4 * GIB, gradients=GIB, activations=3 * GIB, logits=GIB // 2, num_tokens=8192)
    plan = MemoryPlan(**parts, available=78 * GIB, device="cuda:0")
    assert plan.text() == (
        "memory plan on cuda:0 (estimates): weights 2.0 GiB + float32 sums 4.0 GiB + gradients in flight 1.0 GiB + "
        "activations of 8192 tokens 3.0 GiB + logits 0.5 GiB = 10.5 GiB of 78.0 GiB"
    )
    assert plan.advice() is None
    unknown = MemoryPlan(**parts, other=3 * 2**20, gathered=GIB)
    assert unknown.text().endswith("+ logits 0.5 GiB + other 3.0 MiB = 11.5 GiB")
    assert "weights 2.0 GiB + gathered weights 1.0 GiB" in unknown.text()
    assert unknown.advice() is None
    tight = MemoryPlan(**parts, available=8 * GIB, device="cuda:0").advice()
    assert tight.startswith("the plan is 2.5 GiB more than cuda:0 has: a smaller --data.token_budget")
    hopeless = MemoryPlan(**parts, available=6 * GIB, device="cuda:0").advice()
    assert "fewer tokens at once would not do" in hopeless
    for flag in (
        "--data.token_budget", "--model.gradient_checkpointing true", "--model.parameters", "--model.dtype bfloat16",
        "configs/strategy/fsdp.yaml",
    ):  # fmt: skip
        assert flag in tight
        assert flag in hopeless
    assert [size(n) for n in (0, 2**18, 2**27)] == ["0.0 KiB", "0.2 MiB", "0.1 GiB"]


def test_what_is_available(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr("gradsteer.models.memory._MEMINFO", meminfo)
    assert available_bytes(torch.device("cpu"), held=7) is None
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:      60 kB\n")
    assert available_bytes(torch.device("cpu"), held=7) == 60 * 1024 + 7
    assert available_bytes(torch.device("meta"), held=7) is None


def test_the_tables_of_the_documentation_are_what_the_script_prints(capsys):
    plan_scale().main()
    printed = capsys.readouterr().out
    documented = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    for table in printed.strip().split("\n\n"):
        assert table in documented
