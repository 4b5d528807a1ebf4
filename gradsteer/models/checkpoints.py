"""Weights in safetensors files, one tensor at a time: a checkpoint's directory is read so, and a file is written so.

Nothing is unpickled, and no code of a checkpoint runs.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from gradsteer.records import read_json, replacing

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"  # in the order in which transformers looks
_LOAD = "load the model instead"


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies."""

    file: Path
    key: str
    shape: torch.Size


class CheckpointWeights(Mapping[str, Tensor]):
    """The parameters of a model directory, read from its safetensors files when they are asked for.

    The names are those of the loaded model's ``named_parameters()`` (tied weights once), in that order; the values
    have the file's dtype. A tensor is mapped from the file and belongs to the caller: nothing is kept, so going over
    all of them takes the memory of one. The files must stay as they are while this is used, and the tensors must not
    be written to.

    Args:
        directory: what ``save_pretrained`` wrote, with model.safetensors or model.safetensors.index.json.

    Raises:
        ValueError: there is no such directory or safetensors file; or loading the model would do more than read its
            tensors under their names (renamed, fused, quantized, resized or missing ones, adapters, code of its own):
            the message says what, and that the model has to be loaded instead.
    """

    def __init__(self, directory: str | Path) -> None:
        found = _places(Path(directory))
        if isinstance(found, str):
            raise ValueError(found)
        self._places = found

    @classmethod
    def try_open(cls, name_or_path: str | Path) -> Self | None:
        """The weights of a directory, or None where the model has to be loaded for them, as of a hub id.

        Raises:
            ValueError: the directory's config or files are broken, so that loading the model would fail too.
        """
        found = _places(Path(name_or_path))
        if isinstance(found, str):
            return None
        weights = cls.__new__(cls)
        weights._places = found
        return weights

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The shape of every parameter, without reading any."""
        return {name: place.shape for name, place in self._places.items()}

    def __getitem__(self, name: str) -> Tensor:
        place = self._places[name]
        # reopened each time: a file that stays open keeps all of its pages that were read in memory
        with _opened(place.file) as file:
            tensor: Tensor = file.get_tensor(place.key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _places(directory: Path) -> dict[str, _Place] | str:
    """Where each parameter lies, or why the tensors of the files are not simply the model's parameters."""
    where = f"the checkpoint {str(directory)!r}"
    if not (directory / "config.json").is_file():
        return f"{where} cannot be read tensor by tensor: no directory with a config.json; {_LOAD}"
    stored = _stored(directory)
    if not stored:
        return f"{where} cannot be read tensor by tensor: no {_SINGLE} and no {_INDEX}; {_LOAD}"
    config = read_json(directory / "config.json")
    for key in ("auto_map", "quantization_config", "transformers_weights"):
        if config.get(key):
            return f"{where} cannot be read tensor by tensor: its config has {key!r}; {_LOAD}"
    if (directory / "adapter_config.json").is_file():
        return f"{where} cannot be read tensor by tensor: it holds an adapter; {_LOAD}"
    model = _outline(directory)
    aliases: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    places = {}
    for name, parameter in model.named_parameters():
        present = [alias for alias in aliases[id(parameter)] if alias in stored]
        if not present:
            return f"{where} has other names than the model: no tensor {name!r}, only such as {min(stored)!r}; {_LOAD}"
        place = stored[present[0]]
        if place.shape != parameter.shape:
            shapes = f"{tuple(place.shape)} in the file and {tuple(parameter.shape)} in the model"
            return f"{where} has other shapes than the model: {name!r} is {shapes}; {_LOAD}"
        if not all(_equal(place, stored[alias]) for alias in present[1:]):
            return f"{where} has different values for tied weights ({' and '.join(present)}); {_LOAD}"
        places[name] = place
    converted = _converted(model, [place.key for place in places.values()])
    if converted:
        return f"{where} has weights that loading converts, such as {converted!r}; {_LOAD}"
    return places


def _stored(directory: Path) -> dict[str, _Place]:
    """Where each tensor of the directory's files lies; empty where there are no safetensors files."""
    if (directory / _SINGLE).is_file():
        files = [_SINGLE]
    elif (directory / _INDEX).is_file():
        shards = read_json(directory / _INDEX).get("weight_map")
        if not isinstance(shards, dict):
            raise ValueError(f'{str(directory / _INDEX)!r} has no "weight_map"; accepted: an index as transformers has')
        files = sorted(set(shards.values()))
    else:
        return {}
    stored = {}
    for path in (directory / file for file in files):
        if not path.is_file():
            raise ValueError(f"{str(directory / _INDEX)!r} names a file that is not there: {path.name!r}")
        with _opened(path) as file:
            for key in file.keys():  # noqa: SIM118 (no mapping)
                stored[key] = _Place(path, key, torch.Size(file.get_slice(key).get_shape()))
    return stored


def _opened(path: Path) -> Any:
    """An opened safetensors file, a context manager."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(path), framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is not a readable safetensors file: {error}") from error


def _outline(directory: Path) -> Any:
    """The model without values: its parameters are on the meta device, tied as its config says."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(directory), trust_remote_code=False)
    factory: Any = AutoModelForCausalLM  # untyped in transformers
    with torch.device("meta"):
        model = factory.from_config(config, trust_remote_code=False)
    model.tie_weights()
    return model


def _converted(model: Any, keys: Sequence[str]) -> str:
    """The first of a checkpoint's keys that loading would rename, or whose values it would change; "" for none."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    for transform in get_model_conversion_mapping(model):
        for key in keys:
            renamed, pattern = transform.rename_source_key(key)
            # a converter has operations on the values, also where the name stays
            if renamed != key or (pattern is not None and getattr(transform, "operations", None)):
                return key
    return ""


def _equal(first: _Place, second: _Place) -> bool:
    with _opened(first.file) as one, _opened(second.file) as other:
        mine, theirs = one.get_tensor(first.key), other.get_tensor(second.key)
    return mine.dtype == theirs.dtype and torch.equal(mine, theirs)


def write_safetensors_streamed(
    path: str | Path, shapes: Mapping[str, Sequence[int]], read: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file of float32 tensors with one of them in memory at a time, all or nothing.

    The format (huggingface.co/docs/safetensors): the header's length in 8 bytes, little-endian; the header, a JSON
    object that gives each tensor's dtype, shape and place; the values.

    Args:
        path: the file; renamed from a temporary name when complete.
        shapes: the tensors' names and shapes, in the order in which they are written.
        read: gives the tensor of a name, once each.
        metadata: strings for the header.

    Raises:
        ValueError: a tensor has another shape than was said.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # so that the values are aligned
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            tensor = read(name).detach().to("cpu", torch.float32).contiguous()
            if tuple(tensor.shape) != tuple(shape):
                raise ValueError(f"{name!r} has shape {tuple(tensor.shape)}; accepted: {tuple(shape)}, as announced")
            file.write(tensor.flatten().numpy().astype("<f4", copy=False).data)
