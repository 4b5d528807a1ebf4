"""Models whose weights are split over processes (FSDP2): the only file that knows of meshes and DTensors.

A tensor is *whole* on one process, or a process holds a *shard* of it. Every function here does nothing to a tensor or
a model that is not split, so that its callers need not ask. Functions marked *collective* must be called by all
processes alike.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

T = TypeVar("T")


def is_split(tensor: Tensor) -> TypeGuard["DTensor"]:
    """Whether this process holds only a shard of a tensor."""
    # a plain tensor is answered without importing torch.distributed
    if type(tensor) is Tensor or type(tensor) is nn.Parameter:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def is_split_model(model: nn.Module) -> bool:
    """Whether a model's weights are split over processes."""
    return any(is_split(parameter) for parameter in model.parameters())


def shard(tensor: Tensor) -> Tensor:
    """The shard of a tensor that this process holds, sharing its memory; the tensor itself where it is not split."""
    if not is_split(tensor):
        return tensor
    return tensor.to_local()


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor, on every process (collective)."""
    if not is_split(tensor):
        return tensor
    return tensor.full_tensor()


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The shard of a whole tensor (or of one that is split already) that belongs beside this process's shard of `like`.

    Args:
        tensor: of the shape of `like`.
        like: a parameter, split or not.
    """
    if not is_split(like) or is_split(tensor):
        return shard(tensor)
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements
    # every process has the whole: nothing is sent
    split = distribute_tensor(tensor.detach().to(like.device), mesh, placements, src_data_rank=None)
    return split.to_local()


def whole_of_shards(held: Tensor, like: Tensor) -> Tensor:
    """Puts together what every process holds of a tensor that is split as `like` is (collective).

    Args:
        held: this process's shard.
        like: a parameter, split or not.
    """
    if not is_split(like):
        return held
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements
    split = DTensor.from_local(held, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())
    return split.full_tensor()


def sum_over_shards(value: Tensor, like: Tensor) -> Tensor:
    """Adds up a number that every process took over its shard of a tensor split as `like` is (collective)."""
    if not is_split(like):
        return value
    import torch.distributed

    total = value.to(like.device, copy=True)
    for dimension in range(like.device_mesh.ndim):
        torch.distributed.all_reduce(total, group=like.device_mesh.get_group(dimension))
    return total


def settle(model: nn.Module) -> None:
    """Puts the weights of a split model back into parts: a forward pass without a backward leaves some whole.

    To be called before weights are read or written.
    """
    if not is_split_model(model) and not hasattr(model, "reshard"):
        return
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()  # type: ignore[operator]


def split_model(model: Any, mesh: "DeviceMesh") -> None:
    """Splits a model's weights over the processes of a mesh, block by block; gradients are summed, not averaged.

    Args:
        model: a transformers model; its ``_no_split_modules`` say what a block is.
        mesh: one dimension.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    blocks = set(getattr(model, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # gloo cannot multiply before it adds
            module.set_force_sum_reduction_for_comms(True)


def in_common(numbers: Iterable[int]) -> set[int]:
    """The numbers that every process has (collective)."""
    import torch.distributed

    held: list[list[int]] = [[]] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(held, sorted(numbers))
    return set.intersection(*map(set, held))


def gathered(value: T) -> list[T]:
    """What every process has of a value, by rank (collective); the value alone where there is one process."""
    import torch.distributed

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    held: list[T] = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(held, value)
    return held


def in_turns(load: Callable[[], T], *, local_rank: int, local_size: int) -> T:
    """Runs `load` on one process of a node after the other, so that only one holds a whole model (collective)."""
    import torch.distributed

    result: list[T] = []
    for turn in range(local_size):
        if turn == local_rank:
            result.append(load())
        torch.distributed.barrier()
    return result[0]


def load_split(load: Callable[[], Any], mesh: "DeviceMesh", *, local_rank: int, local_size: int) -> Any:
    """Loads a model and splits it over a mesh; the processes of a node take turns (collective).

    Args:
        load: loads the whole model on the CPU.
        mesh: as Lightning's ModelParallelStrategy makes it, with the dimensions data_parallel and tensor_parallel.
        local_rank: of this process on its node.
        local_size: processes on this node.

    Raises:
        ValueError: the mesh asks for tensor parallelism.
    """
    data, tensor = mesh["data_parallel"], mesh["tensor_parallel"]
    if tensor.size() > 1:
        raise ValueError(
            f"the strategy's mesh is data_parallel_size={data.size()}, tensor_parallel_size={tensor.size()}; accepted: "
            f"weights split by FSDP2 alone, --trainer.strategy.data_parallel_size {data.size() * tensor.size()} "
            "(the number of processes) and --trainer.strategy.tensor_parallel_size 1"
        )

    def load_and_split() -> Any:
        model = load()
        split_model(model, data)
        return model

    return in_turns(load_and_split, local_rank=local_rank, local_size=local_size)
