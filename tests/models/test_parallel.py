"""Weights that are whole: the functions for split ones do nothing. Split ones are tried in test_distributed_split."""

import ast
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_llama
from torch import nn

from gradsteer.models import parallel

PACKAGE = Path(parallel.__file__).parents[1]
OF_PARALLEL = {"DTensor", "DeviceMesh", "fully_shard", "FSDPModule", "distribute_tensor", "init_device_mesh"}


class Mesh:
    """The sizes of a mesh by dimension, as `load_split` looks at them."""

    def __init__(self, **sizes):
        self.sizes, self.name = sizes, None

    def __getitem__(self, name):
        part = Mesh(**self.sizes)
        part.name = name
        return part

    def size(self):
        return self.sizes[self.name]


@pytest.mark.parametrize("kind", [nn.Parameter, lambda tensor: tensor, nn.Buffer])
def test_a_whole_tensor_is_given_back(kind):
    tensor, like = kind(torch.rand(3, 2)), nn.Parameter(torch.rand(3, 2))
    assert not parallel.is_split(tensor)
    assert parallel.shard(tensor) is tensor
    assert parallel.whole(tensor) is tensor
    assert parallel.shard_like(tensor, like) is tensor
    assert parallel.whole_of_shards(tensor, like) is tensor
    assert parallel.sum_over_shards(tensor, like) is tensor


def test_a_whole_model_is_left_alone(llama):
    before = [(parameter.data_ptr(), parameter._version) for parameter in llama.parameters()]
    assert not parallel.is_split_model(llama)
    parallel.settle(llama)
    assert [(parameter.data_ptr(), parameter._version) for parameter in llama.parameters()] == before


def test_settling_reaches_every_module_that_is_split():
    """After a forward pass without a backward nothing is split, not even a parameter: the modules know."""
    settled = []

    class Split(nn.Linear):
        def reshard(self):
            settled.append(self)

    model = Split(2, 2)
    model.add_module("inner", nn.Sequential(Split(2, 2), nn.Linear(2, 2)))
    parallel.settle(model)
    assert settled == [model, model.inner[0]]


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_processes_load_in_turns(monkeypatch, rank):
    events = []
    monkeypatch.setattr("torch.distributed.barrier", lambda: events.append("met"))
    assert parallel.in_turns(lambda: events.append("loaded") or rank, local_rank=rank, local_size=3) == rank
    assert events == [*["met"] * rank, "loaded", *["met"] * (3 - rank)]


@pytest.mark.parametrize(("data", "tensor"), [(1, 2), (2, 4)])
def test_a_mesh_that_splits_within_layers_is_refused_before_anything_is_loaded(data, tensor):
    def never():
        raise AssertionError("loaded")

    said = f"data_parallel_size={data}, tensor_parallel_size={tensor}; accepted: .*data_parallel_size {data * tensor} "
    with pytest.raises(ValueError, match=said):
        parallel.load_split(never, Mesh(data_parallel=data, tensor_parallel=tensor), local_rank=0, local_size=1)


def test_a_mesh_of_processes_is_handed_on(monkeypatch):
    split = []
    monkeypatch.setattr("torch.distributed.barrier", lambda: None)
    monkeypatch.setattr(parallel, "split_model", lambda model, mesh: split.append((model, mesh.name)))
    model = tiny_llama()
    mesh = Mesh(data_parallel=2, tensor_parallel=1)
    assert parallel.load_split(lambda: model, mesh, local_rank=1, local_size=2) is model
    assert split == [(model, "data_parallel")]


def names_in(tree):
    """Every name, attribute, import and string of some code, docstrings left out."""
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield from node.name.split(".")
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            yield node.value.strip("'\"")  # an annotation in quotes


@pytest.mark.slow
def test_one_file_alone_knows_of_meshes():
    found = {path: OF_PARALLEL & set(names_in(ast.parse(path.read_text()))) for path in PACKAGE.rglob("*.py")}
    assert [path.name for path, names in found.items() if names] == ["parallel.py"], found
