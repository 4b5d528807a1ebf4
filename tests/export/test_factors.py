"""Matrices as products of two thin ones."""

import pytest
import torch
from anchors import truncated

from gradsteer.export.factors import factorise


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (7, 7), (1, 4)])
@pytest.mark.parametrize("rank", [1, 3, 99])
def test_the_product_is_the_truncated_svd(shape, rank):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    parts = factorise(matrix, rank)
    values = torch.linalg.svdvals(matrix.double())
    torch.testing.assert_close(parts.energies, values.square())
    torch.testing.assert_close(parts.product(rank), truncated(matrix, rank))
    assert parts.full_rank == min(shape)
    assert parts.residual(rank) == pytest.approx(float(values[rank:].square().sum()))
    assert parts.energy() == pytest.approx(float(matrix.double().square().sum()))


def test_both_factors_carry_the_root_of_the_singular_values():
    parts = factorise(torch.diag(torch.tensor([9.0, 4.0, 0.0])), 3)
    torch.testing.assert_close(parts.left.norm(dim=0), torch.tensor([3.0, 2.0, 0.0]))
    torch.testing.assert_close(parts.right.norm(dim=1), torch.tensor([3.0, 2.0, 0.0]))


def test_at_full_rank_nothing_is_lost_however_small_the_values():
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q for _ in range(2))
    matrix = left @ torch.diag(10.0 ** -(torch.arange(8, dtype=torch.float64) ** 1.2)) @ right
    assert float((factorise(matrix, 8).product(8) - matrix).abs().max()) < 1e-15


def test_fewer_factors_are_kept_than_energies():
    parts = factorise(torch.randn(6, 4), 2)
    assert parts.left.shape == (6, 2)
    assert parts.right.shape == (2, 4)
    assert len(parts.energies) == 4
    assert parts.product(1).shape == (6, 4)
