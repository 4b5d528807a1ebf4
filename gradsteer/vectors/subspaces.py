"""Transforms of a steering vector by directions and subspaces: ranks, projections, orthogonal parts.

A tensor with two dimensions or more is a matrix (or a stack of them); vectors, such as norms and biases, have no
subspaces and are kept or left out, as asked.
"""

from typing import Literal

import torch
from torch import Tensor

from gradsteer.models.exact import doubled
from gradsteer.vectors.elementwise import fitting
from gradsteer.vectors.parameter_vectors import ParameterVector, SteeringVector
from gradsteer.vectors.weight_diff import WeightDiff


def low_rank(
    vector: SteeringVector, diff: WeightDiff | None, *, rank: int, vectors: Literal["keep", "drop"] = "keep"
) -> SteeringVector:
    """The best approximation of every matrix of V of a rank (Eckart & Young, 1936).

    Args:
        vector: the direction V.
        diff: not used.
        rank: at least 1; a matrix of no more rows or columns stays as it is.
        vectors: what becomes of tensors with one dimension.

    Raises:
        ValueError: an argument that is not accepted.
    """
    del diff
    _check("low_rank", rank, vectors)

    def reduce(_name: str, tensor: Tensor) -> Tensor:
        if tensor.ndim < 2:
            return tensor if vectors == "keep" else torch.zeros_like(tensor)
        return project_columns(tensor, right_subspace(tensor, rank))

    return vector.map(reduce, f"|low_rank(rank={rank}, vectors={vectors})")


def diff_subspaces(
    vector: SteeringVector, diff: WeightDiff | None, *, rank: int, vectors: Literal["keep", "drop"] = "keep"
) -> SteeringVector:
    """Every matrix of V projected on the top singular subspaces of Delta's: ``U U^T V W W^T``.

    U and W hold the first left and right singular vectors of that matrix of Delta: what is kept reads from and writes
    to where the finetune changed most.

    Args:
        vector: the direction V.
        diff: the weight diff Delta.
        rank: of the subspaces, at least 1.
        vectors: what becomes of tensors with one dimension.

    Raises:
        ValueError: an argument that is not accepted, or no diff that fits.
    """
    _check("diff_subspaces", rank, vectors)
    diff = fitting(vector, diff, "diff_subspaces")

    def project(name: str, tensor: Tensor) -> Tensor:
        if tensor.ndim < 2:
            return tensor if vectors == "keep" else torch.zeros_like(tensor)
        delta = diff[name].to(tensor.device)
        columns = project_columns(tensor, right_subspace(delta, rank))
        return project_columns(columns.mT, right_subspace(delta.mT, rank)).mT.contiguous()

    return vector.map(project, f"|diff_subspaces(rank={rank}, vectors={vectors})")


def diff_projection(
    vector: SteeringVector, diff: WeightDiff | None, *, per: Literal["whole", "tensor"] = "whole"
) -> SteeringVector:
    """V's scalar projection on Delta: ``(<V, Delta> / <Delta, Delta>) Delta``.

    Args:
        vector: the direction V.
        diff: the weight diff Delta.
        per: one factor over all of V's parameters, or one for every tensor.

    Raises:
        ValueError: an argument that is not accepted, no diff that fits, or a diff that is zero.
    """
    diff = fitting(vector, diff, "diff_projection")
    if per not in ("whole", "tensor"):
        raise ValueError(f"transform 'diff_projection': per is {per!r}; accepted: whole, tensor")
    dots, squares = {}, {}
    for name, tensor in vector.items():
        one = ParameterVector({name: diff[name]})  # a streamed diff is never held whole
        dots.update(_dots(ParameterVector({name: tensor}), one))
        squares.update(one.sum_squares())
    if sum(squares.values()) == 0:
        raise ValueError("transform 'diff_projection': the weight diff is zero on all of the vector's parameters")
    whole = sum(dots.values()) / sum(squares.values())

    def project(name: str, tensor: Tensor) -> Tensor:
        own = dots[name] / squares[name] if squares[name] > 0 else 0.0
        return diff[name].to(tensor) * (whole if per == "whole" else own)

    return vector.map(project, f"|diff_projection(per={per})")


def orthogonal_to(vector: SteeringVector, diff: WeightDiff | None, *, vector_file: str) -> SteeringVector:
    """What is left of V without another direction U: ``V - (<V, U> / <U, U>) U``.

    Args:
        vector: the direction V.
        diff: not used.
        vector_file: a vectors/NAME.safetensors file, of the same parameters.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not fit, is zero, or was made on another model.
    """
    del diff
    other = SteeringVector.load(vector_file)
    mine, theirs = vector.metadata.get("model_fingerprint"), other.metadata.get("model_fingerprint")
    if mine and theirs and mine != theirs:
        raise ValueError(
            f"transform 'orthogonal_to': {vector_file!r} was made on another model ({theirs}, V on {mine})"
        )
    try:
        vector.check_same_shapes({name: tensor for name, tensor in other.items() if name in vector})
    except ValueError as error:
        raise ValueError(f"transform 'orthogonal_to' with {vector_file!r}: {error}") from error
    covered = ParameterVector({name: other[name] for name in vector})
    squares = sum(covered.sum_squares().values())
    if squares == 0:
        raise ValueError(f"transform 'orthogonal_to': {vector_file!r} is zero on all of the vector's parameters")
    factor = sum(_dots(vector, covered).values()) / squares

    def remove(name: str, tensor: Tensor) -> Tensor:
        return (doubled(tensor) - factor * doubled(covered[name].to(tensor.device))).to(tensor)

    return vector.map(remove, f"|orthogonal_to({vector_file.rsplit('/', 1)[-1].removesuffix('.safetensors')})")


def right_subspace(matrix: Tensor, rank: int) -> Tensor:
    """Orthonormal columns (..., columns, r) that span the top right singular vectors of (..., rows, columns).

    By the eigenvectors of the smaller Gram matrix in float64, so that a matrix of a vocabulary's height costs no more
    than its width asks for.
    """
    exact = doubled(matrix)
    rank = min(rank, *exact.shape[-2:])
    wide = exact.shape[-1] > exact.shape[-2]
    squares, basis = torch.linalg.eigh(exact @ exact.mT if wide else exact.mT @ exact)
    squares, basis = squares[..., -rank:], basis[..., -rank:]
    # a matrix of less rank has no further directions: their columns are 0
    there = squares > 1e-12 * squares.amax(dim=-1, keepdim=True).clamp(min=1e-300)
    if wide:
        basis = exact.mT @ basis / squares.clamp(min=1e-300).sqrt()[..., None, :]
    return torch.where(there[..., None, :], basis, 0.0)


def project_columns(matrix: Tensor, basis: Tensor) -> Tensor:
    """``M W W^T`` in float64, in the matrix's dtype."""
    return (doubled(matrix) @ basis @ basis.mT).to(matrix)


def _dots(vector: ParameterVector, other: ParameterVector) -> dict[str, float]:
    return {
        name: float(torch.dot(doubled(tensor.flatten()), doubled(other[name].to(tensor.device).flatten())))
        for name, tensor in vector.items()
    }


def _check(name: str, rank: int, vectors: str) -> None:
    if rank < 1:
        raise ValueError(f"transform {name!r}: rank is {rank!r}; accepted: at least 1")
    if vectors not in ("keep", "drop"):
        raise ValueError(f"transform {name!r}: vectors is {vectors!r}; accepted: keep, drop")
