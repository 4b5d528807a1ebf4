"""Sketches: a few thousand numbers for each response, whose inner products are those of the responses' gradients.

For a linear layer with inputs a_t and gradients g_t of its outputs the gradient of one response is the sum over its
tokens of ``g_t a_t^T``. With fixed random sign matrices Q_b (k x outputs) and P_b (k x inputs), b = 1 ... B, its sketch
is B blocks of k x k numbers,

    S_b = sum_t (Q_b g_t) (P_b a_t)^T / (k root B),        E <S, S'> = <G, G'>.

The sketch is taken from hooks inside the backward pass over a whole pack: the gradient of one response is never formed,
nor that of any weight. An embedding is a linear layer whose inputs are one-hot rows; weights that are tied share Q and
P, and their sketches are added. A bias is a last input that is always 1. Weights of norms, and whatever is no linear
layer or embedding, are left out.

Of gradients of rank 1 (one token) the error of an inner product has a variance of ((1 + 2/k)^2 - 1) / B of the squared
norms at most. k is 4 throughout (less where there is no room for 16 numbers), so that the error falls as one over the
root of the size; one block alone, of a larger side, would fall as one over the root of its side. Tokens and layers have
independent errors, which they average.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradsteer.models.batches import Batch, lengths_of, running, token_losses, token_weights
from gradsteer.models.packing import Pack
from gradsteer.vectors.seeding import generator_for

_SIDE = 4


@dataclass(frozen=True)
class _Part:
    """Where one weight's sketch lies, and its projections.

    Attributes:
        rows: (outputs, B k) of the weight's rows; an embedding's are its tokens.
        columns: (inputs, B k) of its columns, a bias's last.
        side: k.
        start: of its sketch in a whole one.
    """

    rows: Tensor
    columns: Tensor
    side: int
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.rows.shape[1] * self.side


class Sketcher:
    """Takes the sketches of responses at a model's present weights, a pack at a time.

    Example::

        sketcher = Sketcher(model, size=4096)
        sketches = sketcher.add(batch)     # (examples, sketcher.size) float32

    Args:
        model: a causal LM in eval mode; its weights take no gradient.
        size: about so many numbers for a response, shared out evenly over the weights.
        seed: of the sign matrices; only sketches of one seed, one size and one model can be compared.

    Raises:
        ValueError: the model has no linear layer, or the size has not one number for each weight.
    """

    def __init__(self, model: Any, *, size: int = 4096, seed: int = 0) -> None:
        self.model = model
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._modules = [each for each in model.modules() if _is_covered(each, model.get_input_embeddings())]
        first = {id(module.weight): module for module in reversed(self._modules)}  # of tied weights
        biased = {id(module.weight) for module in self._modules if getattr(module, "bias", None) is not None}
        room = size // len(first) if first else 0
        side = min(_SIDE, math.isqrt(room))
        if side < 1:
            raise ValueError(
                f"a sketch of {size} numbers has none for some of the {len(first)} linear layers of "
                f"{type(model).__name__}; accepted: at least {max(1, len(first))}"
            )
        self._parts: dict[int, _Part] = {}
        self.layers: dict[str, slice] = {}
        start = 0
        for module in first.values():
            weight, key = module.weight, id(module.weight)
            outputs, inputs = _shape(module)
            width = room // side**2 * side
            scale = side * width  # the square of k root B
            part = _Part(
                _signs(outputs, width, scale, weight, "rows", seed, names[key]),
                _signs(inputs + (key in biased), width, scale, weight, "columns", seed, names[key]),
                side,
                start,
            )
            self._parts[key], self.layers[names[key]] = part, slice(start, part.stop)
            start = part.stop
        self.size = start
        covered = sum(module.weight.numel() for module in first.values())
        self.coverage = covered / sum(parameter.numel() for parameter in model.parameters())
        self._sums = torch.empty(0)
        self._owners = self._labelled = torch.empty(0, dtype=torch.int64)
        self._forward, self._cursor = False, 0

    def add(self, batch: Batch, *, head_chunk: int | None = None) -> Tensor:
        """(examples, size) float32 (float64 of a float64 model): the sketch of each one's summed weighted loss.

        Args:
            batch: a pack of whole sequences, or a padded batch; losses are weighted where the examples have weights.
            head_chunk: see `gradsteer.models.packing.pack_losses`.

        Raises:
            ValueError: a sketch is not finite.
        """
        number, head = len(lengths_of(batch)), self.model.get_output_embeddings()
        parameter = next(self.model.parameters())
        dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        self._sums = torch.zeros(number, self.size, dtype=dtype, device=parameter.device)
        if isinstance(batch, Pack):
            assert not any(batch.shared), "a shared prompt's gradient belongs to several responses"
            lengths = torch.tensor(batch.lengths, device=parameter.device)
            self._owners = torch.repeat_interleave(torch.arange(number, device=parameter.device), lengths)
            self._labelled = batch.owners
        else:
            ids = batch["input_ids"]
            self._owners = torch.arange(number, device=ids.device)[:, None].expand_as(ids).reshape(-1)
        self._cursor = 0
        with running(batch, self.model), self._hooked(head), torch.enable_grad():
            self._forward = True
            losses, owners = token_losses(self.model, batch, head_chunk=head_chunk)
            self._forward = False
            if not isinstance(batch, Pack):
                self._labelled = owners
            weights = token_weights(batch)
            losses = losses if weights is None else losses * weights.to(losses)
            if len(losses):
                losses.sum().backward()
        found, self._sums = self._sums, torch.empty(0)
        return found

    @contextmanager
    def _hooked(self, head: Any) -> Iterator[None]:
        """Within the block outputs of the covered layers add to the sums as their gradient comes; weights have none."""
        with ExitStack() as stack:
            for parameter in self.model.parameters():
                stack.callback(parameter.requires_grad_, parameter.requires_grad)
                parameter.requires_grad_(False)
            for module in self._modules:
                hook = self._hook_of(module, is_head=module is head)
                stack.callback(module.register_forward_hook(hook).remove)
            yield

    def _hook_of(self, module: Any, *, is_head: bool) -> Any:
        part, embeds = self._parts[id(module.weight)], isinstance(module, nn.Embedding)

        def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            # parts that are checkpointed run forward again in the backward pass, but the first graph's outputs count
            if not self._forward:
                return
            given, start = inputs[0].detach(), self._cursor
            if is_head:
                self._cursor += given.shape[:-1].numel()

            def collect(gradient: Tensor) -> None:
                flat = gradient.detach().flatten(0, -2)
                owners = self._labelled[start : start + len(flat)] if is_head else self._owners
                owners = self._owners if len(flat) == len(self._owners) else owners
                if len(owners) != len(flat):
                    raise ValueError(
                        f"a {type(module).__name__} of {tuple(module.weight.shape)} ran on {len(flat)} of "
                        f"{len(owners)} tokens: whose they are is not known, so responses have no sketches"
                    )
                if embeds:
                    rows, columns = part.rows[given.flatten()], flat.to(part.columns) @ part.columns[: flat.shape[1]]
                else:
                    rows, columns = flat.to(part.rows) @ part.rows, _projected(given.flatten(0, -2), part.columns)
                self._put(part, rows, columns, owners)

            if embeds:
                output.requires_grad_(True)
            output.register_hook(collect)

        return hook

    def _put(self, part: _Part, rows: Tensor, columns: Tensor, owners: Tensor) -> None:
        """Adds each response's ``sum_t (Q g_t) (P a_t)^T``."""
        counts = torch.bincount(owners, minlength=len(self._sums))
        places = torch.arange(len(owners), device=owners.device) - (counts.cumsum(0) - counts)[owners]
        shape = len(self._sums), int(counts.max())
        # (examples, blocks, tokens, side), with zeros behind the last token
        left, right = (
            each.new_zeros(*shape, each.shape[1]).index_put((owners, places), each).unflatten(2, (-1, part.side))
            for each in (rows, columns)
        )
        self._sums[:, part.start : part.stop] += torch.einsum("etbi,etbj->ebij", left, right).flatten(1)


def _is_covered(module: Any, embeddings: Any) -> bool:
    return module is embeddings or isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _shape(module: Any) -> tuple[int, int]:
    """Outputs and inputs of a layer; an embedding is read as the head that may be tied to it."""
    first, second = module.weight.shape
    return (second, first) if type(module).__name__ == "Conv1D" else (first, second)


def _signs(number: int, width: int, scale: float, like: Tensor, *words: str | int) -> Tensor:
    """(number, width): random signs over the fourth root of a scale, the same on every device."""
    bits = torch.randint(2, (number, width), generator=generator_for("sketch", *words), dtype=torch.int8)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return (2 * bits - 1).to(device=like.device, dtype=dtype) / math.sqrt(math.sqrt(scale))


def _projected(inputs: Tensor, columns: Tensor) -> Tensor:
    """(tokens, k); a column more than there are inputs is a bias's."""
    found = inputs.to(columns) @ columns[: inputs.shape[1]]
    return found if len(columns) == inputs.shape[1] else found + columns[-1]
