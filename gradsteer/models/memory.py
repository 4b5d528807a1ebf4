"""How much memory attribution will take, planned before it starts and set against what the device has.

Weights and sums are counted, activations are measured on a few tokens, gradients and logits follow from how the
backward pass frees them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradsteer.data.chat import EncodedExample, collate
from gradsteer.models.adapter_space import all_weights
from gradsteer.models.layers import layer_of
from gradsteer.models.losses import example_losses
from gradsteer.models.packing import Pack, attending, pack_losses
from gradsteer.models.parallel import settle

_PROBE_TOKENS = 128
_MEMINFO = Path("/proc/meminfo")


def saved_bytes(run: Callable[[], Tensor]) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward pass of a forward pass.

    Parameters and views of them are there anyway and do not count. With gradient checkpointing only what is kept
    counts, not what the backward pass computes again.

    Args:
        run: a forward pass; what it returns keeps the graph alive while storages are told apart by their address.
    """
    storages: dict[tuple[int, int], int] = {}

    def keep(tensor: Tensor) -> Tensor:
        owner = tensor if tensor._base is None else tensor._base
        if not isinstance(tensor, nn.Parameter) and not isinstance(owner, nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr(), storage.nbytes()] = storage.nbytes()
        return tensor.detach()  # the tensor itself, where it is its node's output, would keep the graph for good

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        result = run()
    total = sum(storages.values())
    del result
    return total


def activation_bytes_per_token(
    model: Any, examples: Sequence[EncodedExample], *, parameters: Sequence[str], packs: bool = True
) -> float:
    """What a token more costs in saved activations, by two short forward passes; logits are left out.

    The first tokens of one example are run once and then twice over: the difference, over the tokens, is the slope.
    Both passes have one and the same label, so that the logits, and everything else that does not grow with the
    tokens (such as autocast's copies of the weights), cancels. Attention that keeps scores (with soft-capping or a
    sliding window) costs more a token in longer sequences than the up to 128 tokens measured here.

    In train mode with gradient checkpointing it is what the checkpoints keep and one block's share of all activations,
    which the backward pass makes again one block at a time.

    Args:
        model: a causal LM on its device, in the mode that it will run in; every process must call this alike where the
            weights are split (collective).
        examples: of the piles; the longest is used.
        parameters: names of the parameters that will take gradients.
        packs: whether packs will run; otherwise padded batches.

    Returns:
        Bytes a token.
    """
    longest = max(examples, key=lambda example: len(example.input_ids))
    ids = longest.input_ids[:_PROBE_TOKENS]
    labelled = EncodedExample(ids, [*[-100] * (len(ids) - 1), ids[-1]])
    silent = EncodedExample(ids, [-100] * len(ids))
    device = next(model.parameters()).device

    def run(sequences: list[EncodedExample]) -> int:
        if packs:
            pack = Pack.of(sequences, device)
            with attending(model, pack):
                return saved_bytes(lambda: pack_losses(model, pack))
        batch = {key: value.to(device) for key, value in collate(sequences, 0).items()}
        return saved_bytes(lambda: example_losses(model, batch)[0])

    def slope() -> float:
        return (run([labelled, silent]) - run([labelled])) / len(ids)

    training = [module for module in model.modules() if module.training]
    try:
        with _differentiating(model, parameters):
            kept = slope()
            model.train(False)  # transformers checkpoints in train mode only
            plain = slope() if training else kept
    finally:
        for module in training:
            module.training = True
        settle(model)
    num_blocks = int(getattr(model.config.get_text_config(), "num_hidden_layers", 1))
    return kept + plain / num_blocks if plain > kept else kept


@dataclass
class MemoryPlan:
    """Estimated bytes on one device at the worst moment of an attribution.

    Attributes:
        weights: of the model, or of this process's part of it.
        buffers: the sums of gradients.
        gradients: those that exist at once, beside the sums, during a backward pass.
        activations: what the forward pass keeps for the backward pass.
        logits: of the positions at once in the head, and what cross-entropy makes of them.
        other: whatever the caller knows of, such as a reference model.
        gathered: weights that are whole for a moment where processes hold parts.
        available: what the device has free, this process's own memory included; None where that is not known.
        device: its name.
        num_tokens: tokens at once.
        sums_dtype: of the sums.
    """

    weights: int
    buffers: int
    gradients: int
    activations: int
    logits: int
    other: int = 0
    gathered: int = 0
    available: int | None = None
    device: str = "cpu"
    num_tokens: int = 0
    sums_dtype: str = "float32"

    @property
    def fixed(self) -> int:
        """What does not shrink with the tokens at once."""
        return self.weights + self.buffers + self.gradients + self.gathered + self.other

    @property
    def total(self) -> int:
        """All of it."""
        return self.fixed + self.activations + self.logits

    def text(self) -> str:
        """The plan in one line."""
        parts = [("weights", self.weights)]
        parts += [("gathered weights", self.gathered)] if self.gathered else []
        parts += [(f"{self.sums_dtype} sums", self.buffers), ("gradients in flight", self.gradients)]
        parts += [(f"activations of {self.num_tokens} tokens", self.activations), ("logits", self.logits)]
        parts += [("other", self.other)] if self.other else []
        listed = " + ".join(f"{name} {size(num_bytes)}" for name, num_bytes in parts)
        have = "" if self.available is None else f" of {size(self.available)}"
        return f"memory plan on {self.device} (estimates): {listed} = {size(self.total)}{have}"

    def advice(self) -> str | None:
        """What to change where the plan does not fit; None where it fits, or where that cannot be told."""
        if self.available is None or self.total <= self.available:
            return None
        fewer_tokens = "a smaller --data.token_budget, --model.gradient_checkpointing true"
        fewer_weights = (
            "--model.dtype bfloat16, fewer --model.parameters, "
            "the weights split over several devices (--config configs/strategy/fsdp.yaml)"
        )
        over = f"the plan is {size(self.total - self.available)} more than {self.device} has"
        if self.fixed > self.available:
            return f"{over}, and fewer tokens at once would not do: {fewer_weights}; then {fewer_tokens}"
        return f"{over}: {fewer_tokens}; or {fewer_weights}"


def plan_memory(
    model: Any,
    *,
    parameters: Sequence[str],
    token_budget: int,
    labelled_tokens: int,
    head_chunk: int | None,
    activation_bytes_per_token: float,
    other_bytes: int = 0,
    shards: int = 1,
) -> MemoryPlan:
    """Plans the memory of an attribution on one device.

    *Gradients in flight.* A hook frees a parameter's gradient once it is complete, and autograd completes one before
    it starts the next: the largest one exists at once. Two gradients of the head exist where its gradient is itself a
    sum, over the head's chunks or, for tied weights, with the embedding's; a tied one waits for the embedding's until
    the end of the backward pass, beside every other. On a CPU a float32 copy of a half-precision gradient is added
    from. Where weights are split by FSDP2, a block's gradients come whole and are copied for the reduction, and those
    of everything outside of the blocks (embedding, head) wait whole until the end.

    *Logits.* Three numbers a position and word of the vocabulary, in float32 (float64 for float64): when
    cross-entropy is differentiated, the log-probabilities, the gradient by them and the gradient by the logits exist at
    once; the forward pass, with logits in the compute dtype and their float32 copy, has less.

    Args:
        model: a causal LM; its values are not read (the meta device will do).
        parameters: names of those that take gradients.
        token_budget: tokens at once; of the longest sequence where that is more.
        labelled_tokens: the most labelled tokens among them.
        head_chunk: positions at once in the head; None for all labelled ones.
        activation_bytes_per_token: from the function of that name, or a formula.
        other_bytes: of whatever else lies on the device: a reference model, the originals of rewritten weights, the
            half-precision copy of the weights under autocast (2 bytes a weight).
        shards: processes that the weights are split over.
    """
    everything = dict(model.named_parameters())
    covered = {name: everything[name] for name in parameters}
    head = model.get_output_embeddings().weight
    double = head.dtype == torch.float64
    chunk = min(head_chunk or labelled_tokens, labelled_tokens)
    sums = sum(parameter.numel() * (8 if parameter.dtype == torch.float64 else 4) for parameter in covered.values())
    device = next(model.parameters()).device
    weights = -(-_bytes(all_weights(model).values()) // shards)
    if shards == 1:
        gathered, gradients = 0, _gradients_in_flight(model, covered, chunked=chunk < labelled_tokens)
    else:
        (outside, block), (outside_covered, block_covered) = map(_outside_and_block, (everything, covered))
        gathered = outside + 2 * block
        gradients = outside_covered + max(outside_covered, 2 * block_covered)
    return MemoryPlan(
        weights=weights,
        buffers=-(-sums // shards),
        gradients=gradients,
        activations=round(token_budget * activation_bytes_per_token),
        logits=3 * head.shape[0] * chunk * max(head.element_size(), 4),
        other=other_bytes,
        gathered=gathered,
        available=available_bytes(device, held=weights),
        device=str(device),
        num_tokens=token_budget,
        sums_dtype="float64" if double else "float32",
    )


def available_bytes(device: torch.device, *, held: int) -> int | None:
    """What a device has free and this process's own memory there; None where that is not known.

    Args:
        device: a CUDA device or the CPU; others are not known.
        held: the model's bytes, which a CPU's free memory does not count any more.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    if device.type == "cpu" and _MEMINFO.is_file():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1]) + held
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device, or the CPU's allocator, is out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


def size(num_bytes: float) -> str:
    """Bytes as text, such as ``2.3 GiB``."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= 0.1 * scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes / 1024:.1f} KiB"


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _gradients_in_flight(model: Any, covered: dict[str, nn.Parameter], *, chunked: bool) -> int:
    head = model.get_output_embeddings().weight
    tied = head is model.get_input_embeddings().weight
    complete = {name: _bytes([p]) + _converted(p) for name, p in covered.items()}
    heads = max((_bytes([p]) for p in covered.values() if p is head), default=0)
    others = max((complete[name] for name, p in covered.items() if p is not head), default=0)
    waiting = heads if tied else 0
    summed = 2 * heads if tied or chunked else 0
    return max(summed, waiting + others, *complete.values())


def _converted(parameter: nn.Parameter) -> int:
    """Bytes of the float32 copy that a CPU makes of a gradient in half precision before it adds it."""
    return 4 * parameter.numel() if parameter.device.type == "cpu" and parameter.element_size() < 4 else 0


def _outside_and_block(parameters: dict[str, nn.Parameter]) -> tuple[int, int]:
    """Bytes of what is in no block (embedding, head, last norm), and of the largest block."""
    outside, blocks = 0, {"": 0}
    for name, parameter in parameters.items():
        layer = layer_of(name)
        if layer.isdigit():
            blocks[layer] = blocks.get(layer, 0) + _bytes([parameter])
        else:
            outside += _bytes([parameter])
    return outside, max(blocks.values())


@contextmanager
def _differentiating(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Within the block just the named parameters take gradients."""
    chosen, before = set(names), {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
