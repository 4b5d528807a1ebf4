"""The weight diff (task vector): what the finetune changed, ``Delta = anchor - base``."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from gradsteer.models.checkpoints import CheckpointWeights, write_safetensors_streamed
from gradsteer.models.parameter_selection import kind_of
from gradsteer.vectors.parameter_vectors import FORMAT_VERSION, ParameterVector

DELTA = "delta"  # the diff's name among an experiment's vectors


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters by name, tied weights once, detached and not copied."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def refuse_other_shapes(anchor: Mapping[str, torch.Size], base: Mapping[str, torch.Size]) -> None:
    """Refuses a base of another size, depth or vocabulary than the anchor's, by shapes of the parameters by name.

    Raises:
        ValueError: names a parameter that differs, and both sides.
    """
    for name, shape in anchor.items():
        theirs = base.get(name, shape)
        if kind_of(name) in ("embedding", "head") and shape != theirs and shape[1:] == theirs[1:]:
            raise ValueError(
                f"the anchor has {shape[0]} rows for tokens and the base {theirs[0]} ({name!r}): the vocabulary "
                f"changed in the finetune, and rows that one of them lacks have no difference; accepted: a base of "
                f"{shape[0]} rows, as model.resize_token_embeddings({shape[0]}) gives, saved with its tokenizer"
            )
    differ = [name for name in (*anchor, *base) if anchor.get(name) != base.get(name)]
    if differ:
        name, counts = differ[0], [sum(shape.numel() for shape in shapes.values()) for shapes in (anchor, base)]
        here, there = (str(list(shapes[name])) if name in shapes else "absent" for shapes in (anchor, base))
        raise ValueError(
            f"the base is no model that the anchor was finetuned from: {len(set(differ))} parameters differ in shape "
            f"or name, such as {name!r} ({here} in the anchor, {there} in the base; {counts[0]:,} numbers in all "
            f"against {counts[1]:,}); accepted: the base of this anchor"
        )


class WeightDiff(ParameterVector):
    """``Delta = theta_anchor - theta_base``, computed in float32 whatever the weights' dtype.

    A subtraction in bfloat16 would lose the small differences that matter.
    """

    kind = "diff"

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        lazy = isinstance(tensors, _Differences)
        super().__init__({} if lazy else tensors, metadata)
        if lazy:
            self.tensors = tensors

    @classmethod
    def between(cls, anchor: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Self:
        """The diff of two sets of weights (see `named_weights`), in memory.

        Raises:
            ValueError: names or shapes differ: the two are not the same architecture.
        """
        return cls(dict(_Differences(anchor, base)))

    @classmethod
    def streamed(cls, anchor: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Self:
        """The diff of two sets of weights, each tensor subtracted whenever it is asked for, and not cached.

        Norms, percentiles, `save` and the transforms of a vector then hold a few tensors of it at a time. What is
        derived from it (``diff * 2``, `map`) is in memory.

        Args:
            anchor: `named_weights` of a model, which must have its own weights whenever the diff is used, or
                `gradsteer.models.checkpoints.CheckpointWeights`.
            base: likewise, with the same names and shapes.

        Raises:
            ValueError: names or shapes differ: the two are not the same architecture.
        """
        return cls(_Differences(anchor, base))

    def outline(self) -> dict[str, Tensor]:
        """Tensors of the diff's names and shapes without values, for checks: nothing is computed."""
        if isinstance(self.tensors, _Differences):
            return _outline(self.tensors.shapes)
        return _outline(shapes_of(self.tensors))

    def numel(self) -> int:
        """Number of entries over all parameters."""
        return sum(tensor.numel() for tensor in self.outline().values())

    def save(self, path: str | Path) -> Path:
        """Writes a safetensors file as every vector's `save` does, with one tensor in memory at a time."""
        target = Path(path)
        header = {**self.metadata, "format_version": FORMAT_VERSION, "kind": self.kind}
        shapes = {name: tensor.shape for name, tensor in self.outline().items()}
        write_safetensors_streamed(target, shapes, self.__getitem__, header)
        return target


class _Differences(Mapping[str, Tensor]):
    """The tensors of a diff, subtracted on access."""

    def __init__(self, anchor: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> None:
        self.anchor, self.base = anchor, base
        self.shapes, theirs = shapes_of(anchor), shapes_of(base)
        refuse_other_shapes(self.shapes, theirs)

    def __getitem__(self, name: str) -> Tensor:
        weight = self.anchor[name]
        return weight.float() - self.base[name].to(weight.device).float()

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def shapes_of(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """The shape of every parameter; of a checkpoint without reading any."""
    if isinstance(weights, CheckpointWeights):
        return weights.shapes
    return {name: weight.shape for name, weight in weights.items()}


def _outline(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
