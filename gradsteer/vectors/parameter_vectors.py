"""Vectors in weight space: one tensor per parameter, their algebra and their files.

`ParameterVector` is what a pile-average gradient, a weight diff and a steering vector share.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from gradsteer.models.adapter_weights import is_adapters
from gradsteer.models.exact import doubled, for_float64
from gradsteer.models.layers import layer_of, sum_squares_by_layer
from gradsteer.records import replacing
from gradsteer.vectors.metadata import contrast_metadata, merged_prompts

FORMAT_VERSION = "1"
_JSON = {"prompt_digests", "split_half_cosine_by_layer"}  # of the header


class ParameterVector(Mapping[str, Tensor]):
    """One tensor per model parameter, under the model's ``named_parameters()`` names (tied weights once).

    Supports ``+``, ``-``, negation and multiplication by a number; both sides must have the same names and
    shapes. Immutable by convention: every operation gives a new object that shares no metadata but the origin.

    Args:
        tensors: parameter name -> tensor of the parameter's shape.
        metadata: strings that say where the vector comes from; saved in the file's header.
    """

    kind = "parameters"
    __hash__ = object.__hash__
    __eq__ = object.__eq__  # a Mapping compares its values, and tensors do not compare to a bool

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        self.tensors: Mapping[str, Tensor] = dict(tensors)
        self.metadata = dict(metadata or {})

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(parameters={len(self)}, elements={self.numel()}, norm={self.norm():.4g})"

    def numel(self) -> int:
        """Number of entries over all parameters."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def __add__(self, other: "ParameterVector") -> Self:
        self.check_same_shapes(other)
        return self._derived({name: tensor + other[name] for name, tensor in self.items()}, "+", other)

    def __sub__(self, other: "ParameterVector") -> Self:
        self.check_same_shapes(other)
        return self._derived({name: tensor - other[name] for name, tensor in self.items()}, "-", other)

    def __mul__(self, factor: float) -> Self:
        if not isinstance(factor, int | float):
            return NotImplemented
        return self._derived({name: tensor * factor for name, tensor in self.items()}, f"*{factor}")

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Self:
        return self * (1 / divisor)

    def __neg__(self) -> Self:
        return self * -1.0

    def _derived(self, tensors: Mapping[str, Tensor], operation: str, other: Mapping[str, Any] | None = None) -> Self:
        metadata = dict(self.metadata)
        metadata["derivation"] = metadata.get("derivation", "") + operation
        if isinstance(other, ParameterVector):
            mine, theirs = self.metadata.get("model_fingerprint"), other.metadata.get("model_fingerprint")
            if mine != theirs:  # a sum over two models belongs to neither
                metadata.pop("model_fingerprint", None)
            if "prompt_digests" in metadata or "prompt_digests" in other.metadata:
                metadata |= merged_prompts(self.metadata, other.metadata)
        return type(self)(tensors, metadata)

    def map(self, function: Any, operation: str) -> Self:
        """A new vector with ``function(name, tensor)`` for every tensor; ``operation`` is noted as derivation."""
        return self._derived({name: function(name, tensor) for name, tensor in self.items()}, operation)

    def check_same_shapes(self, other: Mapping[str, Any]) -> None:
        """Checks that both have the same parameter names and shapes.

        Raises:
            ValueError: names the parameters that differ, on both sides.
        """
        theirs = {name: tuple(value.shape) for name, value in other.items()}
        mine = {name: tuple(value.shape) for name, value in self.items()}
        if mine == theirs:
            return
        missing, extra = sorted(mine.keys() - theirs.keys()), sorted(theirs.keys() - mine.keys())
        details = []
        if missing:
            details.append(f"{len(missing)} parameters only in this {self.kind} (such as {missing[0]!r})")
        if extra:
            details.append(f"{len(extra)} only on the other side (such as {extra[0]!r})")
        for name in sorted(mine.keys() & theirs.keys()):
            if mine[name] != theirs[name]:
                details.append(f"{name!r} has shape {mine[name]} here and {theirs[name]} on the other side")
                break
        raise ValueError(f"this {self.kind} does not fit: " + "; ".join(details))

    def check_fits(self, model: nn.Module) -> None:
        """Checks that every tensor of this vector names a parameter of the model with its shape.

        A vector may cover fewer parameters than the model has.

        Raises:
            ValueError: a name that the model lacks, or a shape that differs; both sides are named.
        """
        parameters = dict(model.named_parameters())
        for name, tensor in self.items():
            if name not in parameters:
                raise ValueError(
                    f"this {self.kind} does not fit the model: it has a parameter {name!r} {tuple(tensor.shape)}, "
                    f"the model ({type(model).__name__}, {len(parameters)} parameters) has none of that name"
                    f"{_space(self, parameters)}"
                )
            if tensor.shape != parameters[name].shape:
                raise ValueError(
                    f"this {self.kind} does not fit the model: {name!r} has shape {tuple(tensor.shape)} in the "
                    f"{self.kind} and {tuple(parameters[name].shape)} in the model"
                )

    def sum_squares(self) -> dict[str, float]:
        """Sum of squared entries of every tensor, summed in float64."""
        return {
            name: float(torch.linalg.vector_norm(for_float64(tensor), dtype=torch.float64)) ** 2
            for name, tensor in self.items()
        }

    def norm(self) -> float:
        """Euclidean norm over all entries."""
        return math.sqrt(sum(self.sum_squares().values()))

    def layer_sum_squares(self) -> dict[str, float]:
        """Sum of squared entries by layer, from the embedding to the head."""
        return sum_squares_by_layer(self.sum_squares())

    def dot(self, other: "ParameterVector") -> float:
        """Inner product over all entries, summed in float64.

        Raises:
            ValueError: the names or shapes differ.
        """
        self.check_same_shapes(other)
        return sum(float(torch.dot(doubled(t.flatten()), doubled(other[name].flatten()))) for name, t in self.items())

    def cosine(self, other: "ParameterVector") -> float:
        """Cosine of the angle between two vectors; 0.0 where either is zero."""
        norms = self.norm() * other.norm()
        return self.dot(other) / norms if norms > 0 else 0.0

    def layer_cosines(self, other: "ParameterVector") -> dict[str, float]:
        """Cosine by layer, from the embedding to the head; 0.0 where either is zero there.

        Raises:
            ValueError: the names or shapes differ.
        """
        self.check_same_shapes(other)
        dots: dict[str, float] = {}
        for name, tensor in self.items():
            product = float(torch.dot(doubled(tensor.flatten()), doubled(other[name].flatten())))
            dots[layer_of(name)] = dots.get(layer_of(name), 0.0) + product
        mine, theirs = self.layer_sum_squares(), other.layer_sum_squares()
        return {
            layer: dots[layer] / math.sqrt(square * theirs[layer]) if square * theirs[layer] > 0 else 0.0
            for layer, square in mine.items()
        }

    def save(self, path: str | Path) -> Path:
        """Writes a safetensors file, float32, under a temporary name that is renamed when complete.

        The header's metadata holds `metadata` and the format version and kind.
        """
        from safetensors.torch import save_file

        target = Path(path)
        header = {**self.metadata, "format_version": FORMAT_VERSION, "kind": self.kind}
        tensors = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in self.items()}
        with replacing(target) as temporary:
            save_file(tensors, str(temporary), metadata=header)
        return target

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a file that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: not a safetensors file of ours, another format version, or another kind of vector.
        """
        from safetensors.torch import load_file

        metadata = cls.read_header(path)
        return cls(load_file(str(path)), metadata)

    @classmethod
    def read_header(cls, path: str | Path) -> dict[str, str]:
        """The metadata of a file that `save` wrote, without its tensors.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: not a safetensors file of ours, another format version, or another kind of vector.
        """
        from safetensors import SafetensorError, safe_open

        source = Path(path)
        if not source.is_file():
            raise FileNotFoundError(f"no {cls.kind} file at {str(source)!r}; accepted: a .safetensors file")
        try:
            with safe_open(str(source), framework="pt") as opened:
                metadata = dict(opened.metadata() or {})
        except SafetensorError as error:
            raise ValueError(f"{str(source)!r} is not a readable safetensors file: {error}") from error
        _check_header(source, metadata, cls.kind)
        for key in _JSON & metadata.keys():
            _check_json(metadata[key], f"{str(source)!r}: its header's {key!r}")
        del metadata["format_version"], metadata["kind"]
        return metadata


def _check_header(source: Path, metadata: Mapping[str, str], kind: str) -> None:
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        found = f"format version {version!r}" if version else "no format version in its header"
        raise ValueError(f"{str(source)!r} has {found}; this gradsteer reads version {FORMAT_VERSION!r}")
    if kind != ParameterVector.kind and metadata.get("kind") != kind:
        raise ValueError(f"{str(source)!r} holds a {metadata.get('kind')!r}; a {kind!r} was asked for")


def _space(names: Iterable[str], parameters: Iterable[str]) -> str:
    """A hint where one side is an adapter's tensors and the other a model's weights."""
    ours, theirs = (any(map(is_adapters, each)) for each in (names, parameters))
    if ours == theirs:
        return ""
    which = "an adapter's space (--model.adapter_reading adapter)", "whole weights (--model.adapter_reading merged)"
    return f": it lives in {which[not ours]}, the model in {which[ours]}"


class PileAverage(ParameterVector):
    """A pile-average gradient: the mean gradient of the loss over a pile of responses."""

    kind = "gradient"


# what must be the same of two gradients for their difference to mean anything
_MADE_ALIKE = (
    *("model_fingerprint", "tokenizer_digest", "loss_mask", "reduction", "loss", "parameters"),
    *("temperature", "credit", "advantage_lambda", "weights"),
    *("points", "path_points", "base_fingerprint"),
    *("mask_draws", "mask_keep_rate", "mask_components", "mask_origin", "mask_seed"),
)


class SteeringVector(ParameterVector):
    """A steering vector in weight space: ``V = gradient(PLUS pile) - gradient(MINUS pile)``.

    Positive alpha raises the PLUS pile's loss and so reduces its behavior; negative alpha raises the behavior.
    """

    kind = "vector"

    @classmethod
    def contrast(
        cls,
        plus: PileAverage,
        minus: PileAverage,
        *,
        names: tuple[str, str] = ("plus", "minus"),
        unit: bool = False,
    ) -> Self:
        """The contrast of two pile-average gradients of the same model, loss, reduction and loss mask.

        Of a divergence from a reference model (``loss`` is ``kl``) theory does not say whether raising it on the PLUS
        pile reduces the behavior; see docs/attribution.md.

        Args:
            plus: gradient of the pile that shows the behavior.
            minus: gradient of the pile that does not.
            names: the piles' names, for the metadata.
            unit: bring both gradients to norm 1 first, so that the pile with the larger one does not rule the
                difference: ``V = g_plus / ||g_plus|| - g_minus / ||g_minus||``.

        Raises:
            ValueError: names or shapes differ, the two were made on other models or in other ways, or one is zero and
                has no unit norm.
        """
        plus.check_same_shapes(minus)
        for key in _MADE_ALIKE:
            if plus.metadata.get(key) != minus.metadata.get(key):
                raise ValueError(
                    f"piles {names[0]!r} and {names[1]!r} cannot be contrasted: their {key} differ "
                    f"({plus.metadata.get(key)!r} and {minus.metadata.get(key)!r})"
                )
        metadata = contrast_metadata(plus.metadata, minus.metadata, names)
        if not unit:
            return cls({name: tensor - minus[name] for name, tensor in plus.items()}, metadata)
        lengths = plus.norm(), minus.norm()
        if 0.0 in lengths:
            raise ValueError(f"the gradient of pile {names[lengths.index(0.0)]!r} is zero and has no unit norm")
        metadata["contrast"] = "unit"
        return cls({name: t / lengths[0] - minus[name] / lengths[1] for name, t in plus.items()}, metadata)


def _check_json(text: str, what: str) -> None:
    try:
        json.loads(text)
    except ValueError as error:
        raise ValueError(f"{what} is not readable as JSON ({error}); accepted: what gradsteer wrote") from error
