"""What an export starts from: the anchor, the vector with its transforms, alpha."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gradsteer.generation.served import served_otherwise
from gradsteer.models.adapter_loading import ADAPTER_FINGERPRINT, Reading, without_base
from gradsteer.models.base_record import recorded_base
from gradsteer.models.base_weights import base_weights, check_base
from gradsteer.models.loading import Loading, check_model_path, load_causal_lm, load_tokenizer
from gradsteer.steering.weight_steering import steered
from gradsteer.vectors.parameter_vectors import SteeringVector
from gradsteer.vectors.transforms import apply_transforms, needs_diff, parse_transform
from gradsteer.vectors.weight_diff import WeightDiff, named_weights


@dataclass(frozen=True)
class Steering:
    """A step to export: ``theta + alpha * V`` of a model.

    Attributes:
        model_name: the anchor, as the user gave it.
        vector_file: the vector's file, as the user gave it.
        alpha: positive reduces the behavior of the vector's PLUS pile, negative raises it.
        transforms: what was done to the vector, as labels.
        model: the anchor, float32, in eval mode.
        tokenizer: the anchor's.
        vector: V, transformed.
    """

    model_name: str
    vector_file: str
    alpha: float
    transforms: list[str]
    model: Any
    tokenizer: Any
    vector: SteeringVector

    @property
    def step_norm(self) -> float:
        """``||alpha * V||``."""
        return abs(self.alpha) * self.vector.norm()

    @property
    def served(self) -> list[str]:
        """What the model's generation_config sets beyond the model's own distribution."""
        return served_otherwise(getattr(self.model, "generation_config", None))

    def described(self) -> dict[str, Any]:
        """What was exported, for the report; paths are as the user gave them."""
        return {
            "model": self.model_name,
            "vector": self.vector_file,
            "alpha": self.alpha,
            "transforms": self.transforms,
            "generation_config": self.served,
            "vector_norm": self.vector.norm(),
        }


@dataclass(frozen=True)
class Request:
    """The same before anything is loaded.

    Attributes:
        model: a hub id or a directory.
        vector: a vectors/NAME.safetensors file.
        alpha: the steering coefficient.
        transforms: of the vector, in order.
        base: of the weight diff, where a transform needs it; None: as fit recorded it in the model's directory.
        trust_remote_code: run code that comes with the models.
        gguf_file: a GGUF file in the model's directory or hub repository; None: its own weights.
        adapter_base: of a model that is an adapter; None: as the adapter says it.
        adapter_reading: of an adapter: merged, or its own tensors as the parameters.
        allow_other_model: take a vector that was made on other weights.
    """

    model: str
    vector: str
    alpha: float
    transforms: Sequence[Any] = ()
    base: str | None = None
    trust_remote_code: bool = False
    gguf_file: str | None = None
    adapter_base: str | None = None
    adapter_reading: Reading = "merged"
    allow_other_model: bool = False

    def check(self) -> None:
        """Refuses what can be known to be wrong without loading a tensor.

        Raises:
            ValueError: alpha, a transform or a path is not accepted.
            FileNotFoundError: there is no such vector.
        """
        if not math.isfinite(self.alpha) or self.alpha == 0:
            raise ValueError(f"--alpha is {self.alpha}; accepted: a finite number other than 0")
        header = SteeringVector.read_header(self.vector)
        self.loading.check(needs_base=not self._from_files(header))
        for spec in self.transforms:
            if isinstance(spec, list):
                raise ValueError(f"--transforms holds a list, {spec!r}; accepted: one list of transforms, as for steer")
            parse_transform(spec)
        if self.base is not None and not self._need_diff:
            raise ValueError(f"--base is {self.base!r}, and no transform needs the weight diff; leave it out")
        if self._need_diff:
            check_model_path(self._base())
            check_base(self.loading, self._base())

    @property
    def loading(self) -> Loading:
        """How the anchor is loaded."""
        return Loading(
            self.model, trust_remote_code=self.trust_remote_code, gguf_file=self.gguf_file,
            adapter_base=self.adapter_base, adapter_reading=self.adapter_reading,
        )  # fmt: skip

    @property
    def _need_diff(self) -> bool:
        return any(needs_diff(spec) for spec in self.transforms)

    def _base(self) -> str:
        own = self.loading.base_loading
        base = self.base or (recorded_base(self.model) if own is None else own.name_or_path)
        if base is None:
            name = next(parse_transform(spec)[0] for spec in self.transforms if needs_diff(spec))
            raise ValueError(f"transform {name!r} needs the weight diff: give the base model (--base)")
        return base

    def _from_files(self, header: Mapping[str, str]) -> bool:
        """Whether the adapter's own tensors are all that is needed of the model."""
        in_space = self.adapter_reading == "adapter" and self.loading.adapter is not None
        return in_space and ADAPTER_FINGERPRINT in header and not self._need_diff

    def _check_adapter(self, header: Mapping[str, str]) -> bool:
        """Whether the vector says that it was made on this very adapter, on whichever base.

        Raises:
            ValueError: it was made on another one.
        """
        adapter, made_on = self.loading.adapter, header.get(ADAPTER_FINGERPRINT)
        if self.adapter_reading != "adapter" or adapter is None or made_on is None:
            return False
        if made_on != adapter.fingerprint and not self.allow_other_model:
            raise ValueError(
                f"--vector {self.vector} was made on an adapter with the fingerprint {made_on}, {self.model!r} has "
                f"{adapter.fingerprint}; to apply it to another adapter anyway: --allow_other_model true"
            )
        return True

    def load(self) -> Steering:
        """Loads the model, checks that the vector belongs to it, and applies the transforms.

        Raises:
            ValueError: the vector does not fit, was made on other weights, or becomes zero.
        """
        vector = SteeringVector.load(self.vector)
        tokenizer = load_tokenizer(self.loading)
        of_adapter = self._check_adapter(vector.metadata)
        model = (without_base if self._from_files(vector.metadata) else load_causal_lm)(self.loading)
        try:
            with steered(model, vector, 0.0, allow_other_model=of_adapter or self.allow_other_model):
                pass  # checks names, shapes and the fingerprint
        except ValueError as error:
            hint = " (--allow_other_model true)" if "allow_other_model" in str(error) else ""
            raise ValueError(f"--vector {self.vector}: {error}{hint}") from error
        diff = None
        if self._need_diff:
            named = self._base()

            def load() -> Mapping[str, Tensor]:
                return named_weights(load_causal_lm(self.loading.of(named, trusted=True)))

            diff = WeightDiff.between(named_weights(model), base_weights(model, self.loading, named, load))
        transformed = apply_transforms(vector, diff, self.transforms)
        labels = [parse_transform(spec)[0] for spec in self.transforms]
        norm = transformed.norm()
        if norm == 0 or not math.isfinite(norm):
            after = f" after {', '.join(labels)}" if labels else ""
            raise ValueError(f"--vector {self.vector} has the norm {norm}{after}: there is no step to export")
        return Steering(self.model, self.vector, self.alpha, labels, model, tokenizer, transformed)


def is_hub_id(name_or_path: str) -> bool:
    """Whether a model's name can only be one on the hub."""
    looks_local = name_or_path.startswith((".", "~", "/")) or name_or_path.count("/") > 1
    return not looks_local and not Path(name_or_path).exists()


def shown_name(name_or_path: str) -> str:
    """A model's or file's name for a text that travels: a hub id as it is, of a path the last part."""
    return name_or_path if is_hub_id(name_or_path) else Path(name_or_path).resolve().name
