"""A matrix as a product of two thin ones, and how much of it every rank keeps."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """``M_r = left[:, :r] @ right[:r]``, the best approximation of a matrix M of rank r (Eckart & Young, 1936).

    Attributes:
        left: (rows, kept) ``U sqrt(S)``.
        right: (kept, columns) ``sqrt(S) W^T``.
        energies: (min(rows, columns),) float64, the squared singular values, the largest first, of all of M.
    """

    left: Tensor
    right: Tensor
    energies: Tensor

    @property
    def full_rank(self) -> int:
        """The rank at which nothing is lost, whatever M is."""
        return len(self.energies)

    def energy(self) -> float:
        """``||M||^2``."""
        return float(self.energies.sum())

    def residual(self, rank: int) -> float:
        """``||M - M_r||^2``, what the rank does not keep."""
        return float(self.energies[rank:].sum())

    def product(self, rank: int) -> Tensor:
        """(rows, columns) ``M_r``."""
        return self.left[:, :rank] @ self.right[:rank]


@torch.no_grad()
def factorise(matrix: Tensor, rank: int) -> Factors:
    """Factors of a matrix up to a rank.

    By the eigenvectors W of the smaller Gram matrix in float64: a matrix of a vocabulary's height costs no more than
    its width asks for, and ``M W W^T`` is M at full rank whatever the accuracy of the smallest singular values.

    Args:
        matrix: (rows, columns), any floating dtype.
        rank: factors beyond it are not kept; larger than the matrix's own means all.

    Returns:
        The factors in the matrix's dtype.
    """
    if matrix.shape[1] > matrix.shape[0]:
        turned = factorise(matrix.mT, rank)
        return Factors(turned.right.mT.contiguous(), turned.left.mT.contiguous(), turned.energies)
    exact = matrix.double()
    basis = torch.linalg.eigh(exact.mT @ exact).eigenvectors.flip(-1)  # (columns, columns), the largest first
    images = exact @ basis  # (rows, columns) U S
    # of the images, not the eigenvalues: those of the smallest directions are rounding noise, and may be negative
    energies, order = images.square().sum(dim=0).sort(descending=True, stable=True)
    kept = order[:rank]
    roots = energies[:rank].sqrt().sqrt()
    left = images[:, kept] / torch.where(roots > 0, roots, 1.0)
    right = roots[:, None] * basis[:, kept].mT
    return Factors(left.to(matrix.dtype).contiguous(), right.to(matrix.dtype).contiguous(), energies)
