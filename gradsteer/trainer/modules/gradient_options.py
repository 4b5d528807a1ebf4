"""Attribution options that belong together: at which weights the gradient is taken, and of which loss."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradsteer.attribution.credit import Credit, CreditOptions
from gradsteer.attribution.gradient_points import AnchorPoint, Components, Points, RandomMasks, StraightPath
from gradsteer.models.base_record import recorded_base
from gradsteer.models.loading import Loading, check_model_path

_MOST_POINTS = 1_000  # passes over every pile; the places of more take ever longer to find


def refuse_unused(given: Mapping[str, tuple[Any, Any]], needs: str) -> None:
    """Refuses settings that would have no effect.

    Args:
        given: option -> its value and its default.
        needs: the option that they depend on, such as ``model.mask_draws``.

    Raises:
        ValueError: a value differs from its default.
    """
    for option, (value, default) in given.items():
        if value != default:
            raise ValueError(f"{option} is {value!r}, which has no effect without {needs}")


def credit_options(
    credit: Credit, decay: float | None, reduction: str, temperature: float | str, loss: str
) -> CreditOptions:
    """The credit that is asked for; lambda is 0.95 by default.

    Raises:
        ValueError: a value is out of its range, has no effect, or the credit is of another gradient.
    """
    if credit != "advantage":
        refuse_unused({"model.advantage_lambda": (decay, None)}, "model.credit advantage")
    options = CreditOptions(credit, 0.95 if credit == "advantage" and decay is None else decay)
    if temperature != "sampled" and (isinstance(temperature, str) or not 0 < temperature < math.inf):
        raise ValueError(f"model.temperature is {temperature!r}; accepted: more than 0, or sampled")
    if options.cuts and loss != "cross_entropy":
        raise ValueError(
            f"model.credit {credit} is of the replies' own likelihood; accepted: --model.loss cross_entropy"
        )
    if options.predicts and (reduction, temperature) != ("sum", "sampled"):
        raise ValueError(
            f"model.credit {credit} weighs the score function of whole replies as they were sampled; accepted: "
            f"--model.reduction sum --model.temperature sampled (here: {reduction}, {temperature})"
        )
    return options


@dataclass(frozen=True)
class PointOptions:
    """At which weights the gradient is taken; see `gradsteer.attribution.gradient_points`.

    Raises:
        ValueError: a value is out of range, both methods are chosen, or a mask setting is given without masks.
    """

    path_points: int | None
    mask_draws: int | None
    mask_keep_rate: float
    mask_components: Components
    mask_origin: str
    mask_seed: int

    def __post_init__(self) -> None:
        if self.path_points is not None and self.mask_draws is not None:
            raise ValueError("give either model.path_points or model.mask_draws, not both")
        if self.path_points is not None and not 2 <= self.path_points <= _MOST_POINTS:
            raise ValueError(f"model.path_points is {self.path_points}; accepted: 2 or more, up to {_MOST_POINTS}")
        if self.mask_draws is not None and self.mask_draws < 1:
            raise ValueError(f"model.mask_draws is {self.mask_draws}; accepted: at least 1")
        if not 0 < self.mask_keep_rate <= 1:
            raise ValueError(f"model.mask_keep_rate is {self.mask_keep_rate}; accepted: more than 0, at most 1")
        if self.mask_draws is None:
            defaults = {"mask_keep_rate": 0.5, "mask_components": "entries", "mask_origin": "base", "mask_seed": 0}
            unused = {f"model.{name}": (getattr(self, name), value) for name, value in defaults.items()}
            refuse_unused(unused, "model.mask_draws")

    @property
    def num_points(self) -> int:
        """Passes over each pile."""
        return self.path_points or self.mask_draws or 1

    @property
    def need_base(self) -> bool:
        """Whether the points depend on the base's weights."""
        return self.path_points is not None or (self.mask_draws is not None and self.mask_origin == "base")

    @property
    def move_weights(self) -> bool:
        """Whether some point differs from the anchor's weights."""
        return self.path_points is not None or self.mask_draws is not None

    def make(self, base: Mapping[str, Tensor], names: Sequence[str]) -> Points:
        """The points.

        Args:
            base: the base's weights by name, if needed.
            names: names of the parameters that get gradients.
        """
        if self.path_points is not None:
            return StraightPath(base, self.path_points)
        if self.mask_draws is not None:
            origin = base if self.mask_origin == "base" else None
            rate, kind = self.mask_keep_rate, self.mask_components
            return RandomMasks(self.mask_draws, rate, self.mask_seed, names, origin, kind)
        return AnchorPoint()


def choose_base(base: str | None, loading: Loading, *, needed: bool) -> str | None:
    """The base model: the given one, an adapter's own, or the one that fit recorded in the anchor's directory.

    Raises:
        ValueError: it is needed but unknown, given but not needed, or not a model directory.
    """
    if not needed:
        refuse_unused(
            {"model.base": (base, None)}, "model.path_points, model.mask_draws from the base, or kl without a reference"
        )
        return None
    own = loading.base_loading
    found = base or (recorded_base(loading.name_or_path) if own is None else own.name_or_path)
    if found is None:
        name = loading.name_or_path
        raise ValueError(f"{name!r} does not say what it was finetuned from: give the base model (--model.base)")
    check_model_path(found)
    return found
