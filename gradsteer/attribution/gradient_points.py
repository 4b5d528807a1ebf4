"""The settings of the weights at which a pile's gradient is taken: the anchor, a path to it, or masked weights.

The pile-average gradient is taken at one setting, the anchor's own weights. Here it becomes a weighted sum of gradients
at several: ``G = sum_i c_i * f_i * grad L(theta_i)``, with a number c_i a point and factors f_i element by element.
What each choice computes is written out in docs/attribution.md.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Literal, Protocol, get_args

import torch
from numpy.polynomial.legendre import Legendre
from torch import Tensor, nn

from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.models.batches import Batch
from gradsteer.models.exact import for_float64
from gradsteer.models.fingerprints import weights_digest
from gradsteer.models.parallel import settle, shard, shard_like, sum_over_shards
from gradsteer.steering.weight_steering import rewritten
from gradsteer.vectors.parameter_vectors import ParameterVector
from gradsteer.vectors.seeding import generator_for

Factors = Mapping[str, Tensor]
Components = Literal["entries", "rows", "tensors"]


class Points(Protocol):
    """Settings of a model's weights, and how the gradients there are summed; see `gradient_at_points`."""

    def __len__(self) -> int:
        """Number of points, at least 1: the cost is so many passes over a pile."""

    def coefficient(self, index: int) -> float:
        """What the gradients at a point are multiplied by."""

    def at(self, model: nn.Module, index: int) -> AbstractContextManager[Factors | None]:
        """Within the block the model has the point's weights; afterwards its own, byte for byte.

        Yields:
            What the gradients at the point are multiplied by, element by element: parameter name -> tensor that
            broadcasts to the parameter, or to this process's shard of it. A parameter without one, or None: by 1.

        Raises:
            ValueError: names or shapes do not fit the model.
        """

    def counts(self, index: int) -> bool:
        """Whether examples, tokens and losses are counted at this point.

        True for one point: the anchor's own weights where they are among the points, else the first point.
        """

    def describe(self) -> dict[str, str]:
        """What an artifact's metadata says of the points; collective where their weights are split over processes."""


def gradient_at_points(pile: PileGradient, points: Points, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """A pile's gradient at some points: every batch at every point.

    Args:
        pile: without anything added yet.
        points: where.
        batches: as `PileGradient.add` takes them.

    Returns:
        `PileGradient.average`; its totals have counted every example once.
    """
    for index in range(len(points)):
        with points.at(pile.model, index) as factors:
            for batch in batches:
                pile.add(batch, coefficient=points.coefficient(index), factors=factors, count=points.counts(index))
    return pile.average()


class AnchorPoint:
    """The model's own weights: the plain gradient."""

    def __len__(self) -> int:
        return 1

    def coefficient(self, index: int) -> float:
        """1."""
        return 1.0

    def at(self, model: nn.Module, index: int) -> AbstractContextManager[None]:
        """Changes nothing."""
        return nullcontext()

    def counts(self, index: int) -> bool:
        """Here."""
        return True

    def describe(self) -> dict[str, str]:
        """Nothing: an artifact that says nothing of points was taken at the anchor."""
        return {}


def gauss_lobatto(num_points: int) -> tuple[list[float], list[float]]:
    """Nodes and weights of the quadrature on [0, 1] that has both ends among its nodes.

    Exact for polynomials up to degree ``2 * num_points - 3``; 2 points are the trapezoid, 3 Simpson's rule. On [-1, 1]
    the inner nodes are the roots of P'_{m-1} and the weights ``2 / (m (m - 1) P_{m-1}(x)^2)``.

    Raises:
        ValueError: fewer than 2 points.
    """
    if num_points < 2:
        raise ValueError(f"num_points is {num_points}; accepted: 2 or more (both ends of the path are among them)")
    legendre = Legendre.basis(num_points - 1)
    inner = sorted(float(root) for root in legendre.deriv().roots())
    inner = [(a - b) / 2 for a, b in zip(inner, reversed(inner), strict=True)]  # symmetric, as the roots are
    scale = num_points * (num_points - 1)
    weights = [1 / (scale * float(legendre(x)) ** 2) for x in (-1.0, *inner, 1.0)]
    return [0.0, *((x + 1) / 2 for x in inner), 1.0], weights


class StraightPath:
    """Integrated attribution: the mean gradient along the straight path from the base to the anchor.

    ``G = integral_0^1 grad L(theta(t)) dt`` with ``theta(t) = theta_base + t (theta_anchor - theta_base)``, by
    Gauss-Lobatto quadrature: integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365) with weights in place of
    inputs. Complete: ``<G, theta_anchor - theta_base>`` approaches ``L(theta_anchor) - L(theta_base)`` as points are
    added. The first point is the base exactly, the last the anchor, so that the losses at both ends are at hand.

    Weights between the ends are computed in float32 (float64 for a float64 model) and rounded to the model's dtype: in
    half precision a small diff has few steps between its ends.

    Args:
        base: parameter name -> weights where the path begins, whole or split as the model is. All of them move along
            the path, also those that no gradient is taken of (else the path would not reach the base, and nothing
            would be complete); parameters that `base` lacks stay as they are.
        num_points: at least 2.

    Raises:
        ValueError: too few points, or no weights.
    """

    def __init__(self, base: Mapping[str, Tensor], num_points: int) -> None:
        self.nodes, self.weights = gauss_lobatto(num_points)
        if not base:
            raise ValueError("base holds no weights; accepted: parameter name -> tensor, at least one")
        self.base = dict(base)

    def __len__(self) -> int:
        return len(self.nodes)

    def coefficient(self, index: int) -> float:
        """The quadrature's weight; they sum to 1."""
        return self.weights[index]

    @contextmanager
    def at(self, model: nn.Module, index: int) -> Iterator[None]:
        """Within the block the model is at ``theta(t)`` of this point; see `Points.at`."""
        settle(model)
        ParameterVector(self.base).check_fits(model)
        if index == len(self) - 1:
            yield
            return
        parameters, t = dict(model.named_parameters()), self.nodes[index]

        def move(name: str, anchor: Tensor) -> Tensor:
            base = shard_like(self.base[name].detach(), parameters[name]).to(anchor)
            return torch.lerp(base, anchor, t) if t > 0 else base

        with rewritten(model, self.base, move):
            yield

    def along(self, model: nn.Module, sums: Mapping[str, Tensor]) -> float:
        """``<G, theta_anchor - theta_base>`` of a (summed) path gradient, in float64; collective where split.

        Args:
            model: with the anchor's weights.
            sums: parameter name -> sum, this process's shard.
        """
        settle(model)
        parameters = dict(model.named_parameters())
        total = torch.zeros((), dtype=torch.float64)
        for name in (name for name in sums if name in self.base):  # in an order that is the same in every run
            anchor = shard(parameters[name].detach()).to(sums[name].dtype)
            moved = anchor - shard_like(self.base[name].detach(), parameters[name]).to(anchor)
            total += for_float64(moved.mul_(sums[name])).sum(dtype=torch.float64).cpu()
        return float(sum_over_shards(total, next(iter(parameters.values()))))

    def counts(self, index: int) -> bool:
        """At the anchor, the last point."""
        return index == len(self) - 1

    def describe(self) -> dict[str, str]:
        """The number of points and the base's fingerprint."""
        return {"points": "path", "path_points": str(len(self)), "base_fingerprint": self._base_fingerprint}

    @cached_property
    def _base_fingerprint(self) -> str:
        return weights_digest(self.base)


class RandomMasks:
    """Stochastic masking: the mean gradient of each weight component over random masks that keep it.

    With ``m_i ~ Bernoulli(p)`` for each component, independently, and the smoothed objective
    ``Lbar(theta) = E_m[L(theta_m)]``, ``theta_m = theta_0 + m * (theta - theta_0)``::

        G = (1/p) grad Lbar = (1/p) E_m[m * grad L(theta_m)],   G_i = E[grad_i L(theta_m) | m_i = 1]

    estimated without bias by the mean over draws of ``m / p * grad L(theta_m)``. With keep_rate 1 it is the plain
    gradient. After attribution-based and stochastic parameter decomposition (Braun et al. 2025, arXiv:2501.14926;
    Bushnaq et al. 2025, arXiv:2506.20790), which *train* their components; here they are the weights' own entries, rows
    or tensors, and every one is kept at the same rate.

    A mask depends on the seed, the draw and the parameter's name only: not on device, order or number of processes.

    Args:
        num_draws: masks, at least 1.
        keep_rate: p, above 0 and at most 1.
        seed: another seed, other masks.
        names: of the parameters to mask. Others stay whole, as components that every mask keeps.
        origin: parameter name -> theta_0, what a masked weight becomes: the base's weights (masks parts of the weight
            diff), whole or split as the model is; None for zero.
        components: what is masked as one: "entries", "rows" (all that shares an index in the first dimension; of a
            bias or a norm's scale an entry) or whole "tensors".

    Raises:
        ValueError: a setting is not accepted, or the origin lacks a name.
    """

    def __init__(
        self,
        num_draws: int,
        keep_rate: float,
        seed: int,
        names: Sequence[str],
        origin: Mapping[str, Tensor] | None = None,
        components: Components = "entries",
    ) -> None:
        if num_draws < 1:
            raise ValueError(f"num_draws is {num_draws}; accepted: 1 or more")
        if not 0 < keep_rate <= 1:
            raise ValueError(f"keep_rate is {keep_rate}; accepted: above 0 and at most 1")
        if components not in get_args(Components):
            raise ValueError(f"components is {components!r}; accepted: {', '.join(get_args(Components))}")
        if not names:
            raise ValueError("names is empty; accepted: the names of the parameters to mask, at least one")
        missing = [name for name in names if origin is not None and name not in origin]
        if missing:
            raise ValueError(f"origin has no weights for {len(missing)} of the names, such as {missing[0]!r}")
        self.num_draws, self.keep_rate, self.seed = num_draws, keep_rate, seed
        self.names, self.origin, self.components = tuple(names), origin, components

    def __len__(self) -> int:
        return self.num_draws

    def coefficient(self, index: int) -> float:
        """``1 / (num_draws * keep_rate)``; the mask comes as factors."""
        return 1 / (self.num_draws * self.keep_rate)

    @contextmanager
    def at(self, model: nn.Module, index: int) -> Iterator[Factors]:
        """Within the block the masked weights are at the origin; see `Points.at`.

        Yields:
            The masks (bool, kept in memory in the block: up to a byte an entry), and the keep rate for what is not
            masked, as the coefficient divides by it.
        """
        settle(model)
        parameters = dict(model.named_parameters())
        unknown = [name for name in self.names if name not in parameters]
        if unknown:
            raise ValueError(f"the masks name a parameter {unknown[0]!r}; the model ({type(model).__name__}) has none")
        if self.origin is not None:
            ParameterVector({name: self.origin[name] for name in self.names}).check_fits(model)
        masks = {name: self._mask_like(parameters[name], index, name) for name in self.names}

        def mask(name: str, value: Tensor) -> Tensor:
            origin = 0.0 if self.origin is None else shard_like(self.origin[name].detach(), parameters[name]).to(value)
            return torch.where(masks[name], value, origin)

        # without dimensions it takes the gradient's dtype, and may stay on the CPU
        whole = {name: torch.tensor(self.keep_rate, dtype=torch.float64) for name in parameters if name not in masks}
        with rewritten(model, self.names, mask):
            yield {**whole, **masks}

    def mask(self, index: int, name: str, shape: Sequence[int]) -> Tensor:
        """A draw's mask of a parameter: bool, of its whole shape, True where it is kept; on the CPU."""
        generator = generator_for("mask", self.seed, index, name)
        drawn = {"entries": len(shape), "rows": min(1, len(shape)), "tensors": 0}[self.components]
        kept = torch.rand(tuple(shape[:drawn]), generator=generator, dtype=torch.float32) < self.keep_rate
        return kept[(..., *[None] * (len(shape) - drawn))].expand(tuple(shape))

    def _mask_like(self, parameter: Tensor, index: int, name: str) -> Tensor:
        return shard_like(self.mask(index, name, parameter.shape).to(parameter.device), parameter)

    def counts(self, index: int) -> bool:
        """At the first draw: the mean loss that is reported is that of its masked weights, not of the anchor's."""
        return index == 0

    def describe(self) -> dict[str, str]:
        """The settings, and the origin's fingerprint where it is not zero."""
        settings = {
            "points": "masks",
            "mask_draws": str(self.num_draws),
            "mask_keep_rate": str(self.keep_rate),
            "mask_components": self.components,
            "mask_origin": "zero" if self.origin is None else "base",
            "mask_seed": str(self.seed),
        }
        return settings if self.origin is None else {**settings, "base_fingerprint": self._origin_fingerprint}

    @cached_property
    def _origin_fingerprint(self) -> str:
        return weights_digest(dict(self.origin or {}))
