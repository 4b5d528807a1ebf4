"""What of a steering vector an adapter keeps: factors of every matrix, energies by rank, what no adapter holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gradsteer.export.factors import Factors, factorise
from gradsteer.export.holding import Held, Holding, holdable, reason_table
from gradsteer.export.inputs import Steering
from gradsteer.progress import progress
from gradsteer.vectors.parameter_vectors import ParameterVector

Rank = int | Literal["full"]


@dataclass(frozen=True)
class Kept:
    """What an adapter of a rank keeps of a vector.

    Attributes:
        held: parameter -> how the adapter holds it.
        factors: parameter -> factors of V's matrix; none where V is zero.
        not_held: reason -> ``num_tensors``, ``energy``, ``parameters``.
        energy: ``||V||^2``.
        rank: the adapter's.
    """

    held: dict[str, Held]
    factors: dict[str, Factors]
    not_held: dict[str, dict[str, Any]]
    energy: float
    rank: int

    @property
    def full_rank(self) -> int:
        """The rank at which nothing of the held matrices is lost."""
        return max(parts.full_rank for parts in self.factors.values())

    @property
    def held_energy(self) -> float:
        """``||V||^2`` over the held matrices."""
        return sum(parts.energy() for parts in self.factors.values())

    def residual(self, rank: int) -> float:
        """What of the held matrices' energy a rank does not keep."""
        return sum(parts.residual(rank) for parts in self.factors.values())

    def share(self, rank: int) -> float:
        """The share of ``||V||^2`` that an adapter of a rank keeps."""
        return (self.held_energy - self.residual(rank)) / self.energy

    def at(self, rank: int) -> ParameterVector:
        """The held matrices at a rank, as the weights' edit."""
        return ParameterVector({name: parts.product(rank) for name, parts in self.factors.items()})

    def matrices(self) -> list[dict[str, Any]]:
        """Of every held matrix what the adapter loses, the largest loss first."""
        rows = []
        for name, parts in self.factors.items():
            lost = parts.residual(self.rank)
            row = {"name": name, "kind": self.held[name].kind, "rank": min(self.rank, parts.full_rank)}
            energies = {"energy": parts.energy(), "residual_energy": lost, "residual_share": lost / parts.energy()}
            rows.append({**row, "full_rank": parts.full_rank, **energies})
        return sorted(rows, key=lambda row: -float(row["residual_energy"]))

    def table(self, ranks: Sequence[int]) -> list[dict[str, Any]]:
        """By rank the shares of energy that are kept."""
        rows = []
        for rank in ranks:
            shares = {"share_of_held": 1 - self.residual(rank) / self.held_energy, "share_of_whole": self.share(rank)}
            rows.append({"rank": rank, "is_full": rank == self.full_rank, **shares, "effect": None})
        return rows


def keep(
    steering: Steering,
    *,
    rank: Rank,
    ranks: Sequence[int],
    all_factors: bool,
    min_energy: float,
) -> tuple[Kept, list[int]]:
    """Takes a vector apart for an adapter.

    Args:
        steering: the model and V.
        rank: of the adapter, at least 1, or "full".
        ranks: further ranks for the table.
        all_factors: keep the factors up to full rank, for the effects in the table.
        min_energy: refuse an adapter that keeps less than this share of ``||V||^2``.

    Returns:
        The parts, and the table's ranks in order: those asked for that are below the full rank, the adapter's own, and
        the full one.

    Raises:
        ValueError: no matrix can be held, or too little of the vector.
    """
    holding, squares = holdable(steering.model), steering.vector.sum_squares()
    wanted = _wanted(steering, holding, squares)
    energy = sum(squares.values())
    most = sum(squares[name] for name in wanted) / energy
    if most < min_energy:  # said before the long work
        raise ValueError(_too_little(most, min_energy, "at any rank", holding, squares))
    full = max(min(steering.vector[name].shape) for name in wanted)
    chosen = full if rank == "full" else min(rank, full)
    needed = full if all_factors else chosen
    factors = {}
    with progress("factorising", len(wanted), unit="tensor") as tick:
        for name in wanted:
            factors[name] = factorise(steering.vector[name], needed)
            tick()
    held = {name: holding.held[name] for name in wanted}
    kept = Kept(held, factors, reason_table(holding.reasons, squares), energy, chosen)
    if kept.share(chosen) < min_energy:
        raise ValueError(_too_little(kept.share(chosen), min_energy, f"at rank {chosen}", holding, squares))
    return kept, sorted({*(other for other in ranks if other < full), chosen, full})


def _wanted(steering: Steering, holding: Holding, squares: Mapping[str, float]) -> list[str]:
    wanted = [name for name in holding.held if squares.get(name, 0.0) > 0]
    if not wanted:
        raise ValueError(
            f"no matrix of {steering.vector_file!r} can be held by an adapter ({_losses(holding, squares)}); accepted: "
            "--format model"
        )
    return wanted


def _too_little(share: float, least: float, when: str, holding: Holding, squares: Mapping[str, float]) -> str:
    return (
        f"{when} the adapter keeps {share:.4f} of the vector's squared norm, --min_energy is {least}; not held: "
        f"{_losses(holding, squares)}; accepted: a larger --rank (full), a smaller --min_energy, or --format model"
    )


def _losses(holding: Holding, squares: Mapping[str, float]) -> str:
    total = sum(squares.values())
    rows = reason_table(holding.reasons, dict(squares)).items()
    return ", ".join(f"{reason} {row['energy'] / total:.4f}" for reason, row in rows) or "nothing"
